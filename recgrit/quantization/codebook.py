"""One level of a stack: a codebook whose codes pass through an integrated transform.

Residuals get shorter from level to level. With a plain nearest-code rule, later levels spend their
codes on the length of a residual rather than on its direction. A level may therefore be
*normalized* on both sides: the directions of residuals are compared with codes of unit length, and
one gain per level restores the scale. Normalizing only the codes, as published for single
codebooks, makes later levels nearly useless, because their residuals do not have unit length.

Codes are learned in one of three ways. *joint* trains them by gradients, together with the
transform. *frozen* trains only the transform. *ema* sets them to moving averages of the vectors
that are assigned to them, mapped back through ``W``; it needs a transform that mixes no codes
(``M`` is the identity).

Parameters may have any floating-point dtype. Computations and statistics are in float32.

Shapes: B vectors, K codes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.errors import ConfigError
from recgrit.quantization.assignment import nearest_codes
from recgrit.quantization.kmeans import fit_kmeans
from recgrit.quantization.quantizer import full_precision
from recgrit.quantization.transform import IntegratedTransform, TransformKind, snapshot

CodebookLearning = Literal["joint", "frozen", "ema"]
Normalization = Literal["none", "codes", "two_sided"]


class WithStatistics(nn.Module):
    """A module whose own buffers stay float32 if the module is converted to another dtype.

    In bfloat16, small shares of large sums would be lost.

    The statistics that are recorded between two steps differ from process to process. `record`
    therefore does not make them buffers, which DistributedDataParallel overwrites with the values
    of the first process. They are still saved with the state and moved with the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: list[str] = []

    def record(self, name: str, tensor: Tensor) -> None:
        """Store a tensor as an attribute that is saved with the state but is not a buffer.

        Args:
            name: Name of the attribute.
            tensor: Initial value.
        """
        self._records.append(name)
        setattr(self, name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, moved in self.named_buffers(recurse=False):
            if moved.dtype != torch.float32:
                setattr(self, name, kept[name].to(moved.device))
        device = fn(torch.zeros(0, device=next(iter(kept.values())).device)).device
        for name in self._records:
            tensor = getattr(self, name)
            # A tensor on the meta device has no values, so zeros take its place.
            empty = tensor.is_meta and device.type != "meta"
            moved = torch.zeros_like(tensor, device=device) if empty else tensor.to(device)
            setattr(self, name, moved)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._records:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self._records:
            saved = state_dict.pop(prefix + name, None)
            if saved is None:
                missing_keys.append(prefix + name)
            else:
                getattr(self, name).copy_(saved)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class Codebook(WithStatistics):
    """The codes of one level, with their transform and, if normalized on both sides, their gain.

    Args:
        codebook_size: Number of codes K.
        dim: Number of dimensions D of the codes.
        transform: Kind of the integrated transform: ``linear``, ``attention`` or ``identity``.
        rank: Rank of the part of the transform that mixes codes. 0 mixes no codes.
        normalization: ``two_sided`` compares directions of residuals and codes, and scales the
            codes by one gain. ``codes`` gives the codes unit length and leaves the residuals as
            they are. ``none`` changes neither.
        learning: How the codes are learned: ``joint`` by gradients, ``frozen`` (only the transform
            learns), or ``ema`` by moving averages.

    Raises:
        ConfigError: ``ema`` is combined with a transform that mixes codes.
    """

    mask: Tensor | None
    counts: Tensor
    uses: Tensor
    sums: Tensor
    projections: Tensor
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
                "codebook_learning='ema' does not work with a transform that mixes codes: set "
                "transform_rank=0 (only W) or transform='identity'."
            )
        self.normalization = normalization
        self.learning = learning
        self.embedding = nn.Parameter(torch.randn(codebook_size, dim) / dim**0.5)
        self.transform = IntegratedTransform(codebook_size, dim, kind=transform, rank=rank)
        self.gain = nn.Parameter(torch.ones(()))
        self.learn_(True)
        self.register_buffer("mask", None)
        # Number of vectors per code since the last step, and since the last reset.
        self.record("counts", torch.zeros(codebook_size))
        self.register_buffer("uses", torch.zeros(codebook_size))
        if learning == "ema":
            # Since the last step: sum of each code's vectors, and the two sums that give the gain.
            self.record("sums", torch.zeros(codebook_size, dim))
            self.record("projections", torch.zeros(2))
            # Moving averages of each code's share of the vectors, and of the code times this share.
            # Shares do not depend on the batch size.
            self.register_buffer("ema_counts", torch.full((codebook_size,), 1 / codebook_size))
            self.register_buffer("ema_sums", self.embedding.detach() / codebook_size)
            self.register_buffer("ema_gain", torch.ones(2))

    def learn_(self, learning: bool) -> None:
        """Set which parameters get gradients.

        Args:
            learning: True gives gradients to all parameters that are learned by gradients. False
                gives them to none.
        """
        self.requires_grad_(learning)
        self.embedding.requires_grad_(learning and self.learning == "joint")
        self.gain.requires_grad_(
            learning and self.normalization == "two_sided" and self.learning != "ema"
        )

    def limit_(self, mask: Tensor) -> None:
        """Restrict the codes to some dimensions; they are 0 in all others.

        Args:
            mask: Whether the codes use each dimension, bool ``[D]``.
        """
        self.mask = mask.to(self.gain.device, torch.float32)

    def _masked(self, vectors: Tensor) -> Tensor:
        return vectors if self.mask is None else vectors * self.mask

    @property
    def codebook_size(self) -> int:
        """Number of codes K."""
        return self.embedding.shape[0]

    def effective(self, rows: Tensor | None = None) -> Tensor:
        """Return the codes that assignment uses: transformed, masked and normalized.

        Args:
            rows: Indices of the n codes to return. None returns all codes.

        Returns:
            Codes, float32 ``[K, D]`` or ``[n, D]``.
        """
        with full_precision(self.embedding):
            codes = self._masked(self.transform(snapshot(self.embedding), rows))
            if self.normalization == "none":
                return codes
            codes = F.normalize(codes, dim=-1)
            if self.normalization == "codes":
                return codes
            return codes * snapshot(self.gain).float()

    def directions(self, residual: Tensor) -> Tensor:
        """Return the vectors that the codes approximate.

        These are the residuals ``[B, D]`` in the dimensions of the codes, scaled to unit length if
        the level is normalized on both sides.
        """
        seen = self._masked(residual)
        return F.normalize(seen, dim=-1) if self.normalization == "two_sided" else seen

    @torch.no_grad()
    def fit_init_(self, residual: Tensor, *, seed: int, balanced: bool = False) -> None:
        """Start the codes by k-means on residuals; on their directions if normalized on both sides.

        The gain starts at its least-squares value. It is learned from there like the codes.

        Args:
            residual: Input of this level for all items, ``[N, D]``.
            seed: Seed of k-means.
            balanced: Whether to keep the clusters about equally large.
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
            chosen = F.embedding(nearest_codes(residual, unit), unit)
            self.gain.fill_((residual * chosen).sum(dim=-1).mean().clamp_min(1e-6))
        self.forget_()
        if self.learning == "ema":
            codes = nearest_codes(residual, self.effective())
            counts = torch.bincount(codes, minlength=self.codebook_size)
            self.ema_counts.copy_(counts / len(residual))
            self.ema_sums.copy_(centroids * self.ema_counts[:, None])
            self.ema_gain.copy_(torch.stack([self.gain.float(), self.ema_gain.new_ones(())]))

    @torch.no_grad()
    def place_(self, indices: Tensor, targets: Tensor) -> None:
        """Set some codes so that, after the transform, they equal given vectors.

        If the level is normalized, only the directions are equal. With the transform
        ``E' = M E W``, code i before the transform becomes ``x W⁻¹`` for its vector x, and its
        mixing is set to 0. The mixing of every other code contains all codes, so codes with mixing
        move slightly too; one training step undoes a change of this size. Moving averages of the
        placed codes restart at the vector, with the weight of an evenly used code.

        Args:
            indices: Indices of n codes.
            targets: The vectors, ``[n, D]``.
        """
        placed = self.transform.untransform(targets)
        self.embedding[indices] = placed.to(self.embedding.dtype)
        if self.transform.mixing is not None:
            self.transform.mixing.per_code[indices] = 0.0
        if self.learning == "ema":
            self.ema_counts[indices] = 1 / self.codebook_size
            self.ema_sums[indices] = placed / self.codebook_size

    @torch.no_grad()
    def record_(self, residual: Tensor, codes: Tensor, weights: Tensor) -> None:
        """Record how often a batch uses each code and, for moving averages, the sum of its vectors.

        Args:
            residual: Input of this level, ``[B, D]``.
            codes: Assigned codes, ``[B]``.
            weights: Weight of each vector, ``[B]``: 1 for a vector that counts and 0 for a vector
                that does not.
        """
        self.counts.index_add_(0, codes, weights)
        if self.learning != "ema":
            return
        served = self.directions(residual) * weights.unsqueeze(-1)
        self.sums.index_add_(0, codes, served)
        if self.normalization == "two_sided":
            unit = F.normalize(self._masked(self.transform(self.embedding)), dim=-1)
            along = (residual * F.embedding(codes, unit)).sum(dim=-1)
            self.projections += torch.stack([along @ weights, weights.sum()])

    def recorded(self) -> list[Tensor]:
        """Return the tensors in which `record_` adds up training batches since the last update.

        These are the number of vectors per code and, if the codes learn by moving averages, also
        the sums of these vectors per code and the sums for the gain of the level. Several processes
        sum these tensors before they update the codes.
        """
        return [self.counts, *([self.sums, self.projections] if self.learning == "ema" else [])]

    def forget_(self) -> None:
        """Set all records and the use counts to 0."""
        for tensor in (*self.recorded(), self.uses):
            tensor.zero_()

    @torch.no_grad()
    def learn_from_record_(self, decay: float) -> None:
        """Add the recorded counts to the use counts, update moving averages, and clear the records.

        With ``ema``, each code becomes the moving average of the vectors that were assigned to it.

        Args:
            decay: Weight of the past in the moving averages, from 0 to 1.
        """
        self.uses += self.counts
        if self.learning == "ema":
            weight = (1 - decay) / self.counts.sum().clamp_min(1.0)
            self.ema_counts.mul_(decay).add_(self.counts * weight)
            self.ema_sums.mul_(decay).add_(self.transform.untransform(self.sums) * weight)
            self.embedding.copy_(self.ema_sums / self.ema_counts.clamp_min(1e-12)[:, None])
            if self.normalization == "two_sided":
                share = self.projections / self.projections[1].clamp_min(1.0)
                some = (self.projections[1] > 0).float()
                self.ema_gain.lerp_(share, (1 - decay) * some)
                self.gain.copy_((self.ema_gain[0] / self.ema_gain[1]).clamp_min(1e-6))
        for tensor in self.recorded():
            tensor.zero_()
