"""The radius surrogate: how the gradient at a quantizer splits between encoder and codes.

Forward, a quantizer replaces a latent ``z`` by its code ``q``. That step has no useful gradient, so
one is supplied. The straight-through estimator hands the whole gradient to the encoder and leaves
the codes without any. GRIT-VQ (arXiv 2602.01140) moves along the direction ``s = (q - z) / δ`` by a
scalar radius ``ρ(δ)`` of the gap ``δ = ‖q - z‖``. There are two ways to write that down:

**Additive**, ``z + sg[q - z] + (ρ - sg[ρ]) sg[s]``, has the Jacobians the paper states and is the
default:

    J_z = I - ρ'(δ) s sᵀ        J_q = ρ'(δ) s sᵀ        ρ' clamped to [0, 1]

**Multiplicative**, ``z + ρ sg[(q - z) / ρ]``, is the paper's formula to the letter. Differentiated,
it has the elasticity ``ε = δ ρ'/ρ`` in the place of ρ':

    J_z = I - ε(δ) s sᵀ         J_q = ε(δ) s sᵀ         ε clamped to [0, 2]

Both agree for the Euclidean radius. Elsewhere they differ much: a Huber radius has ε in (1, 2],
which flips the encoder's gradient along ``s``; a power radius has ε = α at every gap. Above 2 the
map expands, hence the clamp.

In both, ``J_z + J_q = I``: the radius *splits* the gradient. ρ' = 0 is the straight-through
estimator; ρ' = 1 gives the codes the whole part along ``s``. The backward pass is written in closed
form: no square root stands in the graph, a gap of zero gives no NaN, and only ``s`` and one number
per vector are kept for it. Differentiated twice, ``s`` and ρ' are constants, as the formulas say.

Shapes: B vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# Below this gap a direction is rounding noise; the encoder then gets the whole gradient.
MIN_GAP = 1e-12

SurrogateForm = Literal["additive", "multiplicative"]


class Radius(Protocol):
    """A family of radii ρ(δ). ``mean_gap`` is the quantizer's running mean of δ, a scalar.

    Thresholds are multiples of that mean, so that a family means the same whatever the unit of the
    data and however far training has come.
    """

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """ρ(δ) for gaps ``[B, 1]``."""
        ...

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """ρ'(δ) for gaps ``[B, 1]``."""
        ...


@dataclass(frozen=True)
class EuclideanRadius:
    """ρ(δ) = δ: the codes take the whole gradient along the gap, the encoder the rest."""

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """δ."""
        return gap

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(gap)


@dataclass(frozen=True)
class PowerRadius:
    """ρ(δ) = δ^α: for α > 1 far latents move the codes more, for α < 1 near ones do.

    The slope depends on the unit of the data, and reaches its clamp at 1 soon on either side.
    """

    alpha: float = 1.5

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """δ^α."""
        return gap.pow(self.alpha)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """α δ^(α - 1)."""
        return self.alpha * gap.clamp_min(MIN_GAP).pow(self.alpha - 1)


@dataclass(frozen=True)
class HuberRadius:
    """ρ(δ) = δ²/2τ up to τ, then δ - τ/2: near latents leave their code in peace.

    Args:
        threshold: τ in mean gaps.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """δ²/2τ or δ - τ/2."""
        tau = self.threshold * mean_gap
        return torch.where(gap <= tau, gap.square() / (2 * tau), gap - tau / 2)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """min(δ/τ, 1)."""
        return (gap / (self.threshold * mean_gap)).clamp_max(1.0)


@dataclass(frozen=True)
class PseudoHuberRadius:
    """ρ(δ) = τ(√(1 + (δ/τ)²) - 1): Huber's without a corner.

    Args:
        threshold: τ in mean gaps.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """τ(√(1 + (δ/τ)²) - 1), written so that small gaps keep their digits."""
        tau = self.threshold * mean_gap
        ratio = (gap / tau).square()
        return tau * ratio / ((1 + ratio).sqrt() + 1)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """(δ/τ) / √(1 + (δ/τ)²)."""
        ratio = gap / (self.threshold * mean_gap)
        return ratio / (1 + ratio.square()).sqrt()


@dataclass(frozen=True)
class ClippedRadius:
    """ρ(δ) = min(δ, τ): latents too far away move their code no more.

    Args:
        threshold: τ in mean gaps.
    """

    threshold: float = 2.0

    def __post_init__(self) -> None:
        _check_positive("threshold", self.threshold)

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """min(δ, τ)."""
        return torch.minimum(gap, self.threshold * mean_gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """1 up to τ, then 0."""
        return (gap <= self.threshold * mean_gap).to(gap.dtype)


@dataclass(frozen=True)
class StraightThrough:
    """ρ' = 0: the codes get nothing; a codebook loss or moving averages have to train them."""

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """1, a constant."""
        return torch.ones_like(gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """0 everywhere."""
        return torch.zeros_like(gap)


@dataclass(frozen=True)
class CustomRadius:
    """A radius of your own, by its formula and its derivative.

    Args:
        rho: ρ(δ), elementwise.
        rho_prime: ρ'(δ), elementwise; only the multiplicative surrogate asks for ``rho`` too.

    Example:
        >>> logarithmic = CustomRadius(lambda gap: gap.log1p(), lambda gap: 1 / (1 + gap))
        >>> logarithmic.slope(torch.tensor([[1.0]]), torch.tensor(1.0)).item()
        0.5
    """

    rho: Callable[[Tensor], Tensor]
    rho_prime: Callable[[Tensor], Tensor]

    def value(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """ρ(δ)."""
        return self.rho(gap)

    def slope(self, gap: Tensor, mean_gap: Tensor) -> Tensor:
        """ρ'(δ)."""
        return self.rho_prime(gap)


class _RadiusSurrogate(torch.autograd.Function):
    # Per-sample gradients: torch.func.vmap goes through forward and backward as they are.
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
    """``quantized`` in the forward pass; the split gradient of the module's header backward.

    Args:
        latent: ``[..., D]``, what was quantized.
        quantized: ``[..., D]``, its code (for a residual stack: the sum over all levels, so that
            the encoder's gradient does not grow with the number of levels).
        radius: The family of radii.
        mean_gap: Scalar that thresholds are relative to; the batch's own mean gap if None.
        form: ``additive`` or ``multiplicative``.
        direction_noise: Standard deviation of noise on the direction ``s`` of the backward pass,
            relative to the gap. Ours: latents then pull their code around it, not only towards
            them.
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
