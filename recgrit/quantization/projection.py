"""Codes of fewer dimensions than the vectors: learned linear maps there and back.

Shapes: N vectors, D dimensions, C dimensions of the codes.
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
        dim: D.
        code_dim: C.
    """

    def __init__(self, dim: int, code_dim: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, code_dim)
        self.out = nn.Linear(code_dim, dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., C]``."""
        weight, bias = snapshot(self.into.weight), snapshot(self.into.bias)
        with full_precision(vectors):
            return F.linear(vectors.float(), weight.float(), bias.float())

    def back(self, latent: Tensor) -> Tensor:
        """``[..., C]`` -> ``[..., D]``."""
        weight, bias = snapshot(self.out.weight), snapshot(self.out.bias)
        with full_precision(latent):
            return F.linear(latent, weight.float(), bias.float())

    def lift(self, codes: Tensor) -> Tensor:
        """What codes ``[K, C]`` add to a vector, ``[K, D]``: `back` without its constant."""
        with full_precision(codes):
            return F.linear(codes, snapshot(self.out.weight).float())

    @torch.no_grad()
    def fit_(self, vectors: Tensor) -> None:
        """Start as the principal components of ``[N, D]``."""
        mean = vectors.mean(dim=0)
        covariance = (vectors - mean).T @ (vectors - mean) / len(vectors)
        _, directions = torch.linalg.eigh(covariance.double())
        # Ascending: the last ones carry most. A larger codebook_dim than D leaves rows of 0.
        rows = directions.T.flip(0)[: self.into.out_features].float()
        self.into.weight.zero_()[: len(rows)] = rows
        self.out.weight.copy_(self.into.weight.T)
        self.into.bias.copy_(-self.into.weight.float() @ mean)
        self.out.bias.copy_(mean)
