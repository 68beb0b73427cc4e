"""Semantic IDs that are learned from sequences instead of from item features alone.

First the item vectors are learned, then codebooks are fitted to them. With the objective
``next_item``, vectors and codebooks are then trained together. The network is
`recgrit.models.next_item.NextItemNetwork`. After the training only a tokenizer and the latents of
the items are kept, and the rest of the network is discarded.

Shapes: N items, D dimensions, F features, L levels.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recgrit import distributed
from recgrit.checksums import fits_record, write_record
from recgrit.disk import replacing
from recgrit.models.config import ItemVectorConfig
from recgrit.models.model import FitSummary
from recgrit.models.next_item import NextItemNetwork
from recgrit.quantization.autoencoder import LearnedTokenizer
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.diagnostics import diagnose_codes
from recgrit.quantization.fit import RESET_UNTIL, FittedCodebooks, fit_codebooks
from recgrit.quantization.residual import ResidualGRITVQ
from recgrit.ranking import Ranker, ScoreRanker
from recgrit.training.averaging import put_weights, weights_of
from recgrit.training.loop import (
    TrainingEpoch,
    best_epoch_of,
    choose_device,
    read_epoch,
    train_model,
)
from recgrit.training.validation import choose_valid_users, validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from recgrit.data.splits import SequenceSplit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdEpoch:
    """Statistics of the semantic IDs after one epoch in which codebooks and vectors are trained.

    Args:
        epoch: Number of the epoch. 0 is the state before the first epoch.
        moved: Share of items whose ID differs from their ID one epoch earlier.
        moved_since_start: Share of items whose ID differs from their ID at the start.
        first_code_moved: Share of items whose first code differs from their first code at the
            start.
        collision_rate: Share of items whose ID is also the ID of another item.
        perplexities: Perplexity of the codes of each level.
        gap: Mean squared distance between the latents and their quantized vectors, relative to the
            mean squared norm of the latents.
    """

    epoch: int
    moved: float
    moved_since_start: float
    first_code_moved: float
    collision_rate: float
    perplexities: tuple[float, ...]
    gap: float


@dataclass(frozen=True)
class LearnedIds:
    """A tokenizer that is learned from sequences, and the record of its training.

    Args:
        tokenizer: The learned tokenizer, in eval mode.
        latents: Vectors of the catalogue's items that the tokenizer quantizes, float32 ``[N, D]``.
        fit: The fit of the codebooks to the item vectors, before they are trained together.
        vectors: Summary of the training of the item vectors.
        id_epochs: Statistics of the IDs at the start and after each epoch of the joint training. It
            has one entry if there is no joint training.
        best_epoch: Index of the entry of ``id_epochs`` whose state is kept.
    """

    tokenizer: LearnedTokenizer
    latents: Tensor
    fit: FittedCodebooks
    vectors: FitSummary
    id_epochs: list[IdEpoch]
    best_epoch: int


def learn_ids(
    features: Tensor,
    split: SequenceSplit,
    config: TokenizerConfig,
    settings: ItemVectorConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    kept: Path | None = None,
) -> LearnedIds:
    """Learn a tokenizer whose codebooks are fitted to item vectors from sequences.

    With the objective ``next_item``, codebooks and item vectors are then trained together. If
    several processes train, each calls this function with the same arguments and gets the same
    result.

    Args:
        features: Feature vectors of the items, float32 ``[N, F]``.
        split: Sequences of the users. The network learns from the training histories, and the
            validation targets decide which epoch is kept.
        config: Settings of the codebooks. The objective is ``item_vectors`` or ``next_item``.
        settings: Settings of the network and its training.
        seed: Seed of all random numbers.
        checkpoint: File that an interrupted training of the item vectors is resumed from. None
            saves no checkpoint.
        kept: File in which the trained network is cached. A later call with the same features,
            split, settings and seed reads it and fits other codebooks. None caches nothing.
    """
    counts = torch.from_numpy(split.train_item_counts())
    train_items = counts > 0

    def build() -> NextItemNetwork:
        return NextItemNetwork(
            features,
            train_items=train_items,
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            history_length=settings.history_length,
            dropout=settings.dropout,
        )

    found = _read_vectors(kept, build, settings)
    if found is None:
        if distributed.is_first():
            logger.info("learning item vectors that predict the next item")
        trained = train_model(
            build,
            lambda network, _: _build_ranker(network),
            split,
            settings,
            history_length=settings.history_length,
            seed=seed,
            checkpoint=checkpoint,
        )
        found = trained.model, trained.history
        if distributed.is_first():
            _keep_vectors(kept, *found)
    network, history = found
    fit = fit_codebooks(network.all_vectors(), config, seed=seed, counts=counts)
    network.start_quantizing(fit.model.quantizer, center=fit.model.mean, scale=fit.model.scale)
    watch = _Watch(network)
    best_epoch = 0
    if config.objective == "next_item":
        if distributed.is_first():
            logger.info("learning codebooks and item vectors together")
        network, best_epoch = _learn_together(network, watch, split, settings, seed=seed)
    return LearnedIds(
        tokenizer=_to_tokenizer(network, features.shape[1]),
        latents=network.latents(network.all_vectors()),
        fit=fit,
        vectors=FitSummary(
            num_parameters=_count_parameters(network),
            history=history,
            best_epoch=best_epoch_of(history),
        ),
        id_epochs=watch.epochs,
        best_epoch=best_epoch,
    )


def _count_parameters(network: NextItemNetwork) -> dict[str, int]:
    """Return the number of parameters of each part of the network except the quantizer."""
    parts = ("encode_items", "offsets", "encoder", "seen_score")
    return {
        part: sum(p.numel() for name, p in network.named_parameters() if name.startswith(part))
        for part in parts
    }


def _keep_vectors(
    path: Path | None, network: NextItemNetwork, history: list[TrainingEpoch]
) -> None:
    """Write a trained network to the cache file; log a warning if it cannot be written."""
    if path is None:
        return
    epochs = json.dumps([asdict(epoch) for epoch in history])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            weights = {name: value.cpu() for name, value in weights_of(network).items()}
            save_file(weights, temporary, metadata={"epochs": epochs})
        write_record(path)
    except (OSError, SafetensorError) as error:
        logger.warning("Cannot save the item vectors in %s: %s", path, error)


def _read_vectors(
    path: Path | None, build: Callable[[], NextItemNetwork], settings: ItemVectorConfig
) -> tuple[NextItemNetwork, list[TrainingEpoch]] | None:
    """Read the network and epochs that `_keep_vectors` wrote; None if missing or damaged."""
    if path is None or not distributed.of_first(path.is_file()):
        return None
    network = build()
    try:
        if not fits_record(path):
            raise ValueError("its checksum differs")
        with safe_open(path, framework="pt") as file:
            history = [read_epoch(values) for values in json.loads(file.metadata()["epochs"])]
            names = file.keys()
            put_weights(network, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): the item vectors are learned again", path, error)
        return None
    if distributed.is_first():
        logger.info("reusing the item vectors in %s", path)
    return network.to(choose_device(settings.device)).eval(), history


def _learn_together(
    start: NextItemNetwork,
    watch: _Watch,
    split: SequenceSplit,
    settings: ItemVectorConfig,
    *,
    seed: int,
) -> tuple[NextItemNetwork, int]:
    """Train item vectors and codebooks together, starting from vectors and fitted codebooks.

    Returns:
        The network at its best epoch, and the number of that epoch. The number is 0, and the
        network is that of the start, if no epoch has a better validation NDCG@10.
    """
    epochs = settings.quantized_epochs
    # The fit of the codebooks ends with dead-code resets switched off. Switch them on again.
    if isinstance(start.quantizer, ResidualGRITVQ):
        start.quantizer.reset_interval = start.quantizer.settings["reset_interval"]
    users = choose_valid_users(split, settings.valid_users, seed)
    _, ndcg_at_start = validate(_build_ranker(start), split, users)
    state_at_start = {name: value.clone() for name, value in start.state_dict().items()}

    def build_ranker(network: NextItemNetwork, _: torch.dtype) -> Ranker:
        watch.look_at(network)
        # A code that is reset late has no time to converge, so resets stop before the end.
        if len(watch.epochs) > RESET_UNTIL * epochs and isinstance(start.quantizer, ResidualGRITVQ):
            start.quantizer.reset_interval = None
        return _build_ranker(network)

    learned = train_model(
        lambda: start,
        build_ranker,
        split,
        settings.model_copy(
            update={
                "epochs": epochs,
                "learning_rate": settings.quantized_learning_rate,
                # Codebook maintenance follows every forward pass, so a step has one forward pass.
                "accumulation": 1,
            }
        ),
        history_length=settings.history_length,
        seed=seed,
    )
    if learned.history[learned.best_epoch - 1].valid_ndcg_at_10 > ndcg_at_start:
        return learned.model, learned.best_epoch
    learned.model.load_state_dict(state_at_start)
    return learned.model, 0


class _Watch:
    """A recorder of the statistics of the IDs at the start and after every epoch."""

    def __init__(self, network: NextItemNetwork) -> None:
        self.epochs: list[IdEpoch] = []
        self._start = self._last = self._codes_of(network)[0]
        self.look_at(network)

    @torch.no_grad()
    def look_at(self, network: NextItemNetwork) -> None:
        """Compute the IDs of the network's items and add their statistics as an epoch."""
        codes, gap = self._codes_of(network)
        assert network.quantizer is not None
        found = diagnose_codes(codes.cpu().numpy(), network.quantizer.codebook_sizes)
        self.epochs.append(
            IdEpoch(
                epoch=len(self.epochs),
                moved=_share_moved(self._last, codes),
                moved_since_start=_share_moved(self._start, codes),
                first_code_moved=_share_moved(self._start[:, :1], codes[:, :1]),
                collision_rate=found.collision_rate,
                perplexities=tuple(level.perplexity for level in found.levels),
                gap=gap,
            )
        )
        self._last = codes

    @staticmethod
    @torch.no_grad()
    def _codes_of(network: NextItemNetwork) -> tuple[Tensor, float]:
        assert network.quantizer is not None
        latents = network.latents(network.all_vectors())
        codes = network.quantizer.encode(latents)
        gap = (latents - network.quantizer.decode(codes)).square().sum()
        return codes, float(gap / latents.square().sum())


def _share_moved(before: Tensor, after: Tensor) -> float:
    return (before != after).any(dim=1).float().mean().item()


def _build_ranker(network: NextItemNetwork) -> ScoreRanker:
    return ScoreRanker(
        partial(network.eval().rank_scores, vectors=network.ranked_vectors()),
        num_items=len(network.features),
        history_length=network.encoder.history_length,
        device=network.features.device,
        allowed=network.train_items,
    )


@torch.no_grad()
def _to_tokenizer(network: NextItemNetwork, feature_dim: int) -> LearnedTokenizer:
    assert network.quantizer is not None
    tokenizer = LearnedTokenizer(feature_dim, network.quantizer)
    tokenizer.encoder.load_state_dict(network.encode_items.state_dict())
    tokenizer.center.copy_(network.center)
    tokenizer.scale.copy_(network.scale)
    return tokenizer.eval()
