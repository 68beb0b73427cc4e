"""What stands around the quantizer: nothing, or a small MLP encoder and decoder.

Quantizing the features themselves reconstructs better; behind a narrow autoencoder fewer items
collide. Features are centred first in both cases: a mean of many standard deviations would eat the
float32 digits that distances are made of.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recgrit.quantization.quantizer import Quantized, Quantizer


@dataclass(frozen=True)
class Tokenized:
    """A reconstruction and how it came about.

    Args:
        reconstruction: ``[B, F]``, in the units of the input.
        reconstruction_loss: Scalar, squared error of the scaled features, summed over dimensions,
            averaged over vectors.
        quantized: What the quantizer returned.
    """

    reconstruction: Tensor
    reconstruction_loss: Tensor
    quantized: Quantized


class QuantizedAutoencoder(nn.Module):
    """Centring, optional MLP encoder, residual quantizer, optional MLP decoder.

    Args:
        feature_dim: F, size of the item features.
        quantizer: Any quantizer; its ``dim`` is F without MLPs and the code dimension
            with them.
        hidden_dims: Layer widths of the encoder, mirrored in the decoder; None for no MLPs.
        code_dim: Size of the latent; needed with ``hidden_dims``.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        feature_dim: int,
        quantizer: Quantizer,
        *,
        hidden_dims: tuple[int, ...] | None = None,
        code_dim: int = 32,
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(()))
        if hidden_dims is None:
            self.encoder: nn.Module = nn.Identity()
            self.decoder: nn.Module = nn.Identity()
        else:
            widths = [feature_dim, *hidden_dims, code_dim]
            self.encoder = _build_mlp(widths)
            self.decoder = _build_mlp(widths[::-1])

    def fit_normalization_(self, features: Tensor) -> None:
        """Take the mean of the features, and one scale that gives them unit mean square norm."""
        self.mean.copy_(features.mean(dim=0))
        norm = (features - self.mean).square().sum(dim=-1).mean().sqrt()
        self.scale.copy_(norm.clamp_min(1e-12))

    def encode_latent(self, features: Tensor) -> Tensor:
        """Latents ``[B, D]`` of features ``[B, F]``."""
        latent: Tensor = self.encoder((features.float() - self.mean) / self.scale)
        return latent

    @torch.no_grad()
    def last_level(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the quantizer's last level is given for ``[B, F]``, and its codes ``[K, D]``."""
        return self.quantizer.last_level(self.encode_latent(features))

    def forward(self, features: Tensor) -> Tokenized:
        """Quantize and reconstruct ``[B, F]``."""
        quantized = self.quantizer(self.encode_latent(features))
        reconstruction = self.decoder(quantized.quantized)
        scaled = (features - self.mean) / self.scale
        error = (reconstruction - scaled).square().sum(dim=-1)
        return Tokenized(
            reconstruction=reconstruction * self.scale + self.mean,
            # Of no items it is 0: a rank may have none of a batch.
            reconstruction_loss=error.sum() / max(1, len(error)),
            quantized=quantized,
        )


def _build_mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
