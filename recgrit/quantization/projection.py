"""Learned linear maps between vectors and codes of fewer dimensions.

Shapes: N vectors, K codes, D dimensions of the vectors, C dimensions of the codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.quantization.quantizer import full_precision
from recgrit.quantization.transform import snapshot


class Projection(nn.Module):
    """Linear maps from vectors ``[..., D]`` to ``[..., C]`` and back, computed in float32.

    Args:
        dim: Number of dimensions D of the vectors.
        code_dim: Number of dimensions C of the codes.
    """

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, code_dim)
        self.out = nn.Linear(code_dim, dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """Project vectors ``[..., D]`` to the dimensions of the codes, ``[..., C]``."""
        weight, bias = snapshot(self.into.weight), snapshot(self.into.bias)
        with full_precision(vectors):
            return F.linear(vectors.float(), weight.float(), bias.float())

    def back(self, latent: Tensor) -> Tensor:
        """Project vectors ``[..., C]`` back to the dimensions of the input, ``[..., D]``."""
        weight, bias = snapshot(self.out.weight), snapshot(self.out.bias)
        with full_precision(latent):
            return F.linear(latent, weight.float(), bias.float())

    def lift(self, codes: Tensor) -> Tensor:
        """Return the contribution of each code to a vector in the dimensions of the input.

        Args:
            codes: Codes, ``[K, C]``.

        Returns:
            Contributions ``[K, D]``. They lack the bias of `back`, so that contributions of several
            levels can be added up.
        """
        with full_precision(codes):
            return F.linear(codes, snapshot(self.out.weight).float())

    @torch.no_grad()
    def fit_(self, vectors: Tensor) -> None:
        """Start the maps as the principal components of vectors.

        Args:
            vectors: The vectors, ``[N, D]``.
        """
        mean = vectors.mean(dim=0)
        covariance = (vectors - mean).T @ (vectors - mean) / len(vectors)
        _, directions = torch.linalg.eigh(covariance.double())
        # Eigenvalues ascend, so the last directions have most variance. If C is larger than D, the
        # remaining rows stay 0.
        rows = directions.T.flip(0)[: self.into.out_features].float()
        self.into.weight.zero_()[: len(rows)] = rows
        self.out.weight.copy_(self.into.weight.T)
        self.into.bias.copy_(-self.into.weight.float() @ mean)
        self.out.bias.copy_(mean)
