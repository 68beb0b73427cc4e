"""GRIT-VQ: residual vector quantization with a radius surrogate and an integrated transform.

A model of your own needs only ``from recgrit.quantization import GRITVQ, ResidualGRITVQ``. torch is
imported when one of these names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recgrit.quantization.baselines import build_quantizer
    from recgrit.quantization.grit import GRITVQ
    from recgrit.quantization.residual import ResidualGRITVQ

__all__ = ["GRITVQ", "ResidualGRITVQ", "build_quantizer"]


def __getattr__(name: str) -> Any:
    if name == "GRITVQ":
        from recgrit.quantization.grit import GRITVQ

        return GRITVQ
    if name == "ResidualGRITVQ":
        from recgrit.quantization.residual import ResidualGRITVQ

        return ResidualGRITVQ
    if name == "build_quantizer":
        from recgrit.quantization.baselines import build_quantizer

        return build_quantizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
