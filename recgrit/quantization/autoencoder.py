"""Modules that encode features before quantization and decode them after it.

An autoencoder without MLPs quantizes the features themselves, which gives a lower reconstruction
error. A narrow MLP autoencoder gives fewer collisions of IDs. Features are centred first in both
cases, because a mean of many standard deviations would cost the distances most of their float32
digits.

Shapes: B vectors, N items, F dimensions of the features, D dimensions of the latent vectors.
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
    """Output of a `QuantizedAutoencoder`: a reconstruction, its error and the quantized vectors.

    Args:
        reconstruction: Reconstructed features in the units of the input, ``[B, F]``.
        reconstruction_loss: Squared error of the scaled features, summed over dimensions and
            averaged over vectors; a scalar.
        quantized: Output of the quantizer.
    """

    reconstruction: Tensor
    reconstruction_loss: Tensor
    quantized: Quantized


class QuantizedAutoencoder(nn.Module):
    """A quantizer with centring and scaling of its input, and an optional MLP encoder and decoder.

    Args:
        feature_dim: Number of dimensions F of the item features.
        quantizer: The quantizer of the latent vectors. Its ``dim`` is F without MLPs or with
            ``residual``, and ``code_dim`` otherwise.
        hidden_dims: Layer widths of the encoder. The decoder has them in reverse order. None builds
            no MLPs, so that the features themselves are quantized.
        code_dim: Number of dimensions of the latent vectors, used with ``hidden_dims`` only. With
            ``residual`` it must be F.
        residual: Whether each MLP is added to its input instead of replacing it. The added part is
            0 at the start.
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
        """Set the mean of the features, and one scale that gives them a mean square norm of 1.

        Args:
            features: Item features, ``[N, F]``.
        """
        fit_scale_(self.mean, self.scale, features)

    def encode_latent(self, features: Tensor) -> Tensor:
        """Return the latent vectors ``[B, D]`` of features ``[B, F]``."""
        latent: Tensor = self.encoder((features.float() - self.mean) / self.scale)
        return latent

    def forward(self, features: Tensor) -> Tokenized:
        """Encode, quantize and reconstruct features ``[B, F]``."""
        quantized = self.quantizer(self.encode_latent(features))
        reconstruction = self.decoder(quantized.quantized)
        scaled = (features - self.mean) / self.scale
        error = (reconstruction - scaled).square().sum(dim=-1)
        return Tokenized(
            reconstruction=reconstruction * self.scale + self.mean,
            # The loss of no items is 0. A process may have no items of a batch.
            reconstruction_loss=error.sum() / max(1, len(error)),
            quantized=quantized,
        )


class FeatureEncoder(nn.Module):
    """The sum of a linear map and a small MLP, from features ``[..., F]`` to vectors ``[..., D]``.

    Args:
        feature_dim: Number of dimensions F of the features.
        dim: Number of dimensions D of the output vectors.
        hidden_dim: Width of the hidden layer of the MLP. At the start, the output of the MLP is
            about two thirds as large as that of the linear map.
        std: Standard deviation of each dimension of the linear map's output at the start.
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
        """Set the mean of the features, and one scale that gives them a mean square norm of 1.

        Args:
            features: Item features, ``[N, F]``.
        """
        fit_scale_(self.mean, self.scale, features)

    def forward(self, features: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of features ``[..., F]``."""
        scaled = (features.float() - self.mean) / self.scale
        vectors: Tensor = self.linear(scaled) + self.output(F.gelu(self.hidden(scaled)))
        return vectors


class LearnedTokenizer(nn.Module):
    """A tokenizer of item vectors that were learned from histories.

    An item in the training histories has a learned latent vector, which is stored in a file. An
    item that is added later has no learned vector, so the encoder computes its latent vector from
    its features.

    Args:
        feature_dim: Number of dimensions F of the item features.
        quantizer: The quantizer of the latent vectors, which have D dimensions.
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
        """Return the latent vectors ``[B, D]`` of features ``[B, F]``."""
        latent: Tensor = (self.encoder(features) - self.center) / self.scale
        return latent


# A module that gives features their codes. Both classes have ``quantizer`` and ``encode_latent``.
Tokenizer = QuantizedAutoencoder | LearnedTokenizer


def fit_scale_(mean: Tensor, scale: Tensor, features: Tensor) -> None:
    """Set a mean, and one scale that gives features a mean square norm of 1.

    Args:
        mean: Tensor ``[F]`` that receives the mean of the features.
        scale: Scalar tensor that receives the scale.
        features: Item features, ``[N, F]``.
    """
    mean.copy_(features.mean(dim=0))
    norm = (features - mean).square().sum(dim=-1).mean().sqrt()
    scale.copy_(norm.clamp_min(1e-12))


class _Residual(nn.Module):
    """An MLP that is added to its input, with a learned weight that is 0 at the start."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Add the weighted output of the MLP to ``x``; ``[B, F]`` gives ``[B, F]``."""
        added: Tensor = x + self.weight * self.mlp(x)
        return added


def _build_mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
