"""Fitting a tokenizer to item features: k-means start, joint training, dead-code resets.

What decides is the start and the resets: k-means on the residuals of *all* items, level by level,
then joint training of the stack on the error of the whole sum, with codes that fall out of use
placed on badly quantized items. The best epoch by reconstruction error over all items is kept.

In several processes (`recgrit.distributed`) the first makes the start, a step's items are divided,
and what is counted is counted over all of them: they fit what one would, up to rounding of sums.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recgrit import distributed
from recgrit.errors import ConfigError
from recgrit.progress import progress_bar
from recgrit.quantization.autoencoder import LearnedTokenizer, QuantizedAutoencoder
from recgrit.quantization.baselines import build_quantizer
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.diagnostics import IdDiagnostics, diagnose_codes
from recgrit.quantization.quantizer import Quantizer
from recgrit.quantization.residual import ResidualGRITVQ

logger = logging.getLogger(__name__)

# No resets in the last part of training: a code placed then cannot settle any more.
RESET_UNTIL = 0.8
# Rows per item, on average, where items weigh by their interactions.
COPIES = 4
# Rows encoded at once when all items are read.
ENCODE_CHUNK = 65_536


@dataclass(frozen=True)
class TokenizerEpoch:
    """Progress after one epoch, over all items: 0 is the k-means start.

    Args:
        epoch: From 0.
        reconstruction_loss: Mean squared error, summed over dimensions, of scaled features.
        collision_rate: Share of items whose ID another item has too.
        mean_gap: Mean distance between a latent and its quantization.
        num_resets: Codes reset in this epoch.
    """

    epoch: int
    reconstruction_loss: float
    collision_rate: float
    mean_gap: float
    num_resets: int


@dataclass(frozen=True)
class FittedCodebooks:
    """A tokenizer at its best epoch.

    Args:
        model: The autoencoder with its quantizer, in eval mode.
        history: One entry per epoch.
        best_epoch: The epoch kept.
        num_fitted: Vectors that were fitted to; items that weigh more are there several times.
    """

    model: QuantizedAutoencoder
    history: list[TokenizerEpoch]
    best_epoch: int
    num_fitted: int


@dataclass(frozen=True)
class FittedTokenizer(FittedCodebooks):
    """A tokenizer at its best epoch, and what it makes of the items.

    Args:
        codes: int64 ``[N, L]``, not yet unique.
        diagnostics: Use of the codes.
    """

    codes: Tensor
    diagnostics: IdDiagnostics


def build_learned_tokenizer(
    feature_dim: int, vector_dim: int, config: TokenizerConfig
) -> LearnedTokenizer:
    """An untrained tokenizer of learned item vectors of this size."""
    return LearnedTokenizer(feature_dim, _build_quantizer(vector_dim, config))


def _build_quantizer(dim: int, config: TokenizerConfig) -> Quantizer:
    return build_quantizer(
        config.quantizer,
        dim,
        config.num_levels,
        config.codebook_sizes,
        kmeans_init=config.init != "random",
        **config.model_dump(include=_QUANTIZER_SETTINGS),
    )


def build_tokenizer(feature_dim: int, config: TokenizerConfig) -> QuantizedAutoencoder:
    """An untrained tokenizer of features of this size."""
    code_dim = config.code_dim if config.autoencoder == "mlp" else feature_dim
    quantizer = _build_quantizer(code_dim, config)
    for level in range(len(config.level_blocks or ())):
        assert isinstance(quantizer, ResidualGRITVQ)
        quantizer.limit_level_(level, slice(None))  # Until a fit or a file says to what.
    return QuantizedAutoencoder(
        feature_dim,
        quantizer,
        hidden_dims=None if config.autoencoder == "none" else config.hidden_dims,
        code_dim=code_dim,
        residual=config.autoencoder == "residual",
    )


_QUANTIZER_SETTINGS = {
    "radius",
    "surrogate",
    "direction_noise",
    "transform",
    "transform_rank",
    "codebook_learning",
    "normalization",
    "normalized_from",
    "commitment_weight",
    "codebook_weight",
    "usage_weight",
    "reset_interval",
    "cache_interval",
}


def fit_tokenizer(
    features: Tensor,
    config: TokenizerConfig,
    *,
    seed: int,
    counts: Tensor | None = None,
    columns: Mapping[str, slice] | None = None,
) -> FittedTokenizer:
    """`fit_codebooks`, and assign every item its codes."""
    fitted = fit_codebooks(features, config, seed=seed, counts=counts, columns=columns)
    codes, norms = assign_codes(fitted.model.quantizer, features, fitted.model.encode_latent)
    diagnostics = diagnose_codes(codes.cpu().numpy(), config.codebook_sizes, norms)
    if distributed.is_first():
        for warning in diagnostics.warnings():
            logger.warning(warning)
    return FittedTokenizer(
        fitted.model, fitted.history, fitted.best_epoch, fitted.num_fitted, codes, diagnostics
    )


def fit_codebooks(
    features: Tensor,
    config: TokenizerConfig,
    *,
    seed: int,
    counts: Tensor | None = None,
    columns: Mapping[str, slice] | None = None,
) -> FittedCodebooks:
    """Fit codebooks to item features, or to a sample of them where there are many.

    Each of several processes is given all features, and has all of what is returned.

    Args:
        features: ``[N, F]``.
        config: Of the tokenizer.
        seed: Fixes all that is drawn.
        counts: Training interactions of each item, ``[N]``, by which `config.item_weight` weighs
            items; None weighs all alike.
        columns: Where the parts of the features stand that `config.level_blocks` names.

    Raises:
        ConfigError: A codebook is larger than the catalogue, all IDs together are fewer than
            the items and no further level tells items apart, or a level is limited to a part that
            the features do not have.
    """
    _check_capacity(len(features), config)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build_tokenizer(features.shape[1], config).to(features.device)
    _limit_levels(model.quantizer, config, columns or {})
    sample = _draw_sample(features, config, seed, counts)
    if distributed.is_first():
        model.fit_normalization_(sample)
        if config.init != "random":
            model.quantizer.fit_init(
                _encode_all(model, sample), seed=seed, balanced=config.init == "balanced_kmeans"
            )
    state = model.state_dict()
    distributed.take_from_first_(state.values())
    model.load_state_dict(state)  # What is counted on the host, too.
    distributed.seed_apart(seed, epoch=0)
    history, best_epoch = _train(model, sample, config, generator)
    model.eval()
    return FittedCodebooks(model, history, best_epoch, len(sample))


def _limit_levels(
    quantizer: Quantizer, config: TokenizerConfig, columns: Mapping[str, slice]
) -> None:
    for level, name in enumerate(config.level_blocks or ()):
        if name not in columns:
            raise ConfigError(
                f"tokenizer.level_blocks names {name!r}, which is no part of the features: "
                f"{', '.join(columns) or 'these have no parts'}."
            )
        assert isinstance(quantizer, ResidualGRITVQ)
        quantizer.limit_level_(level, columns[name])


def _train(
    model: QuantizedAutoencoder,
    features: Tensor,
    config: TokenizerConfig,
    generator: torch.Generator,
) -> tuple[list[TokenizerEpoch], int]:
    """Train to the end and go back to the best epoch."""
    history = [_measure(model, features, epoch=0, num_resets=0)]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moving = isinstance(model.quantizer, ResidualGRITVQ) and model.quantizer.learns_by_averages
    if not learned and not moving:
        return history, 0
    optimizer = torch.optim.Adam(learned, lr=config.learning_rate) if learned else None
    steps_per_epoch = -(-len(features) // config.batch_size)
    num_steps = max(1, config.epochs * steps_per_epoch)
    schedule = optimizer and torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    best_state, best_epoch = _copy_state(model), 0
    step = 0
    with progress_bar("tokenizer", config.epochs) as bar:
        for epoch in range(1, config.epochs + 1):
            model.train()
            num_resets = 0
            order = torch.randperm(len(features), generator=generator).to(features.device)
            for rows in order.split(config.batch_size):
                mine = rows[distributed.share(len(rows))]
                result = model(features[mine])
                if optimizer is not None and schedule is not None:
                    loss = result.reconstruction_loss + result.quantized.loss
                    optimizer.zero_grad(set_to_none=True)
                    (loss * (len(mine) / len(rows))).backward()
                    distributed.sum_([p.grad for p in learned if p.grad is not None])
                    optimizer.step()
                    schedule.step()
                step += 1
                if step >= RESET_UNTIL * num_steps and isinstance(model.quantizer, ResidualGRITVQ):
                    model.quantizer.reset_interval = None
                num_resets += model.quantizer.after_step(optimizer, generator=generator)
            history.append(_measure(model, features, epoch=epoch, num_resets=num_resets))
            latest = history[-1]
            if latest.reconstruction_loss < history[best_epoch].reconstruction_loss:
                best_state, best_epoch = _copy_state(model), epoch
            bar.advance(note=f"error {latest.reconstruction_loss:.4f}")
    model.load_state_dict(best_state)
    return history, best_epoch


@torch.no_grad()
def assign_codes(
    quantizer: Quantizer, features: Tensor, encode: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[float, ...]]:
    """Codes ``[N, L]`` and the mean residual norm per level, a chunk of items at a time.

    Besides the codes, memory does not grow with N: ``features`` may lie in a file.

    Args:
        quantizer: In eval mode.
        features: Of the items, ``[N, F]``.
        encode: From features to what is quantized.
    """
    codes = []
    norms = torch.zeros(len(quantizer.codebook_sizes), dtype=torch.float64)
    for rows in features.split(ENCODE_CHUNK):
        result = quantizer(encode(rows))
        codes.append(result.codes)
        norms += torch.tensor([r.norm(dim=-1).sum().item() for r in result.residuals])
    return torch.cat(codes), tuple((norms / len(features)).tolist())


@torch.no_grad()
def _measure(
    model: QuantizedAutoencoder, features: Tensor, *, epoch: int, num_resets: int
) -> TokenizerEpoch:
    model.eval()
    total, gaps, codes = 0.0, 0.0, []
    for rows in features[distributed.share(len(features))].split(ENCODE_CHUNK):
        latent = model.encode_latent(rows)
        result = model(rows)
        total += result.reconstruction_loss.item() * len(rows)
        gaps += (latent - result.quantized.quantized).norm(dim=-1).sum().item()
        codes.append(result.quantized.codes)
    total, gaps = distributed.sum_numbers(total, gaps)
    all_codes = distributed.gather_rows(torch.cat(codes))
    _, counts = torch.unique(all_codes, dim=0, return_counts=True)
    return TokenizerEpoch(
        epoch=epoch,
        reconstruction_loss=total / len(features),
        collision_rate=counts[counts > 1].sum().item() / len(features),
        mean_gap=gaps / len(features),
        num_resets=num_resets,
    )


@torch.no_grad()
def _encode_all(model: QuantizedAutoencoder, features: Tensor) -> Tensor:
    return torch.cat([model.encode_latent(rows) for rows in features.split(ENCODE_CHUNK)])


def _draw_sample(
    features: Tensor, config: TokenizerConfig, seed: int, counts: Tensor | None
) -> Tensor:
    """Rows to fit to: items that weigh more are there more often."""
    generator = torch.Generator().manual_seed(seed)
    if counts is not None and config.item_weight > 0:
        rows = _draw_weighted(counts.cpu(), config, generator)
    elif len(features) > config.sample_items:
        rows = torch.randperm(len(features), generator=generator)[: config.sample_items]
    else:
        return features
    return features[rows.sort().values.to(features.device)]


def _draw_weighted(counts: Tensor, config: TokenizerConfig, generator: torch.Generator) -> Tensor:
    weights = counts.clamp_min(1).double() ** config.item_weight
    if len(counts) > config.sample_items:
        return torch.multinomial(weights, config.sample_items, generator=generator)
    # Every item at least once, so that no code is placed without regard to the rare ones.
    wanted = min(COPIES * len(counts), config.sample_items) * weights / weights.sum()
    extra = torch.rand(len(counts), generator=generator, dtype=torch.float64) < wanted.frac()
    copies = (wanted.floor() + extra).clamp_min(1).long()
    return torch.arange(len(counts)).repeat_interleave(copies)


def _copy_state(model: QuantizedAutoencoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _check_capacity(num_items: int, config: TokenizerConfig) -> None:
    sizes = config.codebook_sizes
    if max(sizes) > num_items:
        raise ConfigError(
            f"tokenizer.codebook_size {max(sizes)} is larger than the catalogue of "
            f"{num_items} items: choose at most {num_items}."
        )
    capacity = math.prod(sizes)
    if capacity < num_items and config.unique_ids != "disambiguation":
        raise ConfigError(
            f"Codebooks of {' x '.join(map(str, sizes))} codes give {capacity} IDs for "
            f"{num_items} items: raise tokenizer.codebook_size or tokenizer.num_levels, or set "
            "tokenizer.unique_ids=disambiguation."
        )
