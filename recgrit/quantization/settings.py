"""Checks of a quantizer's settings, and the gradient estimator that the settings name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, get_args

from recgrit.quantization.codebook import CodebookLearning, Normalization
from recgrit.quantization.estimators import (
    GradientEstimator,
    RadiusSurrogate,
    RotationTrick,
)
from recgrit.quantization.quantizer import QuantizerError
from recgrit.quantization.radius import RADII, Radius, StraightThrough, SurrogateForm
from recgrit.quantization.transform import TransformKind

logger = logging.getLogger(__name__)

_CHOICES = {
    "codebook_learning": get_args(CodebookLearning),
    "normalization": get_args(Normalization),
    "transform": get_args(TransformKind),
}
# Smallest and largest allowed value of each number. None means that there is no largest value.
_RANGES: dict[str, tuple[float, float | None]] = {
    "direction_noise": (0, None),
    "transform_rank": (0, None),
    "normalized_from": (0, None),
    "level_dropout": (0, 1),
    "temperature": (0, None),
    "commitment_weight": (0, None),
    "codebook_weight": (0, None),
    "usage_weight": (0, None),
    "ema_decay": (0, 1),
    "reset_interval": (1, None),
    "dead_below": (0, None),
    "cache_interval": (1, None),
}


def build_estimator(
    radius: str | Radius, surrogate: SurrogateForm | GradientEstimator, direction_noise: float
) -> GradientEstimator:
    """Return the gradient estimator that the settings of a quantizer name.

    Args:
        radius: Name of a radius family, or a `Radius`.
        surrogate: Form of the radius surrogate. A `GradientEstimator` is returned as it is; the two
            other arguments then have no effect.
        direction_noise: Relative noise on the direction of the surrogate in training.

    Raises:
        QuantizerError: No radius or no surrogate has the given name.
    """
    if isinstance(radius, str):
        if radius not in RADII:
            raise QuantizerError(f"Unknown radius {radius!r}: choose from {', '.join(RADII)}.")
        radius = RADII[radius]()
    if not isinstance(surrogate, str):
        return surrogate
    if surrogate not in get_args(SurrogateForm):
        raise QuantizerError(f"Unknown surrogate {surrogate!r}: choose additive or multiplicative.")
    return RadiusSurrogate(radius, surrogate, direction_noise)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise an error if a setting of `ResidualGRITVQ` has an unknown name or is out of range.

    Args:
        settings: Settings of `ResidualGRITVQ` by name.

    Raises:
        QuantizerError: A choice is unknown, or a number is out of range.
    """
    for name, choices in _CHOICES.items():
        if settings[name] not in choices:
            raise QuantizerError(
                f"Unknown {name} {settings[name]!r}: choose from {', '.join(choices)}."
            )
    for name, (low, high) in _RANGES.items():
        value = settings[name]
        if value is not None and not (low <= value and (high is None or value <= high)):
            upto = "" if high is None else f" and at most {high}"
            raise QuantizerError(f"{name} must be at least {low}{upto}, got {value}.")


def warn_of_codes_without_gradient(estimator: GradientEstimator) -> None:
    """Log a warning if the estimator gives the codes no gradient.

    Args:
        estimator: The gradient estimator of a quantizer whose losses do not train the codes either.
    """
    plain = isinstance(estimator, RadiusSurrogate) and isinstance(estimator.radius, StraightThrough)
    if plain or isinstance(estimator, RotationTrick):
        logger.warning(
            "Nothing trains the codes: with this surrogate they get no gradient. Set "
            "codebook_weight=1.0, or codebook_learning='ema' with transform_rank=0."
        )
