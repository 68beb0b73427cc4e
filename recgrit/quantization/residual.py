"""Stacked GRIT-VQ: levels that each quantize what the levels before left over.

Two choices matter. Between levels the residual is *detached*: assignment is hard anyway, and
chaining gradients through the levels starves the first. And there is **one surrogate on the sum**
of all levels instead of one per level: summed straight-through estimators multiply the encoder's
gradient by the number of levels. Each code still gets its gradient through the sum.

In training, codebook maintenance belongs between steps: moving averages, dead-code resets, spectral
clip.
Call `ResidualGRITVQ.after_step` with your optimizer after its step, also where a step follows
several forwards; whoever never calls it gets the same at the start of the next training forward,
never between a forward and its backward.

Shapes: B vectors (any leading dimensions), D dimensions, L levels, K codes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit import distributed
from recgrit.quantization.codebook import Codebook, CodebookLearning, Normalization
from recgrit.quantization.estimators import GradientEstimator, RadiusSurrogate
from recgrit.quantization.maintenance import CodebookMaintenance
from recgrit.quantization.quantizer import Quantized, QuantizerError, check_vectors
from recgrit.quantization.radius import RADII, Radius, SurrogateForm
from recgrit.quantization.transform import TransformKind

logger = logging.getLogger(__name__)

_NOT_SETTINGS = ("self", "__class__")
# Steps between two looks at the spectrum of W.
CLIP_INTERVAL = 50
# A mean of this many times the spread eats digits of the distances: it is taken off first.
LARGE_MEAN = 3.0


class ResidualGRITVQ(nn.Module):
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
        radius: Splits the gradient between encoder and codes: a name or a `Radius`.
        surrogate: ``additive`` or ``multiplicative``, or another `GradientEstimator`, which then
            stands in for radius and noise.
        direction_noise: Relative noise on the surrogate's direction in training.
        transform: ``linear``, ``attention`` or ``identity``.
        transform_rank: Rank of each level's mixing over codes; 0 leaves only W.
        codebook_learning: ``joint``, ``frozen`` (only the transform learns) or ``ema``.
        normalization: ``two_sided``, ``none``, or ``codes`` as published.
        normalized_from: First level, from 0, that is normalized.
        commitment_weight: Of the commitment loss.
        codebook_weight: Of the codebook loss.
        usage_weight: Of the usage loss; it costs a softmax over all codes.
        ema_decay: Weight of the past in moving averages.
        reset_interval: Steps between resets of dead codes; None for none.
        cache_interval: Steps for which assignment in training uses the same transformed codebooks.
            Worth it for small batches and large K only.

    Raises:
        QuantizerError: A size is not positive, or the codebook sizes do not match the levels.
        ConfigError: Settings that exclude one another.
    """

    mean_gap: Tensor
    center: Tensor

    def __init__(
        self,
        dim: int,
        num_levels: int = 3,
        codebook_size: int | Sequence[int] = 256,
        *,
        radius: str | Radius = "euclidean",
        surrogate: SurrogateForm | GradientEstimator = "additive",
        direction_noise: float = 0.0,
        transform: TransformKind = "linear",
        transform_rank: int = 8,
        codebook_learning: CodebookLearning = "joint",
        normalization: Normalization = "two_sided",
        normalized_from: int = 1,
        commitment_weight: float = 0.05,
        codebook_weight: float = 0.0,
        usage_weight: float = 0.0,
        ema_decay: float = 0.99,
        reset_interval: int | None = 50,
        cache_interval: int = 1,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
        super().__init__()
        sizes = _check_sizes(dim, num_levels, codebook_size)
        if normalization == "codes" and num_levels > max(1, normalized_from):
            logger.warning(
                "normalization='codes' gives unit codes to residuals that are not of unit length: "
                "later levels then hardly help. normalization='two_sided' mends it."
            )
        self.settings = settings
        self.dim = dim
        self.estimator = _build_estimator(radius, surrogate, direction_noise)
        self.levels = nn.ModuleList(
            Codebook(
                size,
                dim,
                transform=transform,
                rank=transform_rank,
                normalization=normalization if level >= normalized_from else "none",
                learning=codebook_learning,
            )
            for level, size in enumerate(sizes)
        )
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.usage_weight = usage_weight
        self.cache_interval = cache_interval
        self.register_buffer("mean_gap", torch.zeros(()))
        self.register_buffer("center", torch.zeros(dim))
        self._frozen = False
        self._pending = False
        self._called_by_user = False
        self._num_steps = 0
        self._cache: list[Tensor] | None = None
        self._maintenance = CodebookMaintenance(codebook_learning, ema_decay, reset_interval)

    @property
    def learns_by_averages(self) -> bool:
        """Whether moving averages train the codes, with no need of an optimizer."""
        return self._maintenance.learning == "ema"

    @property
    def reset_interval(self) -> int | None:
        """Steps between resets of dead codes; set it to None to end them, as late in training."""
        return self._maintenance.reset_interval

    @reset_interval.setter
    def reset_interval(self, value: int | None) -> None:
        self._maintenance.reset_interval = value

    def _codebooks(self) -> list[Codebook]:
        return [level for level in self.levels if isinstance(level, Codebook)]

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return tuple(level.codebook_size for level in self._codebooks())

    @property
    def codebooks(self) -> list[Tensor]:
        """The codes in use, transformed and scaled: one ``[K, D]`` per level, copied."""
        with torch.no_grad():
            # Without a transform these are the parameters themselves, which go on learning.
            return [level.effective().clone() for level in self._codebooks()]

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``[..., D]``; computed in float32 whatever the autocast.

        Args:
            latent: The vectors.
            mask: bool ``[...]``, False where there is no vector.

        Raises:
            QuantizerError: Wrong dimension or values that are not finite.
        """
        learning = self.training and not self._frozen
        if learning and self._pending and not self._called_by_user:
            self._maintain(None, None)
        flat = latent.reshape(-1, latent.shape[-1]) if mask is None else latent[mask]
        check_vectors(flat, self.dim)
        with torch.autocast(latent.device.type, enabled=False):
            flat = flat.float()
            centred = flat - self.center
            codes, residuals, quantized = self._quantize(centred.detach(), learning=learning)
            squared_gap = (flat - quantized.detach()).square().sum(dim=-1)
            commitment = squared_gap.sum() / max(1, len(flat))
            codebook_loss = commitment.detach()
            if self.codebook_weight > 0:
                codebook_loss = (flat.detach() - quantized).square().sum() / max(1, len(flat))
            usage = commitment.new_zeros(())
            if self.usage_weight > 0:
                codebooks = [level.effective() for level in self._codebooks()]
                usage = _usage_loss(residuals, codebooks, all_processes=learning)
            if learning:
                self._pending = True
                self._maintenance.record(
                    self._codebooks(), codes, residuals, squared_gap.detach(), self._num_steps + 1
                )
            output = self.estimator(
                flat,
                quantized,
                mean_gap=self._typical_gap(squared_gap, learning=learning),
                training=learning,
            )
            return Quantized(
                quantized=_scatter(output, latent.shape, mask, 0.0),
                codes=_scatter(codes, (*latent.shape[:-1], self.num_levels), mask, -1),
                loss=self.commitment_weight * commitment
                + self.codebook_weight * codebook_loss
                + self.usage_weight * usage,
                commitment_loss=commitment,
                codebook_loss=codebook_loss,
                usage_loss=usage,
                residuals=residuals,
                codebook_sizes=self.codebook_sizes,
            )

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Codes of ``[..., D]``, int64 ``[..., L]``."""
        check_vectors(latent, self.dim)
        with torch.autocast(latent.device.type, enabled=False):
            flat = latent.reshape(-1, self.dim).float() - self.center
            codes, _, _ = self._walk(flat, self.codebooks)
        return codes.reshape(*latent.shape[:-1], self.num_levels)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors ``[..., D]`` that codes ``[..., L]`` stand for; 0 for codes of -1."""
        with torch.autocast(codes.device.type, enabled=False):
            flat = codes.reshape(-1, self.num_levels)
            places = flat.clamp_min(0).unbind(dim=-1)
            vectors = self._add_up(
                [
                    F.embedding(place, book)
                    for place, book in zip(places, self.codebooks, strict=True)
                ]
            )
            vectors = vectors.masked_fill((flat < 0).any(dim=-1, keepdim=True), 0.0)
        return vectors.reshape(*codes.shape[:-1], self.dim)

    @torch.no_grad()
    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Place every level's codes by k-means on what the levels before left of ``[N, D]``.

        Args:
            vectors: ``[N, D]``.
            seed: Of k-means.
            balanced: Keep the clusters about equally large.

        Raises:
            QuantizerError: Wrong dimension, values that are not finite, or too few vectors.
        """
        check_vectors(vectors, self.dim)
        flat = vectors.reshape(-1, self.dim).float()
        if len(flat) < max(self.codebook_sizes):
            raise QuantizerError(
                f"{len(flat)} vectors cannot start {max(self.codebook_sizes)} codes: give more "
                "vectors, or lower codebook_size."
            )
        mean = flat.mean(dim=0)
        spread = (flat - mean).square().sum(dim=-1).mean()
        self.center.copy_(mean if mean.square().sum() > LARGE_MEAN**2 * spread else 0.0 * mean)
        residual = flat - self.center
        for level in self._codebooks():
            level.fit_init_(residual, seed=seed, balanced=balanced)
            codes = level.effective()
            residual = residual - F.embedding(level.assign(residual, codes), codes)
        self.mean_gap.copy_(residual.norm(dim=-1).mean())
        self._maintenance.forget()
        self._pending, self._cache = False, None

    def freeze(self) -> None:
        """Learn no more: no gradients, no moving averages, no resets, in training mode too."""
        self.requires_grad_(False)
        self._frozen, self._pending = True, False

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
        """
        self._called_by_user = True
        return self._maintain(optimizer, generator)

    @torch.no_grad()
    def _maintain(
        self, optimizer: torch.optim.Optimizer | None, generator: torch.Generator | None
    ) -> int:
        if not self._pending:
            return 0
        self._pending = False
        self._num_steps += 1
        num_reset = self._maintenance.run(
            self._codebooks(), self.mean_gap, self._num_steps, optimizer, generator
        )
        if self._num_steps % CLIP_INTERVAL == 0:
            for level in self._codebooks():
                level.transform.clip_spectrum_()
        if num_reset or self._num_steps % self.cache_interval == 0:
            self._cache = None
        return num_reset

    @torch.no_grad()
    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """What the last level is given for ``[B, D]``, and its codes ``[K, D]``."""
        codebooks = self.codebooks
        _, residuals, _ = self._walk(latent.float() - self.center, codebooks)
        return residuals[-1], codebooks[-1]

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
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; in eval mode."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["settings"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if isinstance(settings["radius"], dict):
            settings["radius"] = RADII[settings["radius"].pop("name")](**settings["radius"])
        quantizer = cls(**settings)
        quantizer.load_state_dict(state)
        return quantizer.eval()

    def _walk(
        self, latent: Tensor, codebooks: Iterable[Tensor]
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Codes, what each level was given, and the sum of the codes' vectors."""
        residual, residuals, chosen, vectors = latent, [], [], []
        for level, codebook in zip(self._codebooks(), codebooks, strict=True):
            residuals.append(residual)
            chosen.append(level.assign(residual, codebook))
            vectors.append(F.embedding(chosen[-1], codebook))
            residual = residual - vectors[-1].detach()
        return torch.stack(chosen, dim=-1), residuals, self._add_up(vectors)

    def _quantize(self, latent: Tensor, *, learning: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """Codes, residuals and the sum of codes.

        In training, where codes are cached or outnumber the vectors, assignment looks at codebooks
        without gradients, and only the codes in use are transformed with them: the same values up
        to rounding, for less time and memory.
        """
        cached = self.cache_interval > 1
        if not learning or not (cached or len(latent) < max(self.codebook_sizes)):
            return self._walk(latent, (level.effective() for level in self._codebooks()))
        if cached and self._cache is None:
            self._cache = self.codebooks
        with torch.no_grad():
            one_by_one = (level.effective() for level in self._codebooks())
            codes, residuals, _ = self._walk(latent, self._cache or one_by_one)
        used = [level.effective(codes[:, i]) for i, level in enumerate(self._codebooks())]
        return codes, residuals, self._add_up(used)

    def _add_up(self, vectors: list[Tensor]) -> Tensor:
        """The one place where levels become a sum: training and decoding agree to the bit."""
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        return total + self.center

    def _typical_gap(self, squared_gap: Tensor, *, learning: bool) -> Tensor:
        """The running mean of the gap, or the batch's before there is one."""
        if self.mean_gap > 0:
            return self.mean_gap
        gap = squared_gap.detach().sqrt()
        return distributed.mean_of_rows(gap) if learning else gap.mean()


def _check_sizes(dim: int, num_levels: int, codebook_size: int | Sequence[int]) -> list[int]:
    sizes = [codebook_size] * num_levels if isinstance(codebook_size, int) else list(codebook_size)
    if dim < 1 or num_levels < 1 or min(sizes, default=0) < 1:
        raise QuantizerError(
            f"dim, num_levels and codebook_size must be positive, got {dim}, {num_levels} and "
            f"{codebook_size}."
        )
    if len(sizes) != num_levels:
        raise QuantizerError(f"Expected {num_levels} codebook sizes, got {len(sizes)}.")
    return sizes


def _build_estimator(
    radius: str | Radius, surrogate: SurrogateForm | GradientEstimator, direction_noise: float
) -> GradientEstimator:
    if isinstance(radius, str):
        if radius not in RADII:
            raise QuantizerError(f"Unknown radius {radius!r}: choose from {', '.join(RADII)}.")
        radius = RADII[radius]()
    if not isinstance(surrogate, str):
        return surrogate
    if surrogate not in get_args(SurrogateForm):
        raise QuantizerError(f"Unknown surrogate {surrogate!r}: additive or multiplicative.")
    return RadiusSurrogate(radius, surrogate, direction_noise)


def _scatter(
    rows: Tensor, shape: torch.Size | tuple[int, ...], mask: Tensor | None, blank: float
) -> Tensor:
    """Rows back in their places, ``blank`` where the mask is False."""
    if mask is None:
        return rows.reshape(shape)
    return rows.new_full(tuple(shape), blank).masked_scatter(mask.unsqueeze(-1).expand(shape), rows)


def _usage_loss(residuals: list[Tensor], codebooks: list[Tensor], *, all_processes: bool) -> Tensor:
    """1 - normalised entropy of the mean soft assignment, averaged over levels.

    The softmax is over squared distances in units of their mean to the nearest code, so that it is
    as soft as the level's own gap is wide. With ``all_processes``, the mean is that over the
    vectors of all processes, and the gradient this process's part of it: to be weighted by
    vectors, as a mean's is.
    """
    losses = []
    for residual, codes in zip(residuals, codebooks, strict=True):
        distances = torch.cdist(residual, codes).square()
        nearest = distances.detach().amin(dim=-1)
        unit = (distributed.mean_of_rows(nearest) if all_processes else nearest.mean()).clamp_min(
            1e-12
        )
        soft = (-distances / unit).softmax(dim=-1)
        share = soft.sum(dim=0) / max(1, len(soft))
        if all_processes and distributed.world_size() > 1:
            share = share + (distributed.mean_of_rows(soft) - share.detach())
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        losses.append(1 - entropy / max(math.log(len(codes)), 1e-12))
    return torch.stack(losses).mean()
