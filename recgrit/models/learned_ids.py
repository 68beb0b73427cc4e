"""IDs that are learned from sequences: first the item vectors, then vectors and codebooks together.

The network is that of `recgrit.models.next_item`, trained by the one loop and put away afterwards:
what is left is a tokenizer, and what it quantizes of the catalogue.

Shapes: N items, D dimensions, F features.
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
    """What became of the IDs in one epoch of learning them.

    Args:
        epoch: From 0, the start.
        moved: Share of items whose ID is another than an epoch before.
        moved_since_start: Share of items whose ID is another than at the start.
        first_code_moved: Share of items whose first code is another than at the start.
        collision_rate: Share of items whose ID another item has too.
        perplexities: Of the codes of each level.
        gap: Mean squared distance of latents from their codes, relative to their mean square norm.
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
    """A tokenizer that was learned from sequences.

    Args:
        tokenizer: In eval mode.
        latents: float32 ``[N, D]``, what it quantizes of the catalogue.
        fit: The fit of the codebooks to the item vectors, which the IDs start from.
        vectors: What learning the item vectors reached.
        id_epochs: Of learning vectors and codebooks together; of the start alone without.
        best_epoch: The entry of ``id_epochs`` that is kept.
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
    """IDs that are fitted to item vectors from sequences, or learned together with them.

    Args:
        features: float32 ``[N, F]``.
        split: Training parts to learn from, validation targets to choose epochs by.
        config: Codebooks, and the objective: ``item_vectors`` or ``next_item``.
        settings: Of the network and its training.
        seed: Fixes all that is drawn.
        checkpoint: Where an interrupted training of the vectors is kept; None for nowhere.
        kept: Where trained vectors are kept for other codebooks of the same features, split,
            settings and seed; None for nowhere.

    Each of several processes is given the same and returns the same.
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
    """Of each part but the quantizer, which its epochs describe."""
    parts = ("encode_items", "offsets", "encoder", "seen_score")
    return {
        part: sum(p.numel() for name, p in network.named_parameters() if name.startswith(part))
        for part in parts
    }


def _keep_vectors(
    path: Path | None, network: NextItemNetwork, history: list[TrainingEpoch]
) -> None:
    """Write a trained network; where that fails it is logged, and trained again next time."""
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
        logger.warning("Cannot keep the item vectors in %s: %s", path, error)


def _read_vectors(
    path: Path | None, build: Callable[[], NextItemNetwork], settings: ItemVectorConfig
) -> tuple[NextItemNetwork, list[TrainingEpoch]] | None:
    """What `_keep_vectors` wrote; None where there is none, or where it is damaged."""
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
        logger.info("taking the item vectors of %s", path)
    return network.to(choose_device(settings.device)).eval(), history


def _learn_together(
    start: NextItemNetwork,
    watch: _Watch,
    split: SequenceSplit,
    settings: ItemVectorConfig,
    *,
    seed: int,
) -> tuple[NextItemNetwork, int]:
    """Go on from trained item vectors and codebooks fitted to them, both learning now.

    Returns:
        The network at its best epoch, and that epoch; 0 where none is better than the start.
    """
    epochs = settings.quantized_epochs
    if isinstance(start.quantizer, ResidualGRITVQ):  # The fit ended with resets switched off.
        start.quantizer.reset_interval = start.quantizer.settings["reset_interval"]
    users = choose_valid_users(split, settings.valid_users, seed)
    _, ndcg_at_start = validate(_build_ranker(start), split, users)
    state_at_start = {name: value.clone() for name, value in start.state_dict().items()}

    def build_ranker(network: NextItemNetwork, _: torch.dtype) -> Ranker:
        watch.look_at(network)
        # A code that is placed late cannot settle any more.
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
                # Codebooks are kept up after every forward: there has to be one a step.
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
    """Looks at the IDs after every epoch."""

    def __init__(self, network: NextItemNetwork) -> None:
        self.epochs: list[IdEpoch] = []
        self._start = self._last = self._codes_of(network)[0]
        self.look_at(network)

    @torch.no_grad()
    def look_at(self, network: NextItemNetwork) -> None:
        """Add an epoch."""
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
