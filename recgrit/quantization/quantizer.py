"""What every quantizer takes and returns, whatever trains it.

Shapes: B vectors (any number of leading dimensions), D dimensions, L levels, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from recgrit.errors import RecgritError
from recgrit.quantization.diagnostics import IdDiagnostics, diagnose_codes


class QuantizerError(RecgritError, ValueError):
    """Vectors or sizes that a quantizer cannot work with."""


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns.

    Args:
        quantized: float32 ``[..., D]``, the chosen codes' sum, with the estimator's gradient; 0
            where the mask is False.
        codes: int64 ``[..., L]`` (``[...]`` from `GRITVQ`); -1 where the mask is False.
        loss: Scalar to add to your own: the three below by their weights.
        commitment_loss: ``‖z - sg[q]‖²``, summed over dimensions, averaged over vectors.
        codebook_loss: ``‖sg[z] - q‖²``, likewise. Without a weight it has no gradient.
        usage_loss: 1 - entropy of the mean soft assignment / log K, averaged over levels: 0 for an
            even use of all codes. Computed only with a weight, else 0.
        residuals: L tensors ``[B', D]``, what each level was given, flattened and without masked
            vectors; detached.
        codebook_sizes: K of each level.
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    usage_loss: Tensor
    residuals: list[Tensor] = field(repr=False)
    codebook_sizes: tuple[int, ...]

    @cached_property
    def diagnostics(self) -> IdDiagnostics:
        """Usage, perplexity and residual norm per level, and collisions, of this batch alone."""
        codes = self.codes.reshape(-1, len(self.codebook_sizes))
        norms = tuple(residual.norm(dim=-1).mean().item() for residual in self.residuals)
        return diagnose_codes(codes[codes[:, 0] >= 0].cpu().numpy(), self.codebook_sizes, norms)


class Quantizer(Protocol):
    """A module from vectors to codes and back. All of ours pass one contract test."""

    dim: int
    training: bool

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        ...

    def __call__(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``[..., D]``, leaving out where ``mask`` ``[...]`` is False."""
        ...

    def encode(self, latent: Tensor) -> Tensor:
        """Codes of ``[..., D]``, int64 ``[..., L]``."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors that codes stand for, float32 ``[..., D]``; -1 stands for no vector, 0."""
        ...

    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Start from all vectors ``[N, D]``, if asked with clusters about equally large."""
        ...

    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Codebook maintenance between two steps; returns how many dead codes were reset."""
        ...

    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """What the last level is given for ``[B, D]``, and its codes ``[K, D]``."""
        ...


def check_vectors(vectors: Tensor, dim: int) -> None:
    """Refuse what cannot be quantized.

    Raises:
        QuantizerError: The last dimension is not ``dim``, or a value is not finite.
    """
    if vectors.ndim == 0 or vectors.shape[-1] != dim:
        raise QuantizerError(
            f"Expected vectors of {dim} dimensions in the last place, got shape "
            f"{tuple(vectors.shape)}."
        )
    # The sum is not finite where a value is not: half the time of looking at each of them.
    if not vectors.sum().isfinite() and not vectors.isfinite().all():
        num_bad = int((~vectors.isfinite()).any(dim=-1).sum())
        raise QuantizerError(
            f"{num_bad} of {vectors.numel() // dim} vectors hold NaN or infinite values: look for "
            "them in the features, or for a loss that diverged."
        )
