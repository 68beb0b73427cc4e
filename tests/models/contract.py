"""The contract test of models, `ModelContract`, which the tests of each model inherit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError

from recgrit.config import Config
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.models.model import CatalogueInputs, Fitted, Model
from recgrit.models.registry import find_model
from recgrit.ranking import recommend_items
from tests.small_models import build_inputs

# Sequences are parts of a cycle of 30 items. The catalogue has 30 more, without interactions.
NUM_ITEMS, NUM_TAKEN = 60, 30
SIZES = (4, 4, 4)
TINY_TRAINING = {
    "epochs": 4,
    "patience": 4,
    "batch_targets": 128,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "average_decay": 0.0,
    "valid_users": None,
    "device": "cpu",
    "precision": "float32",
}
TINY_TRANSFORMER = TINY_TRAINING | {
    "model_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "history_length": 10,
    "dropout": 0.1,
}


class ModelContract:
    """Tests that every model passes. A subclass names the model.

    A subclass may override ``items`` to give the model other inputs.

    Attributes:
        kind: Kind of the model.
        settings: Settings of the model, with which a fit takes seconds.
        least_recall: Lowest accepted Recall@10 on cyclic sequences. Chance level is 0.17.
    """

    kind: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    least_recall: ClassVar[float] = 0.8

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> type[Model]:
        return find_model(cls.kind)

    @pytest.fixture(scope="class")
    @classmethod
    def split(cls, make_split: Any, cyclic: Any) -> SequenceSplit:
        found = make_split(cyclic(num_items=NUM_TAKEN), NUM_ITEMS)
        assert isinstance(found, SequenceSplit)
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def items(
        cls, model: type[Model], split: SequenceSplit, make_table: Any, random_codes: Any
    ) -> CatalogueInputs:
        """Return the inputs that the model declares in ``needs``, and no others."""
        table = make_table(random_codes(NUM_ITEMS, SIZES), SIZES)
        features = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
        return build_inputs(
            split,
            table if "tokenize" in model.needs else None,
            features if "embed" in model.needs else None,
        )

    @pytest.fixture(scope="class")
    @classmethod
    def fit(cls, model: type[Model], items: CatalogueInputs) -> Callable[..., Fitted[Any]]:
        def fit(split: SequenceSplit, seed: int = 0, **options: Any) -> Fitted[Any]:
            settings = model.settings_class.model_validate(cls.settings)
            return model.fit(items, split, settings, seed=seed, **options)

        return fit

    @pytest.fixture(scope="class")
    @classmethod
    def reported(cls) -> list[Any]:
        """Return the list of epoch reports, which the fit fills."""
        return []

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(
        cls, fit: Callable[..., Fitted[Any]], split: SequenceSplit, reported: list[Any]
    ) -> Fitted[Any]:
        return fit(split, on_epoch=reported.append)

    def rank(
        self,
        model: Model,
        split: SequenceSplit,
        *,
        beam_width: int | None = 20,
        allowed: torch.Tensor | None = None,
        top_k: int = 10,
        masked: bool = False,
    ) -> Recommendations:
        ranker = model.ranker(beam_width=beam_width, allowed=allowed)
        users = split.target_users("test")
        return recommend_items(ranker, split, "test", users, top_k=top_k, masked=masked)

    def test_item_vectors_and_neighbours_cover_the_whole_catalogue(
        self, fitted: Fitted[Any]
    ) -> None:
        vectors, table = fitted.model.item_vectors(), fitted.model.neighbour_table()
        if vectors is not None:
            assert vectors.dtype == np.float32
            assert len(vectors) == NUM_ITEMS
            assert np.isfinite(vectors).all()
            assert vectors[:NUM_TAKEN].any(axis=1).all()
        if table is not None:
            assert table.shape == (NUM_ITEMS, NUM_ITEMS)
            near = table[[5]].toarray()[0]
            assert near.min() >= 0
            assert near.max() > 0
            assert near[5] == 0, "it is no neighbour of itself"

    def test_it_learns_what_follows(self, fitted: Fitted[Any], split: SequenceSplit) -> None:
        found = self.rank(fitted.model, split)
        ranks = ranks_of_targets(found.items, split.targets("test", found.users))
        assert recall_at_k(ranks, 10).mean() >= self.least_recall

    def test_what_is_loaded_is_what_was_saved(
        self,
        fitted: Fitted[Any],
        model: type[Model],
        items: CatalogueInputs,
        split: SequenceSplit,
        tmp_path: Path,
    ) -> None:
        fitted.model.save(tmp_path)
        settings = model.settings_class.model_validate(self.settings)
        loaded = model.load(tmp_path, items, settings).to_device("cpu")
        suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
        assert suffixes <= {".safetensors", ".npy", ".npz", ".json", ".parquet"}, "no pickles"
        for masked in (False, True):
            before, after = (self.rank(m, split, masked=masked) for m in (fitted.model, loaded))
            assert_array_equal(after.items, before.items)
            assert_allclose(after.scores, before.scores, rtol=1e-5, atol=1e-6)

    def test_lists_are_ordered_without_repeats(
        self, fitted: Fitted[Any], split: SequenceSplit
    ) -> None:
        found = self.rank(fitted.model, split)
        assert found.items.min() >= 0
        assert found.items.max() < NUM_ITEMS
        assert np.isfinite(found.scores).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert all(len(set(row)) == len(row) for row in found.items.tolist())

    @pytest.mark.parametrize("masked", [False, True])
    def test_filtered_lists_are_full_and_keep_to_the_filter(
        self, fitted: Fitted[Any], split: SequenceSplit, masked: bool
    ) -> None:
        allowed = torch.arange(NUM_ITEMS) % 4 == 1
        left = set(allowed.nonzero().flatten().tolist())
        for top_k in (3, NUM_ITEMS):
            found = self.rank(fitted.model, split, allowed=allowed, top_k=top_k, masked=masked)
            for user, row in zip(found.users, found.items.tolist(), strict=True):
                seen = set(split.history(int(user), "test").tolist()) if masked else set()
                listed = [item for item in row if item != NO_ITEM]
                assert row == listed + [NO_ITEM] * (len(row) - len(listed)), "filled at the end"
                assert len(listed) == len(set(listed)) == min(top_k, len(left - seen))
                assert set(listed) <= left - seen

    def test_every_item_is_listed_if_top_k_is_the_catalogue_size(
        self, fitted: Fitted[Any], split: SequenceSplit
    ) -> None:
        found = self.rank(fitted.model, split, top_k=NUM_ITEMS)
        for row in found.items.tolist():
            assert sorted(row) == list(range(NUM_ITEMS)), "untrained items included"

    def test_a_list_may_be_longer_than_the_beam(
        self, fitted: Fitted[Any], split: SequenceSplit
    ) -> None:
        found = self.rank(fitted.model, split, beam_width=2, top_k=15)
        assert all(len(set(row) - {NO_ITEM}) == 15 for row in found.items.tolist())

    def test_a_filter_that_leaves_nothing_is_refused(self, fitted: Fitted[Any]) -> None:
        nothing = torch.zeros(NUM_ITEMS, dtype=torch.bool)
        for beam_width in (20, None) if fitted.model.scores_all else (20,):
            with pytest.raises(DataError, match="all are filtered out"):
                fitted.model.ranker(beam_width=beam_width, allowed=nothing)

    def test_exact_ranking_is_that_of_a_full_beam_or_is_refused(
        self, fitted: Fitted[Any], split: SequenceSplit
    ) -> None:
        if not fitted.model.scores_all:
            with pytest.raises(ConfigError, match="set a beam width"):
                fitted.model.ranker(beam_width=None)
            return
        exact, wide = (self.rank(fitted.model, split, beam_width=w) for w in (None, NUM_ITEMS))
        assert_allclose(wide.scores, exact.scores, rtol=1e-4, atol=1e-4)

    def test_the_same_seed_gives_the_same_model(
        self, fitted: Fitted[Any], fit: Callable[..., Fitted[Any]], split: SequenceSplit
    ) -> None:
        torch.rand(7)  # Earlier draws of the process must not change the result.
        first, again = (self.rank(found.model, split) for found in (fitted, fit(split)))
        assert_array_equal(again.items, first.items)
        assert_array_equal(again.scores, first.scores)

    def test_the_targets_of_the_test_are_never_looked_at(
        self, fitted: Fitted[Any], fit: Callable[..., Fitted[Any]], split: SequenceSplit
    ) -> None:
        changed = split.items.copy()
        changed[split.test_targets] = (changed[split.test_targets] + 1) % NUM_TAKEN
        other = fit(dataclasses.replace(split, items=changed))
        first, second = (self.rank(found.model, split) for found in (fitted, other))
        assert_array_equal(second.items, first.items)
        assert_array_equal(second.scores, first.scores)

    def test_the_summary_is_fit_for_a_manifest(
        self, fitted: Fitted[Any], reported: list[Any]
    ) -> None:
        summary = fitted.summary
        values = json.loads(json.dumps(summary.to_json()))
        assert sum(values["num_parameters"].values()) > 0
        assert reported == summary.history, "each epoch is reported once"
        assert ("best_epoch" in values) == bool(summary.history)

    def test_its_settings_are_validated(self, model: type[Model]) -> None:
        assert issubclass(model.settings_class, Config)
        # The settings can be built without arguments only if every setting has a default.
        model.settings_class()
        with pytest.raises(ValidationError, match="no_such_setting"):
            model.settings_class.model_validate(self.settings | {"no_such_setting": 1})

    def test_it_needs_only_existing_stages(self, model: type[Model]) -> None:
        assert set(model.needs) <= {"embed", "tokenize"}
        assert not model.can_append or "tokenize" in model.needs, "a new item needs an ID"
