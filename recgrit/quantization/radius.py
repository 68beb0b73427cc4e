"""The radius surrogate, which splits the gradient at a quantizer between encoder and codes.

In the forward pass, a quantizer replaces a latent vector ``z`` by its code ``q``. This step has no
useful gradient, so a surrogate supplies one. The straight-through estimator gives the whole
gradient to the encoder and none to the codes. GRIT-VQ (arXiv 2602.01140) describes the step from
``z`` to ``q`` by a direction ``s = (q - z) / δ`` and a scalar radius ``ρ(δ)`` of the gap
``δ = ‖q - z‖``. This can be written in two forms, where ``sg`` stops the gradient.

The **additive** form, ``z + sg[q - z] + (ρ - sg[ρ]) sg[s]``, has the Jacobians that the paper
states. It is the default:

    J_z = I - ρ'(δ) s sᵀ        J_q = ρ'(δ) s sᵀ        ρ' clamped to [0, 1]

The **multiplicative** form, ``z + ρ sg[(q - z) / ρ]``, is the paper's formula taken literally. Its
derivative has the elasticity ``ε = δ ρ'/ρ`` in place of ρ':

    J_z = I - ε(δ) s sᵀ         J_q = ε(δ) s sᵀ         ε clamped to [0, 2]

Both forms agree for the Euclidean radius. They differ much for other radii: a Huber radius has ε in
(1, 2], which reverses the encoder's gradient along ``s``; a power radius has ε = α at every gap. ε
is clamped because the map expands above 2.

In both forms ``J_z + J_q = I``: the radius *splits* the gradient. ρ' = 0 is the straight-through
estimator. ρ' = 1 gives the codes the whole part of the gradient along ``s``. The backward pass is
computed in closed form. It contains no square root, and a gap of zero gives no NaN. It stores only
``s`` and one number per vector. In second derivatives, ``s`` and ρ' are constants, as the formulas
say.

Shapes: B vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# Below this gap the direction is rounding noise. The encoder then gets the whole gradient.
MIN_GAP = 1e-12

SurrogateForm = Literal["additive", "multiplicative"]


class Radius(Protocol):
    """A family of radii ρ(δ), where the gap δ is the distance between a vector and its code.

    A radius splits the gradient at a quantizer. In the additive surrogate, the slope ρ'(δ) is the
    share of the gradient along the gap that the code gets; the encoder gets the rest.

    Thresholds of a family are multiples of ``mean_gap``, the quantizer's running mean of δ, a
    scalar. A threshold therefore has the same effect for every scale of the data and at every time
    in training.
    """

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) of each gap δ, ``[B, 1]``."""
        ...

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) of the radius at each gap δ, ``[B, 1]``."""
        ...


@dataclass(frozen=True)
class EuclideanRadius:
    """The radius ρ(δ) = δ of the gap δ between a vector and its code.

    The code gets the whole gradient along the gap, and the encoder gets the rest.
    """

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) = δ of each gap δ, ``[B, 1]``."""
        return gap

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) = 1 at each gap δ, ``[B, 1]``."""
        return torch.ones_like(gap)


@dataclass(frozen=True)
class PowerRadius:
    """The radius ρ(δ) = δ^α of the gap δ between a vector and its code.

    For α > 1, vectors far from their code move it more than near vectors do. For α < 1, near
    vectors move it more. The slope depends on the unit of the data. It soon reaches its upper bound
    1: at large gaps for α > 1, and at small gaps for α < 1.

    Args:
        alpha: Exponent α, above 0.
    """

    alpha: float = 1.5

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) = δ^α of each gap δ, ``[B, 1]``."""
        return gap.pow(self.alpha)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) = α δ^(α - 1) at each gap δ, ``[B, 1]``."""
        return self.alpha * gap.clamp_min(MIN_GAP).pow(self.alpha - 1)


@dataclass(frozen=True)
class HuberRadius:
    """The radius δ²/2τ of a gap δ up to the threshold τ, and δ - τ/2 of a larger gap.

    The gap δ is the distance between a vector and its code. Vectors near their code move it only a
    little.

    Args:
        threshold: Threshold τ as a multiple of the mean gap.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius of each gap δ, ``[B, 1]``: δ²/2τ up to τ, and δ - τ/2 above it."""
        tau = self.threshold * mean_gap
        return torch.where(gap <= tau, gap.square() / (2 * tau), gap - tau / 2)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) = min(δ/τ, 1) at each gap δ, ``[B, 1]``."""
        return (gap / (self.threshold * mean_gap)).clamp_max(1.0)


