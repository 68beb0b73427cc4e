"""The interface of all quantizers: what they take and what they return.

Shapes: B vectors (any number of leading dimensions), D dimensions of the vectors, C dimensions of
the codes (equal to D unless vectors are projected), L levels, K codes.
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
    """Raised if a quantizer cannot work with the given vectors, codes, sizes or settings."""


@dataclass(frozen=True)
class Quantized:
    """The output of a quantizer.

    Args:
        quantized: Quantized vectors, ``[..., D]`` in the dtype of the input: the sum of the chosen
            codes, with the gradient of the estimator. They are 0 where the mask is False.
        codes: Chosen codes, int64 ``[..., L]`` (``[...]`` from `GRITVQ`). They are -1 where the
            mask is False, and at levels that ``level_dropout`` left out.
        loss: Scalar to add to your own loss: the weighted sum of the three losses below.
        commitment_loss: ``‖z - sg[q]‖²`` of vectors z and the sums q of their codes, summed over
            dimensions and averaged over vectors; ``sg`` stops the gradient. It pulls vectors to
            their codes.
        codebook_loss: ``‖sg[z] - q‖²``, summed over dimensions and averaged over vectors. It pulls
            codes to their vectors. Without a weight it has no gradient.
        usage_loss: 1 minus the entropy of the mean soft assignment divided by log K, averaged over
            levels. It is 0 if all codes are used evenly. Without a weight it is not computed and is
            0.
        residuals: Input of each level, L tensors ``[B, C]`` without gradient. Rows where the mask
            is False have no meaning.
        codebook_sizes: Number of codes K of each level.
        left: Residuals after all levels, ``[B, C]`` without gradient.
        rest: Vectors minus the codes of the levels that are in use, ``[B, C]``, with the gradient
            of the vectors.
        present: float32 ``[B]``: 1 for a vector and 0 where the mask is False.
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
        """Commitment loss of each prefix of levels, ``[L]``.

        Entry 0 uses the code of the first level alone, entry 1 the sum of the first two, and so on.
        """
        live = self.rest - self.rest.detach()
        left = [residual + live for residual in (*self.residuals[1:], self.left)]
        errors = torch.stack([rows.square().sum(dim=-1) for rows in left])
        return (errors * self.present).sum(dim=-1) / self.present.sum().clamp_min(1)

    @cached_property
    def diagnostics(self) -> IdDiagnostics:
        """Usage, perplexity and residual norm of each level, and collisions, of this batch only."""
        present = self.present.bool().cpu()
        codes = self.codes.reshape(len(present), len(self.codebook_sizes)).cpu()[present]
        norms = tuple(r.norm(dim=-1).cpu()[present].mean().item() for r in self.residuals)
        return diagnose_codes(codes.numpy(), self.codebook_sizes, norms)


