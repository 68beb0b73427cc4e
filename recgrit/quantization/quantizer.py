"""What every quantizer takes and returns, whatever trains it.

Shapes: B vectors (any number of leading dimensions), D dimensions, L levels, K codes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

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
        quantized: ``[..., D]`` in the input's dtype, the chosen codes' sum, with the estimator's
            gradient; 0 where the mask is False.
        codes: int64 ``[..., L]`` (``[...]`` from `GRITVQ`); -1 where the mask is False, and for
            levels that ``level_dropout`` left out.
        loss: Scalar to add to your own: the three below by their weights.
        commitment_loss: ``‖z - sg[q]‖²``, summed over dimensions, averaged over vectors.
        codebook_loss: ``‖sg[z] - q‖²``, likewise. Without a weight it has no gradient.
        usage_loss: 1 - entropy of the mean soft assignment / log K, averaged over levels: 0 for an
            even use of all codes. Computed only with a weight, else 0.
        residuals: L tensors ``[B, D]``, what each level was given, flattened and detached; rows of
            masked vectors say nothing.
        codebook_sizes: K of each level.
        left: ``[B, D]``, what all levels left over, detached.
        rest: ``[B, D]``, what the levels in use left over, with the gradient of the vectors.
        present: float32 ``[B]``, 1 for a vector and 0 where the mask is False.
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    usage_loss: Tensor
    residuals: list[Tensor] = field(repr=False)
    codebook_sizes: tuple[int, ...]
    left: Tensor = field(repr=False)
    rest: Tensor = field(repr=False)
    present: Tensor = field(repr=False)

    @property
    def level_losses(self) -> Tensor:
        """Commitment loss ``[L]`` of the first level alone, of the first two, and so on."""
        live = self.rest - self.rest.detach()
        left = [residual + live for residual in (*self.residuals[1:], self.left)]
        errors = torch.stack([rows.square().sum(dim=-1) for rows in left])
        return (errors * self.present).sum(dim=-1) / self.present.sum().clamp_min(1)

    @cached_property
    def diagnostics(self) -> IdDiagnostics:
        """Usage, perplexity and residual norm per level, and collisions, of this batch alone."""
        present = self.present.bool().cpu()
        codes = self.codes.reshape(len(present), len(self.codebook_sizes)).cpu()[present]
        norms = tuple(r.norm(dim=-1).cpu()[present].mean().item() for r in self.residuals)
        return diagnose_codes(codes.numpy(), self.codebook_sizes, norms)


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


@dataclass(frozen=True)
class Layout:
    """How vectors lie in a tensor: `take` flattens them, `vectors` and `codes` put rows back.

    Args:
        leading: Sizes of all dimensions but that of the vectors.
        channel_first: Whether dimension 1 is that of the vectors, and not the last.
        dtype: Of the vectors.
        mask: bool ``[B]``, False where there is no vector; None for everywhere one.
    """

    leading: torch.Size
    channel_first: bool
    dtype: torch.dtype
    mask: Tensor | None

    @classmethod
    def take(
        cls,
        latent: Tensor,
        dim: int,
        *,
        mask: Tensor | None = None,
        channel_first: bool | None = False,
    ) -> tuple[Self, Tensor]:
        """The layout of vectors, and the vectors as rows ``[B, D]``, 0 where the mask is False.

        Args:
            latent: ``[..., D]`` or, with ``channel_first``, ``[B, D, ...]``.
            dim: D.
            mask: bool, of the leading dimensions or the first few of them.
            channel_first: None for the last dimension, unless both would do.

        Raises:
            QuantizerError: No tensor of floating point, the dimension is not ``dim``, either could
                be meant, the mask does not fit, or a value is not finite.
        """
        if not isinstance(latent, Tensor) or not latent.is_floating_point():
            kind = latent.dtype if isinstance(latent, Tensor) else type(latent).__name__
            raise QuantizerError(
                f"Expected a tensor of floating-point vectors, got {kind}: convert with "
                "torch.as_tensor(x, dtype=torch.float32)."
            )
        if channel_first is None:
            channel_first = False
            if latent.ndim > 3 and latent.shape[1] == latent.shape[-1] == dim:
                raise QuantizerError(
                    f"Shape {tuple(latent.shape)} has {dim} in place 1 and in the last place: "
                    "build the quantizer with channel_first=True or channel_first=False to say "
                    "which are the vectors."
                )
        place = 1 if channel_first and latent.ndim > 1 else -1
        if latent.ndim == 0 or latent.shape[place] != dim:
            where = "place 1" if place == 1 else "the last place"
            hint = ""
            if not channel_first and latent.ndim > 2 and latent.shape[1] == dim:
                hint = " For [B, D, ...] build the quantizer with channel_first=True."
            raise QuantizerError(
                f"Expected vectors of {dim} dimensions in {where}, got shape "
                f"{tuple(latent.shape)}.{hint}"
            )
        latent = latent.movedim(place, -1)
        leading = latent.shape[:-1]
        rows = latent.reshape(-1, dim)
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != leading[: mask.ndim]:
                raise QuantizerError(
                    f"Expected a bool mask of shape {tuple(leading)} or its first dimensions, got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}."
                )
            missing = len(leading) - mask.ndim
            mask = mask.reshape(*mask.shape, *[1] * missing).expand(leading).reshape(-1)
            rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
        _check_finite(rows)
        return cls(leading, place == 1, latent.dtype, mask), rows

    def present(self, rows: Tensor) -> Tensor:
        """float32 ``[B]`` for rows ``[B, D]``: 0 where the mask is False, else 1."""
        if self.mask is None:
            return rows.new_ones(rows.shape[0], dtype=torch.float32)
        return self.mask.float()

    def vectors(self, rows: Tensor) -> Tensor:
        """Rows ``[B, D]`` in the layout and dtype of the vectors, 0 where the mask is False."""
        if self.mask is not None:
            rows = rows.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        placed = rows.to(self.dtype).reshape(*self.leading, rows.shape[-1])
        return placed.movedim(-1, 1) if self.channel_first and placed.ndim > 1 else placed

    def codes(self, rows: Tensor) -> Tensor:
        """Codes ``[B, L]`` as ``[..., L]``, -1 where the mask is False."""
        if self.mask is not None:
            rows = rows.masked_fill(~self.mask.unsqueeze(-1), -1)
        return rows.reshape(*self.leading, rows.shape[-1])


def is_graph_captured(tensor: Tensor) -> bool:
    """Whether a graph is being made of what is done with a tensor: Python must not look at values.

    True inside torch.compile and torch.export, under the transforms of torch.func, and for tensors
    on the meta device.
    """
    return (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or torch._C._are_functorch_transforms_active()
    )


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the device of a tensor."""
    if tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def _check_finite(rows: Tensor) -> None:
    """Refuse NaN and infinite values ``[B, D]``, where looking at them makes nobody wait.

    Elsewhere `recgrit.quantization.maintenance` finds them.
    """
    if is_graph_captured(rows) or not rows.is_cpu:
        return
    if rows.dtype == torch.float64:  # What is computed with has no such large numbers.
        rows = rows.float()
    # The sum is not finite where a value is not: half the time of looking at each of them.
    if not rows.sum().isfinite() and not rows.isfinite().all():
        num_bad = int((~rows.isfinite()).any(dim=-1).sum())
        raise QuantizerError(
            f"{num_bad} of {len(rows)} vectors hold NaN or infinite values: look for them in the "
            "features, or for a loss that diverged."
        )


def check_sizes(dim: int, num_levels: int, codebook_size: int | Sequence[int]) -> tuple[int, ...]:
    """K of each level, from one number for all levels or one per level; any integer type will do.

    Raises:
        QuantizerError: A size is not a positive integer, or there is not one per level.
    """
    if hasattr(codebook_size, "tolist"):  # numpy's.
        codebook_size = codebook_size.tolist()
    try:
        num_levels = operator.index(num_levels)
        sizes = (
            [operator.index(size) for size in codebook_size]
            if isinstance(codebook_size, Sequence)
            else [operator.index(codebook_size)] * num_levels
        )
        smallest = min([operator.index(dim), num_levels, *sizes])
    except TypeError:
        smallest = 0
    if smallest < 1 or not sizes:
        raise QuantizerError(
            "dim, num_levels and codebook_size must be positive integers, got "
            f"{dim}, {num_levels} and {codebook_size}."
        )
    if len(sizes) != num_levels:
        raise QuantizerError(f"Expected {num_levels} codebook sizes, got {len(sizes)}.")
    return tuple(sizes)


torch.export.register_dataclass(Quantized)
