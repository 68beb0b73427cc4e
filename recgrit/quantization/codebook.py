"""One level of the stack: a codebook seen through its integrated transform.

Residuals shrink from level to level and grow alike in length, so that a plain nearest-code rule
spends later levels on how long a residual is rather than where it points. Levels may therefore be
*normalized* on both sides: residuals are compared by direction with codes of unit length, and one
gain per level restores the scale. Normalizing only the codes, as published for single codebooks,
ruins residual stacks: their residuals are not of unit length.

Codes are learned in one of three ways: *joint*, by gradients, with the transform; *frozen*, where
only the transform learns; or by *moving averages* of the vectors they serve (``ema``), mapped back
through ``W``, which needs an ``M`` of identity.

Parameters may have any floating dtype; what is computed with them is float32, and so are the
statistics.

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
    """A module whose own buffers stay float32: small shares of large sums vanish in bfloat16.

    What is recorded between two steps differs from process to process. `record` keeps it out of the
    buffers, which DistributedDataParallel overwrites with those of the first process, but in the
    state, and on the device of the module.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: list[str] = []

    def record(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor as an attribute of this name."""
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
            # Without values there are none to move.
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
                "Moving averages need codes that no transform mixes: set transform_rank=0 "
                "(only W) or transform='identity' with codebook_learning='ema'."
            )
        self.normalization = normalization
        self.learning = learning
        self.embedding = nn.Parameter(torch.randn(codebook_size, dim) / dim**0.5)
        self.transform = IntegratedTransform(codebook_size, dim, kind=transform, rank=rank)
        self.gain = nn.Parameter(torch.ones(()))
        self.learn_(True)
        self.register_buffer("mask", None)
        # Vectors served since the last step, and since the last reset.
        self.record("counts", torch.zeros(codebook_size))
        self.register_buffer("uses", torch.zeros(codebook_size))
        if learning == "ema":
            # Sums of what each code served since the last step, and what its gain is made of.
            self.record("sums", torch.zeros(codebook_size, dim))
            self.record("projections", torch.zeros(2))
            # Shares of the vectors served, and the codes times them: free of the batch size.
            self.register_buffer("ema_counts", torch.full((codebook_size,), 1 / codebook_size))
            self.register_buffer("ema_sums", self.embedding.detach() / codebook_size)
            self.register_buffer("ema_gain", torch.ones(2))

    def learn_(self, learning: bool) -> None:
        """Let gradients into what is learned by them, or into nothing."""
        self.requires_grad_(learning)
        self.embedding.requires_grad_(learning and self.learning == "joint")
        self.gain.requires_grad_(
            learning and self.normalization == "two_sided" and self.learning != "ema"
        )

    def limit_(self, mask: Tensor) -> None:
        """Let the codes say something of some dimensions only: bool ``[D]``."""
        self.mask = mask.to(self.gain.device, torch.float32)

    def _masked(self, vectors: Tensor) -> Tensor:
        return vectors if self.mask is None else vectors * self.mask

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.embedding.shape[0]

    def effective(self, rows: Tensor | None = None) -> Tensor:
        """The codes in use, float32 ``[K, D]``, or some ``rows`` of them ``[n, D]``."""
        with full_precision(self.embedding):
            codes = self._masked(self.transform(snapshot(self.embedding), rows))
            if self.normalization == "none":
                return codes
            codes = F.normalize(codes, dim=-1)
            if self.normalization == "codes":
                return codes
            return codes * snapshot(self.gain).float()

    def directions(self, residual: Tensor) -> Tensor:
        """What the codes stand for: the residuals, or their directions on a two-sided level."""
        seen = self._masked(residual)
        return F.normalize(seen, dim=-1) if self.normalization == "two_sided" else seen

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
        """Make codes ``indices`` equal ``targets`` ``[n, D]`` (up to length, if normalized).

        Writes ``E_i = x W⁻¹`` and takes the mixing away from code i. Since every code sees
        ``Bᵀ E``, codes with mixing of their own drift a little with it; they are within one step of
        being trained back. Moving averages start anew with an even share at the target.
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
        """Take note of a batch: how often each code is used, and for moving averages of what.

        Args:
            residual: ``[B, D]``.
            codes: ``[B]``, what they were assigned.
            weights: ``[B]``, 1 for what counts and 0 for what does not.
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
        """What `record_` has added up since the last step; several processes add theirs up."""
        return [self.counts, *([self.sums, self.projections] if self.learning == "ema" else [])]

    def forget_(self) -> None:
        """Forget what was recorded."""
        for tensor in (*self.recorded(), self.uses):
            tensor.zero_()

    @torch.no_grad()
    def learn_from_record_(self, decay: float) -> None:
        """Act upon what was recorded: codes with moving averages become means of what they served.

        Args:
            decay: Weight of the past.
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
