"""Stacked GRIT-VQ, in which each level quantizes the residuals of the levels before.

Two choices matter for the gradients. The residual is *detached* between levels, because assignment
is hard anyway, and gradients chained through the levels leave the first level almost none. And
**one surrogate acts on the sum** of all levels, instead of one surrogate per level: the sum of
straight-through estimators would multiply the encoder's gradient by the number of levels. Each code
still gets its gradient through the sum.

In training, codebook maintenance runs between steps: moving averages, dead-code resets, and
clipping of the spectrum of ``W``. Call `ResidualGRITVQ.after_step` with your optimizer after each
step of the optimizer, even if a step follows several forward passes. If it is never called, the
maintenance runs at the start of a later training forward, as soon as no earlier output awaits its
backward pass. On several processes, or in a graph made by torch.compile, batches are only recorded,
so `ResidualGRITVQ.after_step` has to be called.

Shapes: B vectors (any leading dimensions), D dimensions of the vectors, C dimensions of the codes,
L levels, K codes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recgrit import distributed
from recgrit.quantization.codebook import (
    Codebook,
    CodebookLearning,
    Normalization,
)
from recgrit.quantization.estimators import (
    GradientEstimator,
)
from recgrit.quantization.in_flight import InFlight, is_in_backward
from recgrit.quantization.maintenance import CodebookMaintenance
from recgrit.quantization.quantizer import (
    Layout,
    Quantized,
    QuantizerError,
    check_sizes,
    full_precision,
    is_graph_captured,
)
from recgrit.quantization.radius import RADII, Radius, SurrogateForm
from recgrit.quantization.settings import (
    build_estimator,
    check_settings,
    warn_of_codes_without_gradient,
)
from recgrit.quantization.stack import CodebookStack, walk_levels
from recgrit.quantization.transform import TransformKind
from recgrit.quantization.usage import usage_loss

logger = logging.getLogger(__name__)

_NOT_SETTINGS = ("self", "__class__")
# Number of vectors per code that are collected before k-means starts the codes. With fewer vectors,
# later levels would have nothing to quantize.
START_VECTORS_PER_CODE = 4
# Training batches without codebook maintenance after which a warning is logged.
PATIENCE = 100


class ResidualGRITVQ(CodebookStack):
    """A stack of GRIT-VQ codebooks with one radius surrogate on their sum.

    Example:
        >>> vectors = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        >>> quantizer = ResidualGRITVQ(16, num_levels=3, codebook_size=32)
        >>> quantizer.fit_init(vectors)
        >>> result = quantizer(vectors)
        >>> result.codes.shape, bool((result.quantized == quantizer.decode(result.codes)).all())
        (torch.Size([500, 3]), True)

    Args:
        dim: Number of dimensions D of the vectors.
        num_levels: Number of levels L.
        codebook_size: Number of codes K: one number for all levels, or one number per level.
        codebook_dim: Number of dimensions C of the codes. A value other than D adds learned linear
            projections. None means D.
        channel_first: Whether the vectors lie along dimension 1, as in ``[B, D, ...]``. None means
            the last dimension, and raises an error for four or more dimensions if both have size D.
        kmeans_init: Whether k-means on the first training batches starts the codes, unless
            `fit_init` was called before. Otherwise the codes start at random.
        radius: Family of the radius, which splits the gradient between encoder and codes: a name or
            a `Radius`.
        surrogate: Form of the radius surrogate, ``additive`` or ``multiplicative``. A
            `GradientEstimator` replaces the surrogate; ``radius`` and ``direction_noise`` then have
            no effect.
        direction_noise: Root mean square length of the noise on the surrogate's direction in
            training, relative to the gap.
        transform: Kind of the integrated transform: ``linear``, ``attention`` or ``identity``.
        transform_rank: Rank of the part of the transform that mixes the codes of a level. 0 keeps
            only ``W``.
        codebook_learning: How the codes are learned: ``joint`` by gradients, ``frozen`` (only the
            transform learns), or ``ema`` by moving averages.
        normalization: ``two_sided`` compares directions of residuals and codes, ``codes``
            normalizes the codes only, as published, and ``none`` normalizes nothing.
        normalized_from: First level, from 0, that is normalized. With ``num_levels``, no level is
            normalized.
        level_dropout: Share of the vectors in training that use only the first few levels. Their
            number is drawn for each vector. With level dropout, prefixes of IDs become meaningful
            on their own.
        temperature: Temperature of the assignment in training. Codes are drawn from
            ``softmax(-d² / (temperature u))``, where d is the distance to a code and u the mean
            squared distance to the nearest code. 0 takes the nearest code.
        commitment_weight: Weight of the commitment loss, which pulls vectors to their codes.
        codebook_weight: Weight of the codebook loss, which pulls codes to their vectors.
        usage_weight: Weight of the usage loss, which rewards an even use of the codes. Above 0,
            each step costs a softmax over all codes.
        ema_decay: Weight of the past in moving averages, from 0 to 1.
        reset_interval: Number of steps between dead-code resets. None switches them off.
        dead_below: Threshold of a dead code. A code is dead if it is used less than this fraction
            of an even use.
        cache_interval: Number of steps for which assignment in training uses the same copy of the
            transformed codebooks. A value above 1 saves time only for small batches with many
            codes.

    Raises:
        QuantizerError: A size is not positive, the number of codebook sizes is not the number of
            levels, or a setting is unknown or out of range.
        ConfigError: Two settings exclude each other.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int = 3,
        codebook_size: int | Sequence[int] = 256,
        *,
        codebook_dim: int | None = None,
        channel_first: bool | None = None,
        kmeans_init: bool = True,
        radius: str | Radius = "euclidean",
        surrogate: SurrogateForm | GradientEstimator = "additive",
        direction_noise: float = 0.0,
        transform: TransformKind = "linear",
        transform_rank: int = 8,
        codebook_learning: CodebookLearning = "joint",
        normalization: Normalization = "two_sided",
        normalized_from: int = 1,
        level_dropout: float = 0.0,
        temperature: float = 0.0,
        commitment_weight: float = 0.05,
        codebook_weight: float = 0.0,
        usage_weight: float = 0.0,
        ema_decay: float = 0.99,
        reset_interval: int | None = 50,
        dead_below: float = 0.1,
        cache_interval: int = 1,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
        check_settings(settings)
        sizes = check_sizes(dim, num_levels, codebook_size)
        (code_dim,) = check_sizes(dim, 1, dim if codebook_dim is None else codebook_dim)
        levels = [
            Codebook(
                size,
                code_dim,
                transform=transform,
                rank=transform_rank,
                normalization=normalization if level >= normalized_from else "none",
                learning=codebook_learning,
            )
            for level, size in enumerate(sizes)
        ]
        super().__init__(int(dim), levels, code_dim=code_dim, channel_first=channel_first)
        if normalization == "codes" and num_levels > max(1, normalized_from):
            logger.warning(
                "normalization='codes' gives unit codes to residuals that are not of unit length: "
                "later levels then hardly help. Use normalization='two_sided' instead."
            )
        # Numbers of numpy become Python numbers, because `save` writes JSON.
        plain = {n: x.item() if isinstance(x, np.generic) else x for n, x in settings.items()}
        self.settings = plain | {
            "dim": int(dim),
            "num_levels": len(sizes),
            "codebook_size": sizes,
            "codebook_dim": None if codebook_dim is None else code_dim,
        }
        self.estimator = build_estimator(radius, surrogate, direction_noise)
        if codebook_learning == "joint" and not codebook_weight and not usage_weight:
            warn_of_codes_without_gradient(self.estimator)
        self.level_dropout = level_dropout
        self.temperature = temperature
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.usage_weight = usage_weight
        self.cache_interval = cache_interval
        self.learns_by_averages = codebook_learning == "ema"
        self.maintenance = CodebookMaintenance(ema_decay, reset_interval, dead_below)
        self._in_flight = InFlight()
        self._frozen = False
        # Names of the trained parameters, which `unfreeze` restores.
        self._learned = {name for name, p in self.named_parameters() if p.requires_grad}
        self._started = not kmeans_init
        self._waiting: list[Tensor] = []  # Vectors that k-means will start from.
        self._num_recorded = 0  # Training batches since the last maintenance.
        self._ripe = False  # Whether gradients were enabled in one of them.
        self._called_by_user = False
        self._warned = False
        self._cache: list[Tensor] | None = None

    def get_extra_state(self) -> Tensor:
        """Return the state that is kept in Python and not in tensors.

        It contains whether the codes have started, whether learning is frozen, and what is known of
        the batches since the last maintenance.
        """
        known = self._started, self._frozen, self._num_recorded, self._ripe, self._called_by_user
        return torch.tensor(known).long()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state from `get_extra_state`."""
        started, frozen, num_recorded, ripe, called = state.tolist()
        self._started, self._num_recorded = bool(started), num_recorded
        self._ripe, self._called_by_user = bool(ripe), bool(called)
        if frozen and not self._frozen:
            self.freeze()
        elif self._frozen and not frozen:
            self.unfreeze()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._waiting:
            destination[prefix + "start_vectors"] = torch.cat(self._waiting)
        if self._cache is not None:
            destination[prefix + "cached_codebooks"] = torch.cat(self._cache)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        waiting = state_dict.pop(prefix + "start_vectors", None)
        cached = state_dict.pop(prefix + "cached_codebooks", None)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)
        device = self.center.device
        self._waiting = [] if waiting is None else [waiting.to(device)]
        self._cache = None
        if cached is not None:
            self._cache = list(cached.to(device).split(self.codebook_sizes))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._cache = None
        self._waiting = [rows.to(self.center.device) for rows in self._waiting]
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode.

        On the switch to eval mode, a warning is logged if many training batches were recorded
        without codebook maintenance.
        """
        if self.training and not mode and not self.center.is_meta:
            self._warn_of_waiting(int(self.maintenance.recorded[2]))
        super().train(mode)
        return self

    @property
    def reset_interval(self) -> int | None:
        """Number of steps between dead-code resets.

        Set it to None to stop the resets, for example in the last part of training.
        """
        return self.maintenance.reset_interval

    @reset_interval.setter
    def reset_interval(self, value: int | None) -> None:
        self.maintenance.reset_interval = value

    @property
    def mean_gap(self) -> Tensor:
        """Running mean of the distance between a vector and the sum of its codes, a scalar."""
        return self.maintenance.mean_gap

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize vectors, in float32 for every dtype and under autocast.

        Args:
            latent: Vectors, ``[..., D]``, or ``[B, D, ...]`` with ``channel_first``.
            mask: bool of the shape of the leading dimensions, or of the first few of them; False
                where there is no vector. None means that all vectors are present.

        Raises:
            QuantizerError: The vectors have a wrong dimension or values that are not finite. Such
                values are found at once on the CPU, and some steps later by `after_step` on other
                devices.
        """
        layout, rows = Layout.take(latent, self.dim, mask=mask, channel_first=self.channel_first)
        learning = self.training and not self._frozen
        if not learning or is_graph_captured(latent):
            return self._quantize(layout, rows, learning=learning)
        with self._in_flight.lock:
            if not is_in_backward():  # A recomputed batch is recorded already.
                self._keep_up(layout, rows.detach())
            ticket = self._in_flight.open()
        result = self._quantize(layout, rows, learning=True)
        self._in_flight.attach(
            ticket,
            result.quantized,
            result.rest,
            result.commitment_loss,
            result.codebook_loss,
            result.usage_loss,
        )
        return result

    def _quantize(self, layout: Layout, rows: Tensor, *, learning: bool) -> Quantized:
        with full_precision(rows):
            latent = self._project_in(rows)
            present = layout.present(rows)
            weights = present.unsqueeze(1).expand(-1, self.num_levels)
            kept = None
            if learning and self.level_dropout > 0:
                kept = self._draw_levels(present)
                weights = weights * kept
            codes, residuals, left, quantized = self._assign(
                (latent - self.center).detach(), kept, learning=learning
            )
            num_vectors = present.sum().clamp_min(1)
            rest = latent - quantized.detach()
            squared_gap = rest.square().sum(dim=-1)
            commitment = squared_gap @ present / num_vectors
            codebook_loss = commitment.detach()
            if self.codebook_weight > 0:
                errors = (latent.detach() - quantized).square().sum(dim=-1)
                codebook_loss = errors @ present / num_vectors
            usage = commitment.new_zeros(())
            if self.usage_weight > 0:
                codebooks = [level.effective() for level in self._codebooks()]
                usage = usage_loss(residuals, codebooks, weights, all_processes=learning)
            gap = squared_gap.detach().sqrt()
            if learning and _may_record(rows):
                self._record(codes, residuals, gap, weights)
            output = self.estimator(
                latent,
                quantized,
                mean_gap=self._typical_gap(gap, present, learning=learning),
                training=learning,
            )
            return Quantized(
                quantized=layout.vectors(self._project_out(output)),
                codes=layout.codes(codes.where(weights > 0, -1)),
                loss=self.commitment_weight * commitment
                + self.codebook_weight * codebook_loss
                + self.usage_weight * usage,
                commitment_loss=commitment,
                codebook_loss=codebook_loss,
                usage_loss=usage,
                residuals=residuals,
                codebook_sizes=self.codebook_sizes,
                left=left,
                rest=rest,
                present=present,
            )

    def _draw_levels(self, present: Tensor) -> Tensor:
        """Draw which levels each vector uses under level dropout; all vectors use the first.

        Args:
            present: float32 ``[B]``, which gives the number of vectors and their device.

        Returns:
            float32 ``[B, L]``: 1 for a level in use and 0 for a level that is left out.
        """
        cuts = torch.randint(1, self.num_levels + 1, present.shape, device=present.device)
        dropped = torch.rand_like(present) < self.level_dropout
        order = torch.arange(self.num_levels, device=present.device)
        return (order < cuts.where(dropped, self.num_levels).unsqueeze(1)).float()

    def _record(self, codes: Tensor, residuals: list[Tensor], gap: Tensor, weights: Tensor) -> None:
        """Record a training batch, from which `_maintain` later updates the codes."""
        levels, upkeep = self._codebooks(), self.maintenance
        if is_graph_captured(gap):  # Python numbers would be constants of the graph.
            upkeep.record_(levels, codes, residuals, gap, weights, keep_batch=True)
            return
        with self._in_flight.lock:
            self._ripe = self._ripe or torch.is_grad_enabled()
            if is_in_backward():
                return
            is_due = upkeep.is_due(upkeep.num_steps + 1)
            upkeep.record_(levels, codes, residuals, gap, weights, keep_batch=is_due)
            self._num_recorded += 1

    def _keep_up(self, layout: Layout, rows: Tensor) -> None:
        """Start the codes, run due maintenance or log a warning, before a batch of rows ``[B, D]``.

        Codes do not change while an earlier output awaits its backward pass.
        """
        if not self._started:
            self._collect_start(rows if layout.mask is None else rows[layout.mask])
        if self._num_recorded == 0:
            return
        # A process knows no open outputs of others. Only after_step does maintenance there.
        by_hand = self._called_by_user or distributed.world_size() > 1
        if self._ripe and not by_hand and not self._in_flight:
            self._maintain(None, None)
        self._warn_of_waiting(self._num_recorded)

    def _warn_of_waiting(self, num_batches: int) -> None:
        if num_batches < PATIENCE or self._warned:
            return
        self._warned = True
        reason = (
            "after_step() was called before, so maintenance runs only in after_step(), which was "
            "not called since"
            if self._called_by_user
            else "their outputs had no backward pass yet, or they ran without gradients, in a "
            "compiled graph or in one of several processes"
        )
        logger.warning(
            "%d training batches wait for codebook maintenance (moving averages and resets of "
            "dead codes): %s. Call after_step(optimizer) after each step of the optimizer.",
            num_batches,
            reason,
        )

    def _collect_start(self, rows: Tensor) -> None:
        """Collect vectors ``[B, D]`` of all processes; start the codes once there are enough."""
        rows = distributed.gather_rows(rows.float())
        wanted = START_VECTORS_PER_CODE * max(self.codebook_sizes)
        if sum(map(len, self._waiting)) < wanted:
            self._waiting.append(rows)
        # Graphs of earlier outputs have copies of the codes that move now. A gradient checkpoint
        # has none: its forward pass would be computed again with other codes.
        in_use = bool(self._in_flight) and distributed.world_size() == 1
        if sum(map(len, self._waiting)) < wanted or in_use:
            return
        seed = torch.initial_seed() % 2**31
        self._start(lambda: self._fit_start(torch.cat(self._waiting), seed=seed))

    def _start(self, fit: Callable[[], Tensor]) -> None:
        """Start the codes in the first process and copy them to all processes.

        Args:
            fit: Function that starts the codes and returns the mean distance between a vector and
                the sum of its codes.
        """
        gap = fit() if distributed.is_first() else self.mean_gap.clone()
        distributed.take_from_first_([*self.parameters(), *self.buffers(), gap])
        self._forget_past(gap)

    @torch.no_grad()
    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Start the codes of each level by k-means on the residuals of the levels before.

        Projections start as principal components.

        Args:
            vectors: Vectors ``[N, D]``, or in any layout that `forward` takes.
            seed: Seed of k-means.
            balanced: Whether to keep the clusters about equally large.

        Raises:
            QuantizerError: The vectors have a wrong dimension or values that are not finite, or
                there are fewer vectors than codes of a level.
        """
        _, rows = Layout.take(vectors, self.dim, channel_first=self.channel_first)
        if len(rows) < max(self.codebook_sizes):
            raise QuantizerError(
                f"{len(rows)} vectors are too few for {max(self.codebook_sizes)} codes: give more "
                "vectors, or lower codebook_size."
            )
        gap = self._fit_start(rows.float(), seed=seed, balanced=balanced)
        self._forget_past(gap)

    def _forget_past(self, mean_gap: Tensor) -> None:
        """Delete all records of the old codes after a new start.

        Args:
            mean_gap: Mean distance between a vector and the sum of its new codes, a scalar.
        """
        self.mean_gap.copy_(mean_gap)
        self.maintenance.forget_(self._codebooks())
        self._started, self._waiting, self._cache = True, [], None
        self._num_recorded, self._ripe = 0, False

    def freeze(self) -> None:
        """Stop all learning, also in training mode: gradients, moving averages and resets."""
        self._learned = {name for name, p in self.named_parameters() if p.requires_grad}
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # Otherwise an optimizer would still apply it.
        self.maintenance.forget_(self._codebooks())
        self._frozen, self._num_recorded, self._ripe = True, 0, False

    def unfreeze(self) -> None:
        """Resume learning. Parameters that were not trained before `freeze` stay untrained."""
        if self._frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in self._learned)
        self._frozen = False

    @torch.no_grad()
    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Run the codebook maintenance after a step of the optimizer.

        The maintenance updates moving averages, resets dead codes and clips the spectrum of ``W``.
        On several processes (torch.distributed), all processes must call it equally often, after
        equally many training forward passes, even if a forward pass has no vectors. Counts and sums
        are added up over the processes, and codes are reset to vectors of all processes, so the
        codes stay equal.

        Args:
            optimizer: Optimizer of the codes. Its moments of reset codes are set to 0, because old
                moments would move these codes away. None if there is none.
            generator: Source of the random numbers that choose the vectors for reset codes. None
                uses the default generator of torch.

        Returns:
            The number of codes that were reset.

        Raises:
            QuantizerError: A vector since the last check was not finite. There is a check every 50
                steps.
        """
        self._called_by_user = True
        with self._in_flight.lock:
            return self._maintain(optimizer, generator)

    @torch.no_grad()
    def _maintain(
        self, optimizer: torch.optim.Optimizer | None, generator: torch.Generator | None
    ) -> int:
        batch = self.maintenance.batch
        if self._frozen or (self._num_recorded == 0 and batch is None):
            return 0
        self._num_recorded, self._ripe = 0, False
        if not self._started and batch is not None:  # A compiled graph collects no start vectors.
            rows = batch[1][0][batch[0][:, 0] >= 0] + self.center
            self._waiting.append(distributed.gather_rows(rows))
            if sum(map(len, self._waiting)) >= START_VECTORS_PER_CODE * max(self.codebook_sizes):
                self._start(lambda: self._fit_levels(torch.cat(self._waiting), seed=0))
                return 0
        num_reset = self.maintenance.run(self._codebooks(), optimizer, generator)
        if num_reset or self.maintenance.num_steps % self.cache_interval == 0:
            self._cache = None
        return num_reset

    def save(self, path: str | Path) -> None:
        """Write settings and weights to one safetensors file.

        Args:
            path: The file to write.

        Raises:
            QuantizerError: The quantizer has a radius or an estimator of your own, which a file
                cannot describe. Save ``state_dict()`` instead.
        """
        from safetensors.torch import save_file

        settings = dict(self.settings)
        radius, surrogate = settings["radius"], settings["surrogate"]
        if not isinstance(radius, str):
            name = next((name for name, kind in RADII.items() if type(radius) is kind), None)
            settings["radius"] = name and {"name": name, **asdict(radius)}
        if settings["radius"] is None or not isinstance(surrogate, str):
            raise QuantizerError(
                "A quantizer with a custom radius or estimator cannot be saved to a file: save its "
                "state_dict() and build the quantizer in code."
            )
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, metadata={"settings": json.dumps(settings)})

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build a quantizer from settings that `save` wrote."""
        return cls(**settings)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a quantizer from a file that `save` wrote, in eval mode."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["settings"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if isinstance(settings["radius"], dict):
            settings["radius"] = RADII[settings["radius"].pop("name")](**settings["radius"])
        quantizer = cls.of_settings(settings)
        quantizer.load_state_dict(state)
        return quantizer.eval()

    def _assign(
        self, latent: Tensor, kept: Tensor | None, *, learning: bool
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Assign codes and add up the levels that are in use.

        If the codes are cached or outnumber the vectors in training, assignment uses codebooks
        without gradients, and only the chosen codes are transformed with gradients. The values are
        the same up to rounding, for less time and memory.

        Args:
            latent: Vectors, ``[B, C]``.
            kept: 1 for the levels that each vector uses, ``[B, L]``. None uses all levels.
            learning: Whether the quantizer is in training.

        Returns:
            The codes ``[B, L]``, the input of each level, the residuals after all levels, and the
            sum of the codes of the levels in use.
        """
        levels = self._codebooks()
        temperature = self.temperature if learning else 0.0
        cached = self.cache_interval > 1
        whole = not learning or is_graph_captured(latent)
        if whole or not (cached or len(latent) < max(self.codebook_sizes)):
            codebooks: Iterable[Tensor] = (level.effective() for level in levels)
            codes, residuals, left, vectors = walk_levels(latent, codebooks, temperature)
            return codes, residuals, left, self._add_up(vectors, kept)
        if cached and self._cache is None:
            self._cache = self.codebooks
        with torch.no_grad():
            codebooks = self._cache or (level.effective() for level in levels)
            codes, residuals, left, _ = walk_levels(latent, codebooks, temperature)
        used = [level.effective(codes[:, i]) for i, level in enumerate(levels)]
        return codes, residuals, left, self._add_up(used, kept)

    def _typical_gap(self, gap: Tensor, present: Tensor, *, learning: bool) -> Tensor:
        """Return the running mean of the gap or, as long as it is 0, the mean over a batch.

        Args:
            gap: Distance between each vector and the sum of its codes, ``[B]``.
            present: 1 for a vector and 0 where the mask is False, ``[B]``.
            learning: Whether the quantizer is in training.
        """
        if learning and distributed.world_size() > 1 and self.maintenance.num_steps == 0:
            batch_mean = distributed.mean_of_rows(gap, present)
        else:
            batch_mean = gap @ present / present.sum().clamp_min(1)
        return torch.where(self.mean_gap > 0, self.mean_gap, batch_mean)


def _may_record(rows: Tensor) -> bool:
    """Return whether buffers may be written, which is not so in exported graphs and torch.func."""
    if not is_graph_captured(rows):
        return True
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()
