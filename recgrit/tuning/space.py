"""The search space of a tuning: which settings trials differ in, and their allowed values.

The space is proposed from the size of the data. Sizes are those that `recgrit init` would propose
(`recgrit.proposal.sizes`), half of them and double of them. Rates have fixed bounds. The bounds of
a setting always include its configured value, because the first trial uses the configured values.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from recgrit.config import Config, validate
from recgrit.errors import ConfigError
from recgrit.experiment import SECTIONS, ExperimentConfig
from recgrit.models.registry import find_model
from recgrit.proposal.sizes import Kept, Sizes, choose_sizes

Choice = float | int | str
Propose = Callable[[Any], BaseDistribution | None]
ConfigT = TypeVar("ConfigT", bound=Config)

HISTORIES = (20, 50, 100, 200)


@dataclass(frozen=True)
class Varied:
    """A setting that trials differ in.

    Args:
        name: Dotted name as in overrides, such as ``retriever.dropout``.
        distribution: Values that the setting may have.
        given: Configured value, in the form that the distribution uses.
    """

    name: str
    distribution: BaseDistribution
    given: Choice

    def describe(self) -> str:
        """Return the possible values in words.

        >>> Varied("a.b", FloatDistribution(0.001, 0.1, log=True), 0.01).describe()
        '0.001 to 0.1, on a log scale'
        """
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return ", ".join(str(choice) or "none" for choice in found.choices)
        assert isinstance(found, FloatDistribution | IntDistribution)
        return f"{found.low:g} to {found.high:g}{', on a log scale' if found.log else ''}"


def propose_space(config: ExperimentConfig, kept: Kept, wanted: Sequence[str] = ()) -> list[Varied]:
    """Return the settings to vary for the configured model.

    Args:
        config: Configured settings.
        kept: Size of the prepared data.
        wanted: Names of the only settings to vary. If empty, all proposed settings are varied.

    Raises:
        ConfigError: The model has no setting to vary, or a wanted setting is not in the proposed
            space.
    """
    kind, model = config.model.kind, find_model(config.model.kind)
    section, sizes = SECTIONS.get(kind, "model.settings"), choose_sizes(kept, kept.num_interactions)
    of_model = _transitions() if kind == "transitions" else _model_settings(sizes, kept)
    settings = config.settings_of(kind)
    names = {f"{section}.{name}": propose for name, propose in of_model.items()}
    found = _vary(config, names, {name: getattr(settings, name, None) for name in of_model})
    if "tokenize" in model.needs:
        found += _vary_ids(config, sizes, kept)
    if not found:
        raise ConfigError(
            f"There is nothing to tune in the model {kind}: {_explain_nothing(kind, of_model)}"
        )
    known = [varied.name for varied in found]
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"--vary {name}: this setting is not tuned with this configuration.{hint} Choose "
                f"from {', '.join(known)}."
            )
    return [varied for varied in found if not wanted or varied.name in wanted]


def override(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """Return a configuration with some settings replaced.

    Args:
        config: Configuration to start from.
        values: New values by dotted name.

    Raises:
        ConfigError: The resulting settings are invalid.
    """
    merged = config.model_dump(exclude_unset=True)
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = merged
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return validate(type(config), merged, "the trial")


def as_setting(varied: Varied, choice: Choice) -> Any:
    """Return the value of a setting for a drawn choice.

    Floats are rounded to three significant digits, except the configured value. A text becomes
    the list of the names that it joins by commas.

    Args:
        varied: Setting that the choice was drawn for.
        choice: Value that was drawn from the setting's distribution.
    """
    if choice == varied.given and not isinstance(choice, str):
        return choice
    if isinstance(choice, float):
        return float(f"{choice:.3g}")
    return [part for part in choice.split(",") if part] if isinstance(choice, str) else choice


def _explain_nothing(kind: str, of_model: Mapping[str, Propose]) -> str:
    if kind == "popularity":
        return "it only counts and has no settings. Choose another model with model.kind=KIND."
    return f"it has none of the settings {', '.join(of_model)}."


def _vary(
    config: ExperimentConfig, names: Mapping[str, Propose], given: Mapping[str, Any]
) -> list[Varied]:
    """Return the settings in ``names`` that the configuration has, each with its valid choices."""
    found = []
    for name, propose in names.items():
        value = given[name.rpartition(".")[2]]
        value = ",".join(value) if isinstance(value, tuple) else value
        distribution = None if value is None else propose(value)
        if isinstance(distribution, CategoricalDistribution):
            distribution = _keep_valid(config, name, distribution, value)
        if distribution is not None and not distribution.single():
            found.append(Varied(name, distribution, value))
    return found


def _keep_valid(
    config: ExperimentConfig, name: str, distribution: CategoricalDistribution, given: Any
) -> CategoricalDistribution:
    """Return the choices that fit the other settings, such as heads that divide a dimension."""

    def is_valid(choice: Any) -> bool:
        varied = Varied(name, distribution, given)
        try:
            override(config, {name: as_setting(varied, choice)})
        except ConfigError:
            return False
        return True

    return CategoricalDistribution([c for c in distribution.choices if c == given or is_valid(c)])


def _model_settings(sizes: Sizes, kept: Kept) -> dict[str, Propose]:
    """Return the proposed ranges by setting name, which all models share."""
    longest = next((n for n in HISTORIES if n >= kept.long_history), HISTORIES[-1])
    return {
        "learning_rate": _factors(3e-4, 5e-3),
        "weight_decay": _factors(1e-3, 0.3),
        "dropout": _between(0.1, 0.6),
        "node_dropout": _between(0.0, 0.2),
        "label_smoothing": _choose(0.0, 0.05, 0.1),
        "model_dim": _choose(max(16, sizes.model_dim // 2), sizes.model_dim, 2 * sizes.model_dim),
        "num_layers": _whole(1, 3),
        "history_length": _choose(*(n for n in HISTORIES if n <= longest)),
        "batch_targets": _choose(
            sizes.batch_targets // 2, sizes.batch_targets, 2 * sizes.batch_targets
        ),
        "num_neighbours": _choose(*(n for n in (20, 50, 100, 200, 500) if n < kept.num_items)),
        "window": _choose(2, 5, 10, 20, 50),
        "shrinkage": _factors(1.0, 100.0),
        "discount": _between(0.5, 1.0),
    }


def _transitions() -> dict[str, Propose]:
    return {
        "neighbours": _choose("near", "near,next", "near,alike", "near,next,alike"),
        "history_length": _choose(1, 3, 5, 10),
    }


def _vary_ids(config: ExperimentConfig, sizes: Sizes, kept: Kept) -> list[Varied]:
    """Return the settings of semantic IDs to vary, or none if the IDs were published."""
    ids = config.tokenizer
    if ids.semantic_ids_path is not None:
        return []
    most = max(sizes.codebook_size, kept.num_items // 4)
    around = (sizes.codebook_size // 2, sizes.codebook_size, 2 * sizes.codebook_size)
    found = []
    if isinstance(ids.codebook_size, int):
        codes = _choose(*(size for size in around if 2 <= size <= most))
        found = _vary(config, {"tokenizer.codebook_size": codes}, ids.model_dump())
        levels = _choose(sizes.num_levels, 2, 3)
        found += _vary(config, {"tokenizer.num_levels": levels}, ids.model_dump())
    weights = {"features.cooccurrence_weight": _choose(0.25, 0.5, 1.0)}
    return found + _vary(config, weights, config.features.model_dump())


def _between(low: float, high: float) -> Propose:
    return lambda given: FloatDistribution(min(low, given), max(high, given))


def _factors(low: float, high: float) -> Propose:
    """Propose a logarithmic range, or a linear range from 0 if the configured value is 0."""
    return lambda given: (
        FloatDistribution(min(low, given), max(high, given), log=True)
        if given > 0
        else FloatDistribution(0.0, high)
    )


def _whole(low: int, high: int) -> Propose:
    return lambda given: IntDistribution(min(low, given), max(high, given))


def _choose(*choices: Choice) -> Propose:
    return lambda given: CategoricalDistribution(sorted({*choices, given}))
