"""Stacked GRIT-VQ: levels that each quantize what the levels before left over.

Two choices matter. Between levels the residual is *detached*: assignment is hard anyway, and
chaining gradients through the levels starves the first. And there is **one surrogate on the sum**
of all levels instead of one per level: summed straight-through estimators multiply the encoder's
gradient by the number of levels. Each code still gets its gradient through the sum.

Shapes: B vectors, D dimensions, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.quantization.codebook import Codebook
from recgrit.quantization.radius import EuclideanRadius, Radius, surrogate_radius


@dataclass(frozen=True)
class Quantized:
    """What `ResidualGRITVQ` returns.

    Args:
        quantized: ``[B, D]``, the sum of the chosen codes, with the surrogate's gradient.
        codes: int64 ``[B, L]``.
        commitment_loss: Scalar, ``‖z - sg[q]‖²`` summed over dimensions, averaged over vectors.
        residuals: L tensors ``[B, D]``, what each level was given; detached.
    """

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor
    residuals: list[Tensor]


class ResidualGRITVQ(nn.Module):
    """A stack of GRIT-VQ codebooks with one radius surrogate on their sum.

    Args:
        dim: D, size of the vectors.
        num_levels: L.
        codebook_size: K, one for all levels or one per level.
        radius: Splits the gradient between encoder and codes; Euclidean if None.
        transform_rank: Rank of each level's mixing over codes.
        normalized_from: First level, counted from 0, that compares directions and has a gain; a
            number ≥ ``num_levels`` leaves all levels plain.

    Raises:
        ValueError: A size is not positive, or the codebook sizes do not match the levels.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int = 3,
        codebook_size: int | Sequence[int] = 256,
        *,
        radius: Radius | None = None,
        transform_rank: int = 8,
        normalized_from: int = 1,
    ) -> None:
        super().__init__()
        sizes = (
            [codebook_size] * num_levels if isinstance(codebook_size, int) else list(codebook_size)
        )
        if dim < 1 or num_levels < 1 or min(sizes) < 1:
            raise ValueError(
                f"dim, num_levels and codebook_size must be positive, got {dim}, {num_levels} "
                f"and {codebook_size}."
            )
        if len(sizes) != num_levels:
            raise ValueError(f"Expected {num_levels} codebook sizes, got {len(sizes)}.")
        self.radius = radius if radius is not None else EuclideanRadius()
        self.levels = nn.ModuleList(
            Codebook(size, dim, rank=transform_rank, normalized=level >= normalized_from)
            for level, size in enumerate(sizes)
        )

    @property
    def codebooks(self) -> list[Codebook]:
        """The levels, first to last."""
        return [level for level in self.levels if isinstance(level, Codebook)]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return tuple(level.codebook_size for level in self.codebooks)

    def forward(self, latent: Tensor) -> Quantized:
        """Quantize ``[B, D]``; computed in float32 whatever the autocast."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            codebooks = [level.effective() for level in self.codebooks]
            codes, residuals = self._assign(latent.detach(), codebooks)
            quantized = _sum_codes(codes, codebooks)
            commitment = (latent - quantized.detach()).square().sum(dim=-1).mean()
            return Quantized(
                quantized=surrogate_radius(latent, quantized, self.radius),
                codes=codes,
                commitment_loss=commitment,
                residuals=residuals,
            )

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Codes of ``[B, D]``, int64 ``[B, L]``."""
        with torch.autocast(latent.device.type, enabled=False):
            codes, _ = self._assign(latent.float(), [level.effective() for level in self.codebooks])
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors ``[B, D]`` that codes ``[B, L]`` stand for; float32 whatever the autocast."""
        with torch.autocast(codes.device.type, enabled=False):
            return _sum_codes(codes, [level.effective() for level in self.codebooks])

    @torch.no_grad()
    def fit_init_(self, latent: Tensor, *, seed: int) -> None:
        """Place every level's codes by k-means on what the levels before left of ``[N, D]``."""
        residual = latent.float()
        for level in self.codebooks:
            level.fit_init_(residual, seed=seed)
            codes = level.effective()
            residual = residual - F.embedding(level.assign(residual, codes), codes)

    def _assign(self, latent: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        residual, residuals, chosen = latent, [], []
        with torch.no_grad():
            for level, codebook in zip(self.codebooks, codebooks, strict=True):
                residuals.append(residual)
                codes = level.assign(residual, codebook)
                residual = residual - F.embedding(codes, codebook)
                chosen.append(codes)
        return torch.stack(chosen, dim=-1), residuals


def _sum_codes(codes: Tensor, codebooks: list[Tensor]) -> Tensor:
    """The one place where codes become vectors, so that training and decoding agree to the bit."""
    total = F.embedding(codes[:, 0], codebooks[0])
    for level, codebook in enumerate(codebooks[1:], start=1):
        total = total + F.embedding(codes[:, level], codebook)
    return total
