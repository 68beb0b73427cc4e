"""Gradient estimators, which define the gradient that encoder and codes get through a quantizer.

The module contains the radius surrogate of GRIT-VQ and two published alternatives to compare it
with. All estimators take the same two tensors, so any of them can train a stack of codebooks.

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
    """A callable that combines latent vectors and their codes into the output of a quantizer."""

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """Return the output of the quantizer, with a gradient to latent vectors, codes or both.

        Args:
            latent: Vectors before quantization, ``[B, D]``.
            quantized: Their codes, ``[B, D]``.
            mean_gap: Running mean of the distance between a vector and its code, a scalar.
            training: Whether the quantizer is in training. Otherwise the output equals the codes.

        Returns:
            The output, ``[B, D]``.
        """
        ...


@dataclass(frozen=True)
class RadiusSurrogate:
    """The gradient estimator of GRIT-VQ, described in `recgrit.quantization.radius`.

    Args:
        radius: Family of radii.
        form: Form of the surrogate, ``additive`` or ``multiplicative``.
        direction_noise: Root mean square length of the noise on the direction in training,
            relative to the gap.
    """

    radius: Radius
    form: SurrogateForm = "additive"
    direction_noise: float = 0.0

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """Return the codes with the gradient that the radius splits."""
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
    """A gradient estimator that rotates the gradient from the code's direction to the vector's.

    The output is ``sg[‖q‖/‖z‖ R] z``, where ``sg`` stops the gradient and the rotation ``R`` maps
    the direction of ``z`` to that of ``q`` (arXiv 2410.06424, section 4.2). The encoder gets this
    gradient, and the codes get none.
    """

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """Return exactly the codes, with the rotated gradient to the latent vectors."""
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
    """A gradient estimator that moves a vector by its distance to its code, with a noisy direction.

    The output is ``z + ‖q - z‖ sg[v/‖v‖]`` with ``v = q - z + noise``, where ``sg`` stops the
    gradient (Differentiable Vector Quantization). In training, the output is therefore near the
    code but not equal to it.

    Args:
        noise_variance: Variance of each coordinate of the noise, in squared units of the data.
    """

    noise_variance: float = 5e-3

    def __call__(
        self, latent: Tensor, quantized: Tensor, *, mean_gap: Tensor, training: bool
    ) -> Tensor:
        """Return the vectors moved near their codes in training, and the codes otherwise."""
        if not training:
            return quantized
        difference = quantized - latent
        noise = self.noise_variance**0.5 * torch.randn_like(difference)
        direction = F.normalize((difference + noise).detach(), dim=-1)
        # The gradient of the square root is infinite at zero. The gap of a vector that equals its
        # code passes no gradient.
        gap = difference.square().sum(dim=-1, keepdim=True).clamp_min(MIN_GAP**2).sqrt()
        return latent + gap * direction