class Quantizer(Protocol):
    """The interface of a module that maps vectors to codes and back.

    All quantizers of this package pass one contract test.
    """

    dim: int
    training: bool

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each level."""
        ...

    def __call__(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize vectors.

        Args:
            latent: Vectors, ``[..., D]``.
            mask: bool ``[...]``; False where there is no vector. None means that all vectors are
                present.
        """
        ...

    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes of vectors ``[..., D]``, int64 ``[..., L]``."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors that codes decode to, float32 ``[..., D]``.

        Args:
            codes: Codes, ``[..., L]``. A code of -1 means that there is no vector; the result is
                then 0.
        """
        ...

    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Start the codes from vectors.

        Args:
            vectors: All vectors, ``[N, D]``.
            seed: Seed of the random numbers.
            balanced: Whether to start from clusters that are about equally large.
        """
        ...

    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Run the codebook maintenance between two training steps, such as dead-code resets.

        Args:
            optimizer: Optimizer of the codes. Its moments of reset codes are set to 0. None if
                there is none.
            generator: Source of the random numbers. None uses the default generator of torch.

        Returns:
            The number of codes that were reset.
        """
        ...

    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the last level, and the codes of that level.

        Args:
            latent: Vectors, ``[B, D]``.

        Returns:
            Residuals ``[B, C]`` and codes ``[K, C]``.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """The arrangement of vectors in a tensor.

    `take` flattens vectors to rows. `vectors` and `codes` put rows back into the arrangement.

    Args:
        leading: Sizes of all dimensions of the tensor except the dimension of the vectors.
        channel_first: Whether the vectors lie along dimension 1 instead of the last dimension.
        dtype: Dtype of the vectors.
        mask: bool ``[B]``; False where there is no vector. None means that all vectors are present.
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
        """Return the layout of vectors, and the vectors as rows ``[B, D]``, 0 where masked out.

        Args:
            latent: Vectors, ``[..., D]`` or, with ``channel_first``, ``[B, D, ...]``.
            dim: Number of dimensions D of the vectors.
            mask: bool of the shape of the leading dimensions, or of the first few of them; False
                where there is no vector. None means that all vectors are present.
            channel_first: Whether the vectors lie along dimension 1. None means the last dimension,
                and raises an error for four or more dimensions if dimension 1 and the last
                dimension both have size D.

        Raises:
            QuantizerError: ``latent`` is not a floating-point tensor, its dimension is not ``dim``,
                the dimension of the vectors is ambiguous, the mask does not fit, or a value is not
                finite.
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
                    f"Shape {tuple(latent.shape)} has {dim} on axis 1 and on the last axis: "
                    "build the quantizer with channel_first=True or channel_first=False to say "
                    "which axis holds the vectors."
                )
        place = 1 if channel_first and latent.ndim > 1 else -1
        if latent.ndim == 0 or latent.shape[place] != dim:
            where = "axis 1" if place == 1 else "the last axis"
            hint = ""
            if not channel_first and latent.ndim > 2 and latent.shape[1] == dim:
                hint = " For [B, D, ...] build the quantizer with channel_first=True."
            raise QuantizerError(
                f"Expected vectors of {dim} dimensions on {where}, got shape "
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
        """Return float32 ``[B]`` for B rows: 1 for a vector and 0 where the mask is False."""
        if self.mask is None:
            return rows.new_ones(rows.shape[0], dtype=torch.float32)
        return self.mask.float()

    def vectors(self, rows: Tensor) -> Tensor:
        """Return rows in the shape and dtype of the vectors; 0 where the mask is False.

        Args:
            rows: Rows ``[B, D]``.
        """
        if self.mask is not None:
            rows = rows.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        placed = rows.to(self.dtype).reshape(*self.leading, rows.shape[-1])
        return placed.movedim(-1, 1) if self.channel_first and placed.ndim > 1 else placed

    def codes(self, rows: Tensor) -> Tensor:
        """Return codes ``[B, L]`` in the shape ``[..., L]``; -1 where the mask is False."""
        if self.mask is not None:
            rows = rows.masked_fill(~self.mask.unsqueeze(-1), -1)
        return rows.reshape(*self.leading, rows.shape[-1])


def is_graph_captured(tensor: Tensor) -> bool:
    """Return whether torch captures the operations on a tensor in a graph.

    Python code must not read the tensor's values then. This is the case inside torch.compile and
    torch.export, under the transforms of torch.func, and for tensors on the meta device.
    """
    return (
        torch.compiler.is_compiling()
        or tensor.is_meta
        or torch._C._are_functorch_transforms_active()
    )


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context that switches autocast off on the device of a tensor."""
    if tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def _check_finite(rows: Tensor) -> None:
    """Raise an error if rows ``[B, D]`` on the CPU contain NaN or infinite values.

    On other devices, reading the values would force a synchronisation.
    `recgrit.quantization.maintenance` finds the values there.
    """
    if is_graph_captured(rows) or not rows.is_cpu:
        return
    if rows.dtype == torch.float64:  # Computations in float32 make large numbers infinite.
        rows = rows.float()
    # If a value is not finite, the sum is not finite either. The sum takes half the time of a check
    # of each value.
    if not rows.sum().isfinite() and not rows.isfinite().all():
        num_bad = int((~rows.isfinite()).any(dim=-1).sum())
        raise QuantizerError(
            f"{num_bad} of {len(rows)} vectors hold NaN or infinite values: look for them in the "
            "features, or for a loss that diverged."
        )


def check_sizes(dim: int, num_levels: int, codebook_size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the number of codes of each level.

    Args:
        dim: Number of dimensions of the vectors, which is checked too.
        num_levels: Number of levels.
        codebook_size: One number for all levels, or one number per level. Any integer type is
            allowed.

    Raises:
        QuantizerError: A size is not a positive integer, or the number of sizes is not the number
            of levels.
    """
    if hasattr(codebook_size, "tolist"):  # An array or a number of numpy.
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
