"""Test the search space of every model: values near the configured ones that are valid together."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from optuna.distributions import CategoricalDistribution

from recgrit.config import Config
from recgrit.errors import ConfigError
from recgrit.experiment import SECTIONS, ExperimentConfig
from recgrit.models.popularity import Popularity
from recgrit.proposal.sizes import Kept
from recgrit.training.config import TransformerConfig
from recgrit.tuning.space import Varied, as_setting, override, propose_space

KEPT = Kept(5, 5, num_users=600, num_items=3650, num_interactions=90_000, long_history=260)


def settings(**sections: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(sections)


def by_name(config: ExperimentConfig, kept: Kept = KEPT) -> dict[str, Varied]:
    return {varied.name: varied for varied in propose_space(config, kept)}


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_model_has_something_to_tune_around_what_is_configured(kind: str) -> None:
    config = settings(model=kind)
    space = propose_space(config, KEPT)
    assert any(varied.name.startswith(f"{SECTIONS[kind]}.") for varied in space)
    for varied in space:
        found = varied.distribution
        assert found._contains(found.to_internal_repr(varied.given)), varied
        assert not found.single()
        section, name = varied.name.split(".")
        if isinstance(found, CategoricalDistribution):
            for choice in found.choices:
                made = override(config, {varied.name: as_setting(varied, choice)})
                expected = choice.split(",") if isinstance(choice, str) else choice
                value = getattr(getattr(made, section), name)
                assert (list(value) if isinstance(value, tuple) else value) == expected


def test_ids_are_varied_for_models_that_have_them() -> None:
    ids = {"tokenizer.codebook_size", "tokenizer.num_levels", "features.cooccurrence_weight"}
    for kind, has_ids in {"trie": True, "tiger": True, "decoder": True, "sasrec": False}.items():
        assert (set(by_name(settings(model=kind))) >= ids) is has_ids
    published = settings(tokenizer={"semantic_ids_path": "ids.json"})
    assert not set(by_name(published)) & ids


def test_sizes_follow_the_data() -> None:
    few = Kept(3, 1, num_users=60, num_items=40, num_interactions=900, long_history=18)
    small, large = by_name(settings(), few), by_name(settings())
    assert small["retriever.model_dim"].distribution.choices == (16, 32, 64, 128)
    assert large["retriever.model_dim"].distribution.choices == (32, 64, 128)
    assert "retriever.history_length" in large
    assert small["retriever.history_length"].distribution.choices == (20, 50)
    assert small["tokenizer.codebook_size"].distribution.choices[:2] == (4, 8)


def test_choices_that_do_not_go_with_other_settings_are_left_out() -> None:
    of_six = by_name(settings(retriever={"model_dim": 96, "num_heads": 6}))
    assert "retriever.model_dim" not in of_six, "96 is the only one that six heads divide"
    buckets = {"size": "constant", "node_buckets": 300}
    codes = by_name(settings(retriever=buckets))["tokenizer.codebook_size"]
    assert codes.distribution.choices == (128, 256)


@pytest.mark.parametrize("given", [0.0, 1e-6, 2.0])
def test_bounds_hold_a_rate_far_from_what_is_usual(given: float) -> None:
    varied = by_name(settings(retriever={"weight_decay": given}))["retriever.weight_decay"]
    assert varied.distribution.low <= given <= varied.distribution.high
    assert as_setting(varied, given) == given


def test_popularity_has_nothing_to_tune() -> None:
    with pytest.raises(ConfigError, match="nothing to tune in the model popularity"):
        propose_space(settings(model="popularity"), KEPT)


def test_an_unknown_setting_is_refused_with_the_nearest_one() -> None:
    wanted = ["retriever.learningrate"]
    with pytest.raises(ConfigError, match=r"Did you mean retriever\.learning_rate"):
        propose_space(settings(), KEPT, wanted)
    (only,) = propose_space(settings(), KEPT, ["retriever.dropout"])
    assert only.name == "retriever.dropout"


class OwnModel(Popularity):
    """A model from outside the package whose settings have the usual names."""

    settings_class: ClassVar[type[Config]] = TransformerConfig


class OtherModel(Popularity):
    """A model from outside the package whose settings have none of the usual names."""

    class Settings(Config):
        """Settings with a name of their own."""

        temperature: float = 1.0

    settings_class: ClassVar[type[Config]] = Settings


def test_a_custom_model_is_tuned_by_settings_with_the_usual_names() -> None:
    config = settings(model=f"{__name__}.OwnModel")
    space = by_name(config)
    assert set(space) >= {"model.settings.learning_rate", "model.settings.dropout"}
    made = override(config, {"model.settings.dropout": 0.25})
    assert made.settings_of(config.model.kind).dropout == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="none of the settings learning_rate"):
        propose_space(settings(model=f"{__name__}.OtherModel"), KEPT)
