"""One level of the stack: a codebook seen through its integrated transform.

Residuals shrink from level to level and grow alike in length, so that a plain nearest-code rule
spends later levels on how long a residual is rather than where it points. Levels may therefore be
*normalized* on both sides: residuals are compared by direction with codes of unit length, and one
gain per level restores the scale. (Normalizing only the codes, as published for single codebooks,
ruins residual stacks.)

Shapes: B vectors, K codes, D dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.quantization.kmeans import fit_kmeans
from recgrit.quantization.transform import IntegratedTransform

# Rows assigned at once: the [rows, K] scores stay in the processor's cache.
ASSIGN_CHUNK = 1024


class Codebook(nn.Module):
    """K codes of one level, their transform and, if normalized, their gain.

    Args:
        codebook_size: K.
        dim: D.
        rank: Rank of the transform's mixing over codes.
        normalized: Compare directions and scale by one gain.
    """

    def __init__(self, codebook_size: int, dim: int, *, rank: int, normalized: bool) -> None:
        super().__init__()
        self.normalized = normalized
        self.embedding = nn.Parameter(torch.randn(codebook_size, dim) / dim**0.5)
        self.transform = IntegratedTransform(codebook_size, dim, rank=rank)
        self.gain = nn.Parameter(torch.ones(()), requires_grad=normalized)

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.embedding.shape[0]

    def effective(self) -> Tensor:
        """The codes in use, ``[K, D]``: transformed, and scaled to the gain if normalized."""
        codes: Tensor = self.transform(self.embedding)
        if self.normalized:
            return F.normalize(codes, dim=-1) * self.gain
        return codes

    def assign(self, residual: Tensor, codes: Tensor) -> Tensor:
        """Index of each residual's code, int64 ``[B]``; ``codes`` is what `effective` returned.

        The nearest code for a plain level, the code of the nearest direction for a normalized one
        (all codes then have one length, so that the norm term is a constant: one rule serves both).
        """
        offset = -0.5 * codes.square().sum(dim=-1)
        chunks = [
            torch.addmm(offset, rows, codes.T).argmax(dim=-1)
            for rows in residual.split(ASSIGN_CHUNK)
        ]
        return torch.cat(chunks)

    @torch.no_grad()
    def fit_init_(self, residual: Tensor, *, seed: int) -> None:
        """K-means on the residuals ``[N, D]`` of all items: their directions, if normalized.

        The gain then is the least-squares one, and is learned from there like the codes.
        """
        directions = F.normalize(residual, dim=-1) if self.normalized else residual
        self.embedding.copy_(
            fit_kmeans(directions, self.codebook_size, seed=seed, spherical=self.normalized)
        )
        self.transform.reset_()
        if self.normalized:
            self.gain.fill_(1.0)
            unit = self.effective()
            chosen = F.embedding(self.assign(residual, unit), unit)
            self.gain.fill_((residual * chosen).sum(dim=-1).mean().clamp_min(1e-6))

    @torch.no_grad()
    def place_(self, indices: Tensor, targets: Tensor) -> None:
        """Make codes ``indices`` equal ``targets`` ``[n, D]`` (up to length, if normalized).

        Writes ``E_i = x W⁻¹`` with ``A_i = 0``. Since every code sees ``Bᵀ E``, codes with a
        non-zero ``A`` drift a little with it; they are within one step of being trained back.
        """
        self.embedding[indices] = torch.linalg.solve(self.transform.rotate, targets, left=False)
        self.transform.mix_out[indices] = 0.0