@dataclass(frozen=True)
class PseudoHuberRadius:
    """The radius ρ(δ) = τ(√(1 + (δ/τ)²) - 1), a smooth version of the Huber radius.

    The gap δ is the distance between a vector and its code. Vectors near their code move it only a
    little.

    Args:
        threshold: Scale τ as a multiple of the mean gap.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) = τ(√(1 + (δ/τ)²) - 1) of each gap δ, ``[B, 1]``.

        The formula in the code is an equal one that is exact for small gaps.
        """
        tau = self.threshold * mean_gap
        ratio = (gap / tau).square()
        return tau * ratio / ((1 + ratio).sqrt() + 1)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) = (δ/τ) / √(1 + (δ/τ)²) at each gap δ, ``[B, 1]``."""
        ratio = gap / (self.threshold * mean_gap)
        return ratio / (1 + ratio.square()).sqrt()


@dataclass(frozen=True)
class ClippedRadius:
    """The radius ρ(δ) = min(δ, τ) of the gap δ between a vector and its code.

    Vectors farther from their code than the threshold τ do not move it.

    Args:
        threshold: Threshold τ as a multiple of the mean gap.
    """

    threshold: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) = min(δ, τ) of each gap δ, ``[B, 1]``."""
        return torch.minimum(gap, self.threshold * mean_gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative at each gap ``[B, 1]``: 1 up to the threshold, and 0 above it."""
        return (gap <= self.threshold * mean_gap).to(gap.dtype)


@dataclass(frozen=True)
class StraightThrough:
    """The constant radius ρ(δ) = 1, which makes the surrogate the straight-through estimator.

    The codes get no gradient from the surrogate. A codebook loss or moving averages have to train
    them.
    """

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the radius ρ(δ) = 1 of each gap δ, ``[B, 1]``."""
        return torch.ones_like(gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return the derivative ρ'(δ) = 0 at each gap δ, ``[B, 1]``."""
        return torch.zeros_like(gap)


@dataclass(frozen=True)
class CustomRadius:
    """A radius of your own, given by its formula and its derivative.

    Args:
        rho: Elementwise function ρ(δ) of the gap δ between a vector and its code. Only the
            multiplicative surrogate uses it.
        rho_prime: Elementwise function ρ'(δ), the derivative of ρ.

    Example:
        >>> logarithmic = CustomRadius(lambda gap: gap.log1p(), lambda gap: 1 / (1 + gap))
        >>> logarithmic.slope(torch.tensor([[1.0]]), torch.tensor(1.0)).item()
        0.5
    """

    rho: Callable[[Tensor], Tensor]
    rho_prime: Callable[[Tensor], Tensor]

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return ``rho`` of each gap, ``[B, 1]``."""
        return self.rho(gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """Return ``rho_prime`` of each gap, ``[B, 1]``."""
        return self.rho_prime(gap)


class _RadiusSurrogate(torch.autograd.Function):
    # torch.func.vmap can map forward and backward as they are, which gives gradients per sample.
    generate_vmap_rule = True

    @staticmethod
    def forward(
        latent: Tensor,
        quantized: Tensor,
        radius: Radius,
        mean_gap: Tensor | None,
        form: SurrogateForm,
        direction_noise: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        difference = quantized.detach().float() - latent.detach().float()
        gap = difference.norm(dim=-1, keepdim=True)
        typical = (gap.mean() if mean_gap is None else mean_gap).clamp_min(MIN_GAP)
        slope = radius.slope(gap, typical)
        if form == "multiplicative":
            elasticity = slope * gap / radius.value(gap, typical).clamp_min(MIN_GAP**2)
            slope = elasticity.clamp(0.0, 2.0)
        else:
            slope = slope.clamp(0.0, 1.0)
        if direction_noise > 0:
            spread = direction_noise * gap / difference.shape[-1] ** 0.5
            difference = difference + spread * torch.randn_like(difference)
            direction = difference / difference.norm(dim=-1, keepdim=True).clamp_min(MIN_GAP)
        else:
            direction = difference / gap.clamp_min(MIN_GAP)
        return quantized.clone(), direction, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, direction, slope = output
        ctx.mark_non_differentiable(direction, slope)
        ctx.save_for_backward(direction, slope)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return (None,) * 6
        direction, slope = ctx.saved_tensors
        along = (grad.float() * direction).sum(dim=-1, keepdim=True) * slope * direction
        return (grad - along).to(grad.dtype), along.to(grad.dtype), None, None, None, None


def surrogate_radius(
    latent: Tensor,
    quantized: Tensor,
    radius: Radius,
    *,
    mean_gap: Tensor | None = None,
    form: SurrogateForm = "additive",
    direction_noise: float = 0.0,
) -> Tensor:
    """Return ``quantized`` with a gradient that is split between ``latent`` and ``quantized``.

    The formulas of the split are in the description of this module.

    Args:
        latent: Vectors before quantization, ``[..., D]``.
        quantized: Their codes, ``[..., D]``. For a residual stack, pass the sum of all levels, so
            that the encoder's gradient does not grow with the number of levels.
        radius: Family of radii.
        mean_gap: Scalar that the thresholds of the radius are multiples of. None uses the mean gap
            of this batch.
        form: Form of the surrogate, ``additive`` or ``multiplicative``.
        direction_noise: Root mean square length of the random vector that is added to ``q - z``
            before the direction ``s`` of the backward pass is computed, relative to the gap. With
            noise, vectors also move their code sideways and not only towards them. The noise is an
            addition to the published method.
    """
    outputs: tuple[Tensor, ...] = _RadiusSurrogate.apply(  # type: ignore[no-untyped-call]
        latent, quantized, radius, mean_gap, form, direction_noise
    )
    return outputs[0]


RADII: dict[str, type[Radius]] = {
    "euclidean": EuclideanRadius,
    "power": PowerRadius,
    "huber": HuberRadius,
    "pseudo_huber": PseudoHuberRadius,
    "clipped": ClippedRadius,
    "straight_through": StraightThrough,
}


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")
