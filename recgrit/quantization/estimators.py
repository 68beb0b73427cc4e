"""Gradient estimators: what a quantizer's output passes back to encoder and codes.

GRIT-VQ's radius surrogate, and two published alternatives to compare it with. All take the same two
tensors, so that a stack of codebooks can be trained by any of them.

Shapes: B vectors, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.quantization.radius import MIN_GAP, Radius, SurrogateForm, surrogate_radius


class GradientEstimator(Protocol):
    """Turns latents and their codes into the quantizer's output."""

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """Output ``[B, D]`` for latents and codes ``[B, D]``; equal to the codes in eval mode."""
        ...


@dataclass(frozen=True)
class RadiusSurrogate:
    """GRIT-VQ's estimator, see `recgrit.quantization.radius`.

    Args:
        radius: The family of radii.
        form: ``additive`` or ``multiplicative``.
        direction_noise: Relative noise on the direction in training.
    """

    radius: Radius
    form: SurrogateForm = "additive"
    direction_noise: float = 0.0

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """The codes, with the split gradient."""
        return surrogate_radius(
            latent,
            quantized,
            self.radius,
            mean_gap=mean_gap,
            form=self.form,
            direction_noise=self.direction_noise if training else 0.0,
        )


@dataclass(frozen=True)
class RotationTrick:
    """The encoder's gradient turned from the code's direction to the latent's.

    ``q̃ = sg[‖q‖/‖z‖ R] z`` with the rotation ``R`` that takes the direction of ``z`` to that of
    ``q`` (arXiv 2410.06424, section 4.2). The codes get nothing.
    """

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """The codes, to the bit, with the rotated gradient."""
        source = latent.detach()
        target = quantized.detach()
        unit_source = F.normalize(source, dim=-1)
        unit_target = F.normalize(target, dim=-1)
        middle = F.normalize(unit_source + unit_target, dim=-1)
        scale = target.norm(dim=-1, keepdim=True) / source.norm(dim=-1, keepdim=True).clamp_min(
            MIN_GAP
        )
        rotated = scale * (
            latent
            - 2 * (latent * middle).sum(dim=-1, keepdim=True) * middle
            + 2 * (latent * unit_source).sum(dim=-1, keepdim=True) * unit_target
        )
        turned: Tensor = target + (rotated - rotated.detach())
        return turned


@dataclass(frozen=True)
class DiVeQ:
    """The latent moved to its code's distance in a slightly noisy direction.

    ``z + ‖q - z‖ sg[v/‖v‖]`` with ``v = q - z + noise`` (Differentiable Vector Quantization). In
    training the output is near the code, not the code.

    Args:
        noise_variance: Of each coordinate of the noise, in the unit of the data.
    """

    noise_variance: float = 5e-3

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """The noisy step in training, the codes in eval mode."""
        if not training:
            return quantized
        difference = quantized - latent
        noise = self.noise_variance**0.5 * torch.randn_like(difference)
        direction = F.normalize((difference + noise).detach(), dim=-1)
        # The square root's gradient at zero is infinite; a latent on its code has none to give.
        gap = difference.square().sum(dim=-1, keepdim=True).clamp_min(MIN_GAP**2).sqrt()
        return latent + gap * direction
