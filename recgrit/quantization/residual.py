"""Stacked GRIT-VQ: levels that each quantize what the levels before left over.

Two choices matter. Between levels the residual is *detached*: assignment is hard anyway, and
chaining gradients through the levels starves the first. And there is **one surrogate on the sum**
of all levels instead of one per level: summed straight-through estimators multiply the encoder's
gradient by the number of levels. Each code still gets its gradient through the sum.

In training, codebook maintenance belongs between steps: moving averages, dead-code resets, spectral
clip. Call `ResidualGRITVQ.after_step` with your optimizer after its step, also where a step follows
several forwards. Whoever never calls it gets the same at the start of a later training forward,
once no earlier output awaits its backward. On several processes, and in a graph that torch.compile
makes of the module, nothing is done but to record: there `ResidualGRITVQ.after_step` has to be
called.

Shapes: B vectors (any leading dimensions), D dimensions, C dimensions of the codes, L levels, K
codes.
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
# Vectors for each code, before training starts the codes by k-means: of fewer, later levels would
# have nothing to quantize.
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
        dim: D, size of the vectors.
        num_levels: L.
        codebook_size: K, one for all levels or one per level.
        codebook_dim: C, size of the codes, lower than D with learned projections; None for D.
        channel_first: Whether vectors lie in dimension 1, ``[B, D, ...]``, and not in the last;
            None for the last, but refused for four dimensions and more where both have size D.
        kmeans_init: Start the codes by k-means on the first training batches, unless `fit_init` was
            called before; else they start at random.
        radius: Splits the gradient between encoder and codes: a name or a `Radius`.
        surrogate: ``additive`` or ``multiplicative``, or another `GradientEstimator`, which then
            stands in for radius and noise.
        direction_noise: Relative noise on the surrogate's direction in training.
        transform: ``linear``, ``attention`` or ``identity``.
        transform_rank: Rank of each level's mixing over codes; 0 leaves only W.
        codebook_learning: ``joint``, ``frozen`` (only the transform learns) or ``ema``.
        normalization: ``two_sided``, ``none``, or ``codes`` as published.
        normalized_from: First level, from 0, that is normalized.
        level_dropout: Share of the vectors in training that use only the first few levels, as many
            as are drawn: prefixes of IDs then mean something on their own.
        temperature: In training, codes are drawn from ``softmax(-d² / (temperature u))``, u being
            the mean squared distance to the nearest code; 0 takes the nearest.
        commitment_weight: Of the commitment loss.
        codebook_weight: Of the codebook loss.
        usage_weight: Of the usage loss; it costs a softmax over all codes.
        ema_decay: Weight of the past in moving averages.
        reset_interval: Steps between resets of dead codes; None for none.
        dead_below: A code is dead when it is used less than this fraction of an even use.
        cache_interval: Steps for which assignment in training uses the same transformed codebooks.
            Worth it for small batches and large K only.

    Raises:
        QuantizerError: A size is not positive, or the codebook sizes do not match the levels.
        ConfigError: Settings that exclude one another.
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
                "later levels then hardly help. normalization='two_sided' mends it."
            )
        # Numbers may be numpy's: a file takes Python's.
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
        # What gradients train, for after a freeze.
        self._learned = {name for name, p in self.named_parameters() if p.requires_grad}
        self._started = not kmeans_init
        self._waiting: list[Tensor] = []  # Vectors that k-means will start from.
        self._num_recorded = 0  # Training batches since the last maintenance,
        self._ripe = False  # and whether a gradient was asked for in one of them.
        self._called_by_user = False
        self._warned = False
        self._cache: list[Tensor] | None = None

    def get_extra_state(self) -> Tensor:
        """State that is kept in Python: the start, freezing, and batches since the last step."""
        known = self._started, self._frozen, self._num_recorded, self._ripe, self._called_by_user
        return torch.tensor(known).long()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from where `get_extra_state` was asked."""
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
        """Switch modes; warn if many training batches were recorded without maintenance."""
        if self.training and not mode and not self.center.is_meta:
            self._warn_of_waiting(int(self.maintenance.recorded[2]))
        super().train(mode)
        return self

    @property
    def reset_interval(self) -> int | None:
        """Steps between resets of dead codes; set it to None to end them, as late in training."""
        return self.maintenance.reset_interval

    @reset_interval.setter
    def reset_interval(self, value: int | None) -> None:
        self.maintenance.reset_interval = value

    @property
    def mean_gap(self) -> Tensor:
        """Running mean of the distance between a vector and its codes' sum, a scalar."""
        return self.maintenance.mean_gap

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``[..., D]``; computed in float32 whatever the dtype and the autocast.

        Args:
            latent: The vectors; ``[B, D, ...]`` with ``channel_first``.
            mask: bool ``[...]``, or its first dimensions; False where there is no vector.

        Raises:
            QuantizerError: Wrong dimension, or values that are not finite (on the CPU at once,
                elsewhere from `after_step`, some steps later).
        """
        layout, rows = Layout.take(latent, self.dim, mask=mask, channel_first=self.channel_first)
        learning = self.training and not self._frozen
        if not learning or is_graph_captured(latent):
            return self._quantize(layout, rows, learning=learning)
        with self._in_flight.lock:
            if not is_in_backward():  # Of a checkpoint that was recorded when it was first passed.
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
        """float32 ``[B, L]``: 1 for levels that are used, at least the first."""
        cuts = torch.randint(1, self.num_levels + 1, present.shape, device=present.device)
        dropped = torch.rand_like(present) < self.level_dropout
        order = torch.arange(self.num_levels, device=present.device)
        return (order < cuts.where(dropped, self.num_levels).unsqueeze(1)).float()

    def _record(self, codes: Tensor, residuals: list[Tensor], gap: Tensor, weights: Tensor) -> None:
        """Take note of a batch for `_maintain`."""
        levels, upkeep = self._codebooks(), self.maintenance
        if is_graph_captured(gap):  # Numbers of the host would be constants of the graph.
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
        """Start the codes, run maintenance or warn, before a training batch ``[B, D]``.

        Codes do not change while an earlier output awaits its backward pass.
        """
        if not self._started:
            self._collect_start(rows if layout.mask is None else rows[layout.mask])
        if self._num_recorded == 0:
            return
        # Several processes cannot know of one another's outputs: there it is for after_step alone.
        by_hand = self._called_by_user or distributed.world_size() > 1
        if self._ripe and not by_hand and not self._in_flight:
            self._maintain(None, None)
        self._warn_of_waiting(self._num_recorded)

    def _warn_of_waiting(self, num_batches: int) -> None:
        if num_batches < PATIENCE or self._warned:
            return
        self._warned = True
        reason = (
            "after_step() was called before, which leaves the maintenance to you, and was not "
            "called since"
            if self._called_by_user
            else "their outputs await a backward pass, they were made without gradients, in a "
            "compiled graph or in one of several processes"
        )
        logger.warning(
            "%d training batches wait for codebook maintenance, moving averages and resets of "
            "dead codes: %s. Call after_step(optimizer) after each step of the optimizer.",
            num_batches,
            reason,
        )

    def _collect_start(self, rows: Tensor) -> None:
        """Start by k-means once there are enough vectors ``[B, D]``, of all processes together."""
        rows = distributed.gather_rows(rows.float())
        wanted = START_VECTORS_PER_CODE * max(self.codebook_sizes)
        if sum(map(len, self._waiting)) < wanted:
            self._waiting.append(rows)
        # The graphs of earlier outputs hold copies of what moves now. A checkpoint holds none: it
        # would be computed anew with other codes.
        in_use = bool(self._in_flight) and distributed.world_size() == 1
        if sum(map(len, self._waiting)) < wanted or in_use:
            return
        seed = torch.initial_seed() % 2**31
        self._start(lambda: self._fit_start(torch.cat(self._waiting), seed=seed))

    def _start(self, fit: Callable[[], Tensor]) -> None:
        """Start the codes in the first process, by what returns the mean gap, for all of them."""
        gap = fit() if distributed.is_first() else self.mean_gap.clone()
        distributed.take_from_first_([*self.parameters(), *self.buffers(), gap])
        self._forget_past(gap)

    @torch.no_grad()
    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Place every level's codes by k-means on what the levels before left of ``[N, D]``.

        Projections start as principal components.

        Args:
            vectors: ``[N, D]``, or in any layout that `forward` takes.
            seed: Of k-means.
            balanced: Keep the clusters about equally large.

        Raises:
            QuantizerError: Wrong dimension, values that are not finite, or too few vectors.
        """
        _, rows = Layout.take(vectors, self.dim, channel_first=self.channel_first)
        if len(rows) < max(self.codebook_sizes):
            raise QuantizerError(
                f"{len(rows)} vectors cannot start {max(self.codebook_sizes)} codes: give more "
                "vectors, or lower codebook_size."
            )
        gap = self._fit_start(rows.float(), seed=seed, balanced=balanced)
        self._forget_past(gap)

    def _forget_past(self, mean_gap: Tensor) -> None:
        """Drop statistics of the old codes after a new start."""
        self.mean_gap.copy_(mean_gap)
        self.maintenance.forget_(self._codebooks())
        self._started, self._waiting, self._cache = True, [], None
        self._num_recorded, self._ripe = 0, False

    def freeze(self) -> None:
        """Stop learning: no gradients, moving averages or resets, even in training mode."""
        self._learned = {name for name, p in self.named_parameters() if p.requires_grad}
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None  # Or an optimizer would go on with it.
        self.maintenance.forget_(self._codebooks())
        self._frozen, self._num_recorded, self._ripe = True, 0, False

    def unfreeze(self) -> None:
        """Resume learning; parameters that were not trained before `freeze` stay untrained."""
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
        """Codebook maintenance after an optimizer's step.

        It updates moving averages, resets dead codes and clips the spectrum of W. On several
        processes (torch.distributed) all must call it alike, after as many training forwards, be
        they of no vectors: counts and sums are added up, and codes are reset from the vectors of
        all, so that all processes stay equal.

        Args:
            optimizer: Its state of reset codes is cleared; else old moments would drag them away.
            generator: Draws where reset codes go.

        Returns:
            The number of codes reset.

        Raises:
            QuantizerError: Some vector since the last look, which is every 50 steps, was not
                finite.
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
        if not self._started and batch is not None:  # In a compiled graph nobody collects a start.
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
        """Write settings and weights as one safetensors file.

        Raises:
            QuantizerError: A radius or estimator of your own: only names and the radii of this
                package can be written down. Save ``state_dict()`` instead.
        """
        from safetensors.torch import save_file

        settings = dict(self.settings)
        radius, surrogate = settings["radius"], settings["surrogate"]
        if not isinstance(radius, str):
            name = next((name for name, kind in RADII.items() if type(radius) is kind), None)
            settings["radius"] = name and {"name": name, **asdict(radius)}
        if settings["radius"] is None or not isinstance(surrogate, str):
            raise QuantizerError(
                "A radius or estimator of your own cannot be written down: save state_dict() and "
                "build the quantizer in code."
            )
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, metadata={"settings": json.dumps(settings)})

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A quantizer of settings that `save` wrote."""
        return cls(**settings)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; in eval mode."""
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
        """Codes, what each level was given and all left over, and the sum of the levels kept.

        In training, where codes are cached or outnumber the vectors, assignment looks at codebooks
        without gradients, and only the codes in use are transformed with them: the same values up
        to rounding, for less time and memory.
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
        """The running mean of the gap ``[B]``, or the batch's before there is one."""
        if learning and distributed.world_size() > 1 and self.maintenance.num_steps == 0:
            batch_mean = distributed.mean_of_rows(gap, present)
        else:
            batch_mean = gap @ present / present.sum().clamp_min(1)
        return torch.where(self.mean_gap > 0, self.mean_gap, batch_mean)


def _may_record(rows: Tensor) -> bool:
    """Whether buffers may be written: not in an exported graph, nor under torch.func."""
    if not is_graph_captured(rows):
        return True
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()
