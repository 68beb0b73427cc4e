"""The radius surrogate: how the gradient at a quantizer splits between encoder and codes.

Forward, a quantizer replaces a latent ``z`` by its code ``q``. That step has no useful gradient, so
one is supplied. The straight-through estimator hands the whole gradient to the encoder and leaves
the codes without any. GRIT-VQ (arXiv 2602.01140) moves along the direction ``s = (q - z) / δ`` by a
scalar radius ``ρ(δ)`` of the gap ``δ = ‖q - z‖``.

This is the *additive* form ``z + sg[q - z] + (ρ - sg[ρ]) sg[s]``, whose Jacobians are the ones the
paper states (its literal, multiplicative formula has the elasticity ``δρ'/ρ`` in place of ρ'):

    J_z = I - ρ'(δ) s sᵀ        J_q = ρ'(δ) s sᵀ        J_z + J_q = I

ρ' = 0 is the straight-through estimator; ρ' = 1 gives the codes the whole part along ``s``. Only ρ'
enters, so the radius itself is never computed. The backward pass is written in closed form: no
square root stands in the graph, and a gap of zero gives no NaN. It cannot be differentiated twice.

Shapes: B vectors, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Below this gap a direction is rounding noise; the encoder then gets the whole gradient.
MIN_GAP = 1e-12


class Radius(Protocol):
    """A family of radii ρ(δ), known by its slope."""

    def slope(self, gap: Tensor) -> Tensor:
        """ρ'(δ) for gaps ``[B, 1]``; the surrogate clamps it to [0, 1]."""
        ...


@dataclass(frozen=True)
class EuclideanRadius:
    """ρ(δ) = δ: the codes take the whole gradient along the gap, the encoder the rest."""

    def slope(self, gap: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(gap)


@dataclass(frozen=True)
class PowerRadius:
    """ρ(δ) = δ^α: for α > 1 far latents move the codes more, for α < 1 near ones do."""

    alpha: float = 1.5

    def slope(self, gap: Tensor) -> Tensor:
        """α δ^(α - 1)."""
        return self.alpha * gap.clamp_min(MIN_GAP).pow(self.alpha - 1)


@dataclass(frozen=True)
class StraightThrough:
    """ρ' = 0: the codes get nothing and move only when revived. For ablations."""

    def slope(self, gap: Tensor) -> Tensor:
        """0 everywhere."""
        return torch.zeros_like(gap)


class _RadiusSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, quantized: Tensor, radius: Radius) -> Tensor:
        gap_vector = quantized.detach().float() - latent.detach().float()
        gap = gap_vector.norm(dim=-1, keepdim=True)
        direction = gap_vector / gap.clamp_min(MIN_GAP)
        ctx.save_for_backward(direction, radius.slope(gap).clamp(0.0, 1.0))
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        direction, slope = ctx.saved_tensors
        along = (grad.float() * direction).sum(dim=-1, keepdim=True) * slope * direction
        return (grad - along).to(grad.dtype), along.to(grad.dtype), None


def surrogate_radius(latent: Tensor, quantized: Tensor, radius: Radius) -> Tensor:
    """``quantized`` in the forward pass; the split gradient of the module's header backward.

    Args:
        latent: ``[..., D]``, what was quantized.
        quantized: ``[..., D]``, its code (for a residual stack: the sum over all levels, so that
            the encoder's gradient does not grow with the number of levels).
        radius: The family of radii.
    """
    result: Tensor = _RadiusSurrogate.apply(latent, quantized, radius)  # type: ignore[no-untyped-call]
    return result


RADII: dict[str, type[EuclideanRadius | PowerRadius | StraightThrough]] = {
    "euclidean": EuclideanRadius,
    "power": PowerRadius,
    "straight_through": StraightThrough,
}
