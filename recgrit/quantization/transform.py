"""The integrated transform: all codes of a level move together.

The codebook in use is ``E' = M E W`` with ``M = I + A Bᵀ`` (rank r, over codes) and ``W`` (over
dimensions), GRIT-VQ (arXiv 2602.01140). A step on any used code moves ``W`` and ``B`` and through
them every code, used or not. A refresh costs O(K r D + K D²).

``A`` starts at zero and ``B`` at random, so that training starts from ``E`` exactly and can leave
it: were both zero, neither would ever get a gradient. Row i of ``A`` learns only when code i is
used; ``B`` and ``W`` are the shared parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IntegratedTransform(nn.Module):
    """``E' = (I + A Bᵀ) E W`` for a codebook ``[K, D]``.

    Args:
        codebook_size: K.
        dim: D.
        rank: r, columns of A and B; 0 leaves only W.
    """

    def __init__(self, codebook_size: int, dim: int, *, rank: int = 8) -> None:
        super().__init__()
        self.mix_out = nn.Parameter(torch.zeros(codebook_size, rank))  # A
        self.mix_in = nn.Parameter(torch.randn(codebook_size, rank) / codebook_size**0.5)  # B
        self.rotate = nn.Parameter(torch.eye(dim))  # W

    def forward(self, codes: Tensor) -> Tensor:
        """``[K, D]`` -> ``[K, D]``."""
        mixed = codes + self.mix_out @ (self.mix_in.T @ codes)
        return mixed @ self.rotate

    @torch.no_grad()
    def reset_(self) -> None:
        """Back to the identity."""
        self.mix_out.zero_()
        nn.init.eye_(self.rotate)

    @torch.no_grad()
    def clip_spectrum_(self, low: float = 0.5, high: float = 2.0) -> None:
        """Bring the singular values of W back between ``low`` and ``high``."""
        left, values, right = torch.linalg.svd(self.rotate)
        if values.min() < low or values.max() > high:
            self.rotate.copy_(left @ torch.diag(values.clamp(low, high)) @ right)
