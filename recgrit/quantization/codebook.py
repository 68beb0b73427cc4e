"""One level of the stack: a codebook seen through its integrated transform.

Residuals shrink from level to level and grow alike in length, so that a plain nearest-code rule
spends later levels on how long a residual is rather than where it points. Levels may therefore be
*normalized* on both sides: residuals are compared by direction with codes of unit length, and one
gain per level restores the scale. Normalizing only the codes, as published for single codebooks,
ruins residual stacks: their residuals are not of unit length.

Codes are learned in one of three ways: *joint*, by gradients, with the transform; *frozen*, where
only the transform learns; or by *moving averages* of the vectors they serve (``ema``), mapped back
through ``W``, which needs an ``M`` of identity.

Shapes: B vectors, K codes, D dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.errors import ConfigError
from recgrit.quantization.kmeans import fit_kmeans
from recgrit.quantization.transform import IntegratedTransform, TransformKind

# Rows assigned at once, fewer where there are many codes: scores stay in the processor's cache.
ASSIGN_CHUNK = 1024
MAX_SCORES = 2**20

CodebookLearning = Literal["joint", "frozen", "ema"]
Normalization = Literal["none", "codes", "two_sided"]


class Codebook(nn.Module):
    """K codes of one level, their transform and, if normalized on both sides, their gain.

    Args:
        codebook_size: K.
        dim: D.
        transform: Kind of the integrated transform.
        rank: Rank of the transform's mixing over codes.
        normalization: ``two_sided`` compares directions and scales by one gain, ``codes`` gives
            unit codes to residuals as they are, ``none`` leaves both.
        learning: How the codes are learned.

    Raises:
        ConfigError: Moving averages of codes that a transform mixes.
    """

    ema_counts: Tensor
    ema_sums: Tensor
    ema_gain: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        transform: TransformKind = "linear",
        rank: int = 8,
        normalization: Normalization = "none",
        learning: CodebookLearning = "joint",
    ) -> None:
        super().__init__()
        if learning == "ema" and transform != "identity" and rank > 0:
            raise ConfigError(
                "Moving averages need codes that no transform mixes: set transform_rank=0 "
                "(only W) or transform='identity' with codebook_learning='ema'."
            )
        self.normalization = normalization
        self.learning = learning
        self.embedding = nn.Parameter(
            torch.randn(codebook_size, dim) / dim**0.5, requires_grad=learning == "joint"
        )
        self.transform = IntegratedTransform(codebook_size, dim, kind=transform, rank=rank)
        self.gain = nn.Parameter(
            torch.ones(()), requires_grad=normalization == "two_sided" and learning != "ema"
        )
        if learning == "ema":
            # Shares of the vectors served, and the codes times them: free of the batch size.
            self.register_buffer("ema_counts", torch.full((codebook_size,), 1 / codebook_size))
            self.register_buffer("ema_sums", self.embedding.detach() / codebook_size)
            self.register_buffer("ema_gain", torch.ones(2))

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.embedding.shape[0]

    def effective(self, rows: Tensor | None = None) -> Tensor:
        """The codes in use, ``[K, D]``, or some ``rows`` of them ``[n, D]``."""
        codes: Tensor = self.transform(self.embedding, rows)
        if self.normalization == "none":
            return codes
        codes = F.normalize(codes, dim=-1)
        return codes * self.gain if self.normalization == "two_sided" else codes

    @torch.no_grad()
    def assign(self, residual: Tensor, codes: Tensor) -> Tensor:
        """Index of each residual's code, int64 ``[B]``; ``codes`` is what `effective` returned.

        The nearest code for a plain level, the code of the nearest direction for a normalized one
        (all codes then have one length, so that the norm term is a constant: one rule serves both).
        """
        offset = -0.5 * codes.square().sum(dim=-1)
        num_rows = min(ASSIGN_CHUNK, max(128, MAX_SCORES // len(codes)))
        chosen = residual.new_empty(len(residual), dtype=torch.int64)
        scores = residual.new_empty(min(num_rows, len(residual)), len(codes))
        for rows, found in zip(residual.split(num_rows), chosen.split(num_rows), strict=True):
            part = scores[: len(rows)]
            torch.addmm(offset, rows, codes.T, out=part)
            if part.is_cpu:  # numpy's argmax of a row is twice as fast.
                part.numpy().argmax(axis=1, out=found.numpy())
            else:
                torch.argmax(part, dim=-1, out=found)
        return chosen

    def directions(self, residual: Tensor) -> Tensor:
        """What the codes stand for: the residuals, or their directions on a two-sided level."""
        return F.normalize(residual, dim=-1) if self.normalization == "two_sided" else residual

    @torch.no_grad()
    def fit_init_(self, residual: Tensor, *, seed: int, balanced: bool = False) -> None:
        """K-means on the residuals ``[N, D]`` of all items: their directions, if two-sided.

        The gain then is the least-squares one, and is learned from there like the codes.
        """
        centroids = fit_kmeans(
            self.directions(residual),
            self.codebook_size,
            seed=seed,
            spherical=self.normalization != "none",
            balanced=balanced,
        )
        self.embedding.copy_(centroids)
        self.transform.reset_()
        if self.normalization == "two_sided":
            self.gain.fill_(1.0)
            unit = self.effective()
            chosen = F.embedding(self.assign(residual, unit), unit)
            self.gain.fill_((residual * chosen).sum(dim=-1).mean().clamp_min(1e-6))
        if self.learning == "ema":
            codes = self.assign(residual, self.effective())
            counts = torch.bincount(codes, minlength=self.codebook_size)
            self.ema_counts.copy_(counts / len(residual))
            self.ema_sums.copy_(self.embedding * self.ema_counts[:, None])
            self.ema_gain.copy_(torch.stack([self.gain, torch.ones_like(self.gain)]))

    @torch.no_grad()
    def place_(self, indices: Tensor, targets: Tensor) -> None:
        """Make codes ``indices`` equal ``targets`` ``[n, D]`` (up to length, if normalized).

        Writes ``E_i = x W⁻¹`` and takes the mixing away from code i. Since every code sees
        ``Bᵀ E``, codes with mixing of their own drift a little with it; they are within one step of
        being trained back. Moving averages start anew with an even share at the target.
        """
        self.embedding[indices] = self.transform.untransform(targets)
        if self.transform.mixing is not None:
            self.transform.mixing.per_code[indices] = 0.0
        if self.learning == "ema":
            self.ema_counts[indices] = 1 / self.codebook_size
            self.ema_sums[indices] = self.embedding[indices] / self.codebook_size

    @torch.no_grad()
    def batch_sums(self, residual: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What `ema_step_` needs: sums ``[K, D]`` of what each code served, ``[2]`` for the gain.

        Args:
            residual: ``[B, D]``.
            codes: ``[B]``, what they were assigned.
        """
        served = self.directions(residual)
        sums = torch.zeros_like(self.embedding).index_add_(0, codes, served)
        gain = torch.zeros_like(self.ema_gain)
        if self.normalization == "two_sided":
            unit = F.normalize(self.transform(self.embedding), dim=-1)
            gain[0] = (residual * F.embedding(codes, unit)).sum()
            gain[1] = len(residual)
        return sums, gain

    @torch.no_grad()
    def ema_step_(self, counts: Tensor, sums: Tensor, gain: Tensor, decay: float) -> None:
        """One step of the moving averages: codes become the mean of what they served.

        Args:
            counts: ``[K]``, vectors served since the last step.
            sums: ``[K, D]`` and
            gain: ``[2]``, from `batch_sums`.
            decay: Weight of the past.
        """
        weight = (1 - decay) / counts.sum().clamp_min(1.0)
        self.ema_counts.mul_(decay).add_(counts * weight)
        self.ema_sums.mul_(decay).add_(self.transform.untransform(sums) * weight)
        self.embedding.copy_(self.ema_sums / self.ema_counts.clamp_min(1e-12)[:, None])
        if self.normalization == "two_sided" and gain[1] > 0:
            share = gain / gain[1]
            self.ema_gain.mul_(decay).add_(share, alpha=1 - decay)
            self.gain.copy_((self.ema_gain[0] / self.ema_gain[1]).clamp_min(1e-6))
