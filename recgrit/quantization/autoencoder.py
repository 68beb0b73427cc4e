"""What stands around the quantizer: nothing, or a small MLP encoder and decoder.

Quantizing the features themselves reconstructs better; behind a narrow autoencoder fewer items
collide. Features are centred first in both cases: a mean of many standard deviations would eat the
float32 digits that distances are made of.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        residual: Add each MLP, which starts at 0, to its input; the latent has F dimensions then.
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
        residual: bool = False,
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
            if residual:
                self.encoder, self.decoder = _Residual(self.encoder), _Residual(self.decoder)

    def fit_normalization_(self, features: Tensor) -> None:
        """Take the mean of the features, and one scale that gives them unit mean square norm."""
        fit_scale_(self.mean, self.scale, features)

    def encode_latent(self, features: Tensor) -> Tensor:
        """Latents ``[B, D]`` of features ``[B, F]``."""
        latent: Tensor = self.encoder((features.float() - self.mean) / self.scale)
        return latent

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


class FeatureEncoder(nn.Module):
    """A linear map plus a small MLP, from features ``[..., F]`` to vectors ``[..., D]``.

    Args:
        feature_dim: F.
        dim: D.
        hidden_dim: Width of the MLP, which starts small beside the linear map.
        std: Of each dimension of the linear map's output at the start.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, feature_dim: int, dim: int, *, hidden_dim: int = 256, std: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(()))
        self.linear = nn.Linear(feature_dim, dim, bias=False)
        self.hidden = nn.Linear(feature_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, dim)
        nn.init.normal_(self.linear.weight, std=std)
        nn.init.normal_(self.hidden.weight)
        nn.init.normal_(self.output.weight, std=std / hidden_dim**0.5)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.output.bias)

    def fit_scale_(self, features: Tensor) -> None:
        """Take the mean of the features, and one scale that gives them unit mean square norm."""
        fit_scale_(self.mean, self.scale, features)

    def forward(self, features: Tensor) -> Tensor:
        """Vectors of features."""
        scaled = (features.float() - self.mean) / self.scale
        vectors: Tensor = self.linear(scaled) + self.output(F.gelu(self.hidden(scaled)))
        return vectors


class LearnedTokenizer(nn.Module):
    """A tokenizer of item vectors that were learned from sequences.

    Items that stand in training histories have latents of their own, which lie in a file; those
    that come later have what the encoder makes of their features.

    Args:
        feature_dim: F.
        quantizer: Of latents of D dimensions.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, feature_dim: int, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.encoder = FeatureEncoder(feature_dim, quantizer.dim)
        self.register_buffer("center", torch.zeros(quantizer.dim))
        self.register_buffer("scale", torch.ones(()))

    def encode_latent(self, features: Tensor) -> Tensor:
        """Latents ``[B, D]`` of features ``[B, F]``."""
        latent: Tensor = (self.encoder(features) - self.center) / self.scale
        return latent


# What gives features their codes: both have a ``quantizer`` and ``encode_latent``.
Tokenizer = QuantizedAutoencoder | LearnedTokenizer


def fit_scale_(mean: Tensor, scale: Tensor, features: Tensor) -> None:
    """Set a mean ``[F]``, and the scale that gives features ``[N, F]`` unit mean square norm."""
    mean.copy_(features.mean(dim=0))
    norm = (features - mean).square().sum(dim=-1).mean().sqrt()
    scale.copy_(norm.clamp_min(1e-12))


class _Residual(nn.Module):
    """An MLP added to its input, of which nothing is added at the start."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, F]`` -> ``[B, F]``."""
        added: Tensor = x + self.weight * self.mlp(x)
        return added


def _build_mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
