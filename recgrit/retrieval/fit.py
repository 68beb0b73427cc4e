"""Building and training the retriever over an ID table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from recgrit import ranks
from recgrit.data.splits import SequenceSplit
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.training import Trained, TrainingEpoch, train_model
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie


def build_retriever(
    table: SemanticIdTable,
    split: SequenceSplit,
    features: npt.NDArray[np.float32] | None,
    config: RetrieverConfig,
) -> TrieRetriever:
    """An untrained retriever over an ID table, its neighbours not counted yet.

    Args:
        table: The IDs.
        split: Tells which items training sees.
        features: float32 ``[N, F]`` item features; used if ``config.content``.
        config: Sizes and rates.
    """
    return assemble_retriever(table, split.train_item_counts() > 0, features, config)


def assemble_retriever(
    table: SemanticIdTable,
    train_items: npt.NDArray[np.bool_],
    features: npt.NDArray[np.float32] | None,
    config: RetrieverConfig,
    *,
    num_known_items: int | None = None,
) -> TrieRetriever:
    """`build_retriever` where the sequences are not at hand, and items may have been added since.

    Args:
        table: The IDs.
        train_items: bool ``[N]``, the items that training saw.
        features: float32 ``[N, F]``; used if ``config.content``.
        config: Sizes and rates.
        num_known_items: The first items of the table, which it had in training; None for all.

    Raises:
        ConfigError: ``config.node_buckets`` is less than a codebook.
    """
    return TrieRetriever(
        build_trie(table.codes),
        table.codebook_sizes,
        disambiguation_level=table.disambiguation_level,
        train_items=torch.from_numpy(train_items),
        content=(
            torch.from_numpy(np.array(features, dtype=np.float32))
            if config.content and features is not None
            else None
        ),
        known_items=(
            None if num_known_items is None else torch.arange(len(table)) < num_known_items
        ),
        model_dim=config.model_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        history_length=config.history_length,
        dropout=config.dropout,
        node_dropout=config.node_dropout,
        label_smoothing=config.label_smoothing,
        neighbour_weight=config.neighbour_weight,
        neighbour_boost=config.neighbour_boost,
        seen_scores=config.seen_scores,
        node_vectors=config.node_vectors,
        node_buckets=config.node_buckets,
        trie_softmax=config.trie_softmax,
    )


def fit_retriever(
    table: SemanticIdTable,
    split: SequenceSplit,
    features: npt.NDArray[np.float32] | None,
    config: RetrieverConfig,
    *,
    seed: int,
    on_epoch: Callable[[TrainingEpoch], None] | None = None,
    checkpoint: Path | None = None,
    stop_at: float | None = None,
) -> Trained[TrieRetriever]:
    """Train a retriever until validation NDCG@10 no longer rises.

    Args:
        table: The IDs to generate.
        split: Sequences; training parts to learn from, validation targets to stop by.
        features: float32 ``[N, F]`` item features, or None.
        config: Sizes, rates and limits.
        seed: Fixes initial weights, order of batches and dropout.
        on_epoch: Called after each epoch, for tracking.
        checkpoint: Where to keep what a later call needs to go on; None for nowhere.
        stop_at: End as soon as validation NDCG@10 is at least this.

    Raises:
        ConfigError: ``config.node_buckets`` is less than a codebook.
        TrainingError: There is nothing to train on, the loss is no longer finite, or memory does
            not suffice.
    """

    def build() -> TrieRetriever:
        model = build_retriever(table, split, features, config)
        if model.neighbours is not None:
            if ranks.is_first():
                model.neighbours.count(split, features)
            ranks.take_from_first_(model.neighbours.buffers())
        return model

    return train_model(
        build,
        lambda model, precision: TrieRanker(
            model, beam_width=config.valid_beam_width, precision=precision
        ),
        split,
        config,
        history_length=config.history_length,
        seed=seed,
        on_epoch=on_epoch,
        checkpoint=checkpoint,
        stop_at=stop_at,
    )
