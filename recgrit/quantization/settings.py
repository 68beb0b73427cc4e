"""Settings of a stack of codebooks: which are valid, and the gradient estimator that they name."""

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
# Smallest and largest values of numbers; None for no largest.
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
    """The estimator that settings name.

    Raises:
        QuantizerError: The radius or the surrogate has no such name.
    """
    if isinstance(radius, str):
        if radius not in RADII:
            raise QuantizerError(f"Unknown radius {radius!r}: choose from {', '.join(RADII)}.")
        radius = RADII[radius]()
    if not isinstance(surrogate, str):
        return surrogate
    if surrogate not in get_args(SurrogateForm):
        raise QuantizerError(f"Unknown surrogate {surrogate!r}: additive or multiplicative.")
    return RadiusSurrogate(radius, surrogate, direction_noise)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that name nothing or lie out of range.

    Raises:
        QuantizerError: One does.
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
    """Say so where neither the estimator nor a loss trains the codes."""
    plain = isinstance(estimator, RadiusSurrogate) and isinstance(estimator.radius, StraightThrough)
    if plain or isinstance(estimator, RotationTrick):
        logger.warning(
            "Nothing trains the codes: with this surrogate they get no gradient. Set "
            "codebook_weight=1.0, or codebook_learning='ema' with transform_rank=0."
        )
