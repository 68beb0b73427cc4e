"""Fitting a tokenizer to item features: k-means start, joint training, dead codes revived.

What decides is the start and the resets: k-means on the residuals of *all* items, level by level,
then joint training of the stack on the error of the whole sum, with codes that fall out of use
placed on badly served items. The best epoch by reconstruction error over all items is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from recgrit.errors import ConfigError
from recgrit.progress import progress_bar
from recgrit.quantization.autoencoder import QuantizedAutoencoder
from recgrit.quantization.codebook import Codebook
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.diagnostics import IdDiagnostics, diagnose_codes
from recgrit.quantization.radius import RADII
from recgrit.quantization.residual import Quantized, ResidualGRITVQ

logger = logging.getLogger(__name__)

# A code is dead when it is used less than this share of an even use.
DEAD_SHARE = 0.1
# No resets in the last part of training: a code placed then cannot settle any more.
RESET_UNTIL = 0.8
# Rows encoded at once when all items are read.
ENCODE_CHUNK = 65_536


@dataclass(frozen=True)
class TokenizerEpoch:
    """Progress after one epoch, over all items: 0 is the k-means start.

    Args:
        epoch: From 0.
        reconstruction_loss: Mean squared error, summed over dimensions, of scaled features.
        collision_rate: Share of items whose ID another item has too.
        num_resets: Codes revived in this epoch.
    """

    epoch: int
    reconstruction_loss: float
    collision_rate: float
    num_resets: int


@dataclass(frozen=True)
class FittedTokenizer:
    """A tokenizer at its best epoch, and what it makes of the items it was fitted to.

    Args:
        model: The autoencoder with its quantizer.
        codes: int64 ``[N, L]``, not yet unique.
        last_residuals: float32 ``[N, D]``, what the last level was given for each item, and
        last_codes: float32 ``[K, D]``, that level's codes: what resolving collisions needs.
        diagnostics: Use of the codes.
        history: One entry per epoch.
        best_epoch: The epoch kept.
    """

    model: QuantizedAutoencoder
    codes: Tensor
    last_residuals: Tensor
    last_codes: Tensor
    diagnostics: IdDiagnostics
    history: list[TokenizerEpoch]
    best_epoch: int


def build_tokenizer(feature_dim: int, config: TokenizerConfig) -> QuantizedAutoencoder:
    """An untrained tokenizer for features of this size."""
    with_mlp = config.autoencoder == "mlp"
    quantizer = ResidualGRITVQ(
        config.code_dim if with_mlp else feature_dim,
        config.num_levels,
        config.codebook_sizes,
        radius=RADII[config.radius](),
        transform_rank=config.transform_rank,
        normalized_from=config.normalized_from,
    )
    return QuantizedAutoencoder(
        feature_dim,
        quantizer,
        hidden_dims=config.hidden_dims if with_mlp else None,
        code_dim=config.code_dim,
    )


def fit_tokenizer(features: Tensor, config: TokenizerConfig, *, seed: int) -> FittedTokenizer:
    """Fit codebooks to item features ``[N, F]`` and assign every item its codes.

    Raises:
        ConfigError: A codebook is larger than the catalogue, or all IDs together are fewer than
            the items.
    """
    _check_capacity(len(features), config.codebook_sizes)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build_tokenizer(features.shape[1], config).to(features.device)
    model.fit_normalization_(features)
    model.quantizer.fit_init_(model.encode_latent(features), seed=seed)

    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    steps_per_epoch = -(-len(features) // config.batch_size)
    num_steps = max(1, config.epochs * steps_per_epoch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    uses = [torch.zeros(size, device=features.device) for size in config.codebook_sizes]
    history = [_measure(model, features, epoch=0, num_resets=0)]
    best_state, best_epoch = _copy_state(model), 0
    step = 0
    with progress_bar("tokenizer", config.epochs) as bar:
        for epoch in range(1, config.epochs + 1):
            num_resets = 0
            order = torch.randperm(len(features), generator=generator).to(features.device)
            for rows in order.split(config.batch_size):
                result = model(features[rows])
                quantized: Quantized = result.quantized
                loss = (
                    result.reconstruction_loss
                    + config.commitment_weight * quantized.commitment_loss
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                for level, use in enumerate(uses):
                    use.add_(torch.bincount(quantized.codes[:, level], minlength=len(use)))
                if step % config.reset_interval == 0:
                    if step < RESET_UNTIL * num_steps:
                        num_resets += revive_dead_codes(
                            model.quantizer, quantized, uses, optimizer, generator
                        )
                    for use in uses:
                        use.zero_()
            for codebook in model.quantizer.codebooks:
                codebook.transform.clip_spectrum_()
            history.append(_measure(model, features, epoch=epoch, num_resets=num_resets))
            latest = history[-1]
            if latest.reconstruction_loss < history[best_epoch].reconstruction_loss:
                best_state, best_epoch = _copy_state(model), epoch
            bar.advance(note=f"error {latest.reconstruction_loss:.4f}")
    model.load_state_dict(best_state)
    model.eval()
    codes, last_residuals, norms = assign_codes(model, features)
    last_codes = model.quantizer.codebooks[-1].effective().detach()
    diagnostics = diagnose_codes(codes.cpu().numpy(), config.codebook_sizes, norms)
    for warning in diagnostics.warnings():
        logger.warning(warning)
    return FittedTokenizer(
        model, codes, last_residuals, last_codes, diagnostics, history, best_epoch
    )


@torch.no_grad()
def assign_codes(
    model: QuantizedAutoencoder, features: Tensor
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Codes ``[N, L]``, last residuals ``[N, D]``, and the mean residual norm per level."""
    quantizer = model.quantizer
    codes, last_residuals = [], []
    norms = torch.zeros(len(quantizer.codebooks))
    for rows in features.split(ENCODE_CHUNK):
        result = quantizer(model.encode_latent(rows))
        codes.append(result.codes)
        last_residuals.append(result.residuals[-1])
        norms += torch.tensor([r.norm(dim=-1).sum().item() for r in result.residuals])
    return torch.cat(codes), torch.cat(last_residuals), tuple((norms / len(features)).tolist())


