"""The fit of a tokenizer to item features: k-means start, joint training, dead-code resets.

The start and the resets decide the quality. K-means runs level by level on the residuals of all
items to fit to. Then the stack is trained jointly on the error of the sum of all levels. Codes that
fall out of use are placed on badly quantized items. The weights of the epoch with the lowest
reconstruction error over all these items are kept.

On several processes (`recgrit.distributed`), the first process makes the start, each step's items
are split, and all counts cover all processes. The result equals that of one process up to the
rounding of sums.

Shapes: N items, F dimensions of the features, L levels.
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

# Share of the training steps after which dead codes are no longer reset, because a code that is
# placed later has no time to settle.
RESET_UNTIL = 0.8
# Mean number of rows per item if items have weights.
COPIES = 4
# Number of rows that are encoded at once when all items are read.
ENCODE_CHUNK = 65_536


@dataclass(frozen=True)
class TokenizerEpoch:
    """Measures over all items to fit to, after one epoch of the fit.

    Args:
        epoch: Number of the epoch. 0 is the start, before any training.
        reconstruction_loss: Squared error of the scaled features, summed over dimensions and
            averaged over items.
        collision_rate: Share of the items whose ID another item has too.
        mean_gap: Mean distance between a latent vector and its quantized vector.
        num_resets: Number of codes that were reset in this epoch.
    """

    epoch: int
    reconstruction_loss: float
    collision_rate: float
    mean_gap: float
    num_resets: int


@dataclass(frozen=True)
class FittedCodebooks:
    """Codebooks with the weights of their best epoch.

    Args:
        model: The autoencoder with its quantizer, in eval mode.
        history: Measures of each epoch, the start included.
        best_epoch: Number of the epoch whose weights are kept.
        num_fitted: Number of vectors in the fit. An item with a high weight is counted several
            times.
    """

    model: QuantizedAutoencoder
    history: list[TokenizerEpoch]
    best_epoch: int
    num_fitted: int


@dataclass(frozen=True)
class FittedTokenizer(FittedCodebooks):
    """Codebooks with the weights of their best epoch, and the codes of all items.

    Args:
        codes: Codes of all items, int64 ``[N, L]``. Several items may have the same codes.
        diagnostics: Measures of how the codes are used.
    """

    codes: Tensor
    diagnostics: IdDiagnostics


def build_learned_tokenizer(
    feature_dim: int, vector_dim: int, config: TokenizerConfig
) -> LearnedTokenizer:
    """Build an untrained tokenizer of learned item vectors.

    Args:
        feature_dim: Number of dimensions of the item features.
        vector_dim: Number of dimensions of the learned item vectors.
        config: Settings of the tokenizer.
    """
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
    """Build an untrained tokenizer of item features.

    Args:
        feature_dim: Number of dimensions of the item features.
        config: Settings of the tokenizer.
    """
    code_dim = config.code_dim if config.autoencoder == "mlp" else feature_dim
    quantizer = _build_quantizer(code_dim, config)
    for level in range(len(config.level_blocks or ())):
        assert isinstance(quantizer, ResidualGRITVQ)
        quantizer.limit_level_(level, slice(None))  # A fit or a file sets the columns later.
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
    """Fit codebooks as `fit_codebooks` does, and assign codes to all items.

    Args:
        features: Item features, ``[N, F]``.
        config: Settings of the tokenizer.
        seed: Seed of all random numbers.
        counts: Number of training interactions of each item, ``[N]``. None gives all items the same
            weight.
        columns: Columns of each part of the features, by name. None if the features have no parts.

    Raises:
        ConfigError: As for `fit_codebooks`.
    """
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
    """Fit codebooks to item features, or to a sample of them if the catalogue is large.

    On several processes, each process passes all features and gets the full result.

    Args:
        features: Item features, ``[N, F]``.
        config: Settings of the tokenizer.
        seed: Seed of all random numbers.
        counts: Number of training interactions of each item, ``[N]``, from which
            ``config.item_weight`` computes weights. None gives all items the same weight.
        columns: Columns of each part of the features, by name, for ``config.level_blocks``. None if
            the features have no parts.

    Raises:
        ConfigError: A codebook is larger than the catalogue; or there are fewer IDs than items and
            no disambiguation level; or a level is limited to a part that the features do not have.
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
    model.load_state_dict(state)  # This also copies the counts that Python keeps.
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
                f"tokenizer.level_blocks names {name!r}, which is not a part of the features; "
                f"they have {', '.join(columns) or 'no parts'}."
            )
        assert isinstance(quantizer, ResidualGRITVQ)
        quantizer.limit_level_(level, columns[name])


def _train(
    model: QuantizedAutoencoder,
    features: Tensor,
    config: TokenizerConfig,
    generator: torch.Generator,
) -> tuple[list[TokenizerEpoch], int]:
    """Train all epochs, load the weights of the best one, and return the history and its number."""
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
    """Assign codes to all items, one chunk of items at a time.

    Apart from the codes, the memory does not grow with the number of items. The features may
    therefore be a memory-mapped file.

    Args:
        quantizer: The quantizer, in eval mode.
        features: Item features, ``[N, F]``.
        encode: Function from features to the latent vectors that are quantized.

    Returns:
        Codes ``[N, L]``, and the mean length of each level's residuals.
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
    """Return the rows of features to fit to, where items with a higher weight are more frequent."""
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
    # Every item has at least one row, so that the codes also fit rare items.
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