@torch.no_grad()
def revive_dead_codes(
    quantizer: ResidualGRITVQ,
    batch: Quantized,
    uses: list[Tensor],
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
) -> int:
    """Place codes that are hardly used on badly served vectors of the last batch.

    Called between steps only: the codes that a backward pass refers to never change under it. The
    optimizer's moments of the rows go too, or they would drag the new code towards the old place.

    Returns:
        The number of codes placed.
    """
    num_placed = 0
    for level, (codebook, use) in enumerate(zip(quantizer.codebooks, uses, strict=True)):
        dead = (use < DEAD_SHARE * use.mean()).nonzero().squeeze(-1)
        residual = batch.residuals[level]
        dead = dead[: len(residual)]
        if len(dead) == 0:
            continue
        served = codebook.effective()[batch.codes[:, level]]
        error = (residual - served).square().sum(dim=-1).cpu() + 1e-12
        picks = torch.multinomial(error, len(dead), generator=generator).to(residual.device)
        codebook.place_(dead, residual[picks])
        _forget_moments(optimizer, codebook, dead)
        num_placed += len(dead)
    return num_placed


def _forget_moments(optimizer: torch.optim.Adam, codebook: Codebook, rows: Tensor) -> None:
    for parameter in (codebook.embedding, codebook.transform.mix_out):
        state = optimizer.state.get(parameter, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][rows] = 0.0


@torch.no_grad()
def _measure(
    model: QuantizedAutoencoder, features: Tensor, *, epoch: int, num_resets: int
) -> TokenizerEpoch:
    total, codes = 0.0, []
    for rows in features.split(ENCODE_CHUNK):
        result = model(rows)
        total += result.reconstruction_loss.item() * len(rows)
        codes.append(result.quantized.codes)
    _, counts = torch.unique(torch.cat(codes), dim=0, return_counts=True)
    return TokenizerEpoch(
        epoch=epoch,
        reconstruction_loss=total / len(features),
        collision_rate=counts[counts > 1].sum().item() / len(features),
        num_resets=num_resets,
    )


def _copy_state(model: QuantizedAutoencoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _check_capacity(num_items: int, codebook_sizes: tuple[int, ...]) -> None:
    if max(codebook_sizes) > num_items:
        raise ConfigError(
            f"tokenizer.codebook_size {max(codebook_sizes)} is larger than the catalogue of "
            f"{num_items} items: choose at most {num_items}."
        )
    capacity = 1
    for size in codebook_sizes:
        capacity *= size
    if capacity < num_items:
        raise ConfigError(
            f"Codebooks of {' x '.join(map(str, codebook_sizes))} codes give {capacity} IDs for "
            f"{num_items} items: raise tokenizer.codebook_size or tokenizer.num_levels."
        )
