"""Synthetic catalogues, histories and untrained models of any size, in the shape of real data.

Speed and memory depend on sizes and shapes alone, so the benchmarks need no real data.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from recgrit.data.splits import SequenceSplit
from recgrit.models.config import SASRecConfig
from recgrit.models.model import CatalogueInputs
from recgrit.models.sasrec import SASRecModel
from recgrit.models.trie import TrieModel
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.semantic_ids.collisions import make_unique
from recgrit.semantic_ids.table import SemanticIdTable

# Amazon 2014 Beauty after 5-core filtering.
BEAUTY_USERS, BEAUTY_ITEMS, BEAUTY_LENGTH = 22_363, 12_101, 8.9
# MovieLens-1M: few items, long histories.
DENSE_USERS, DENSE_ITEMS, DENSE_LENGTH = 6_040, 3_416, 165.5


def draw_table(num_items: int, codebook_size: int = 256, seed: int = 0) -> SemanticIdTable:
    """Draw a table of semantic IDs of three levels with uneven codes and a disambiguation level.

    Args:
        num_items: Number of items in the catalogue.
        codebook_size: Number of codes per level.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(1, codebook_size + 1) ** 0.5
    codes = draw.choice(codebook_size, size=(num_items, 3), p=shares / shares.sum())
    names = pl.int_range(num_items, eager=True).cast(pl.String)
    unique = make_unique(
        codes,
        (codebook_size,) * 3,
        names,
        lambda rows: np.zeros((len(rows), 1), np.float32),
        np.zeros((codebook_size, 1), np.float32),
        method="disambiguation",
    )
    return SemanticIdTable(
        codes=unique.codes,
        codebook_sizes=unique.codebook_sizes,
        disambiguation_level=unique.disambiguation_level,
        item_ids=names,
        titles=names,
    )


def draw_split(
    num_users: int, num_items: int, *, mean_length: float = BEAUTY_LENGTH, seed: int = 0
) -> SequenceSplit:
    """Draw histories of at least five items. Their lengths have a geometric tail.

    Items with small numbers are more popular.

    Args:
        num_users: Number of users.
        num_items: Number of items in the catalogue.
        mean_length: Mean number of items per user.
        seed: Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    lengths = 4 + draw.geometric(1 / (mean_length - 4), num_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = (num_items * draw.random(offsets[-1]) ** 2).astype(np.int32)
    return SequenceSplit(
        items=items,
        offsets=offsets,
        train_ends=offsets[1:] - 2,
        valid_targets=offsets[1:] - 2,
        test_targets=offsets[1:] - 1,
        num_items=num_items,
    )


def describe_catalogue(
    num_items: int, table: SemanticIdTable | None = None, trained: np.ndarray | None = None
) -> CatalogueInputs:
    """Return the inputs of a model that describe a catalogue.

    Args:
        num_items: Number of items in the catalogue.
        table: Semantic IDs of the items. None for models that need no IDs.
        trained: Mask ``[num_items]`` of the items that occur in training. None means all items.
    """
    everything = np.ones(num_items, dtype=bool)
    return CatalogueInputs(
        trained=everything if trained is None else trained,
        semantic_ids=table,
        features=None,
        words=None,
        listed=everything,
        num_known=num_items,
    )


def build_sasrec(split: SequenceSplit, *, history_length: int = 50) -> SASRecModel:
    """Return an untrained SASRec of the default size."""
    items = describe_catalogue(split.num_items, trained=split.train_item_counts() > 0)
    settings = SASRecConfig(history_length=history_length)
    return SASRecModel(SASRecModel.build(items, settings), items, settings)


def build_model(
    table: SemanticIdTable, split: SequenceSplit, *, history_length: int = 50, seed: int = 0
) -> TrieRetriever:
    """Return an untrained retriever of the default size, with neighbours counted in the split."""
    torch.manual_seed(seed)
    items = describe_catalogue(split.num_items, table, split.train_item_counts() > 0)
    model = TrieModel.build(items, RetrieverConfig(history_length=history_length))
    assert model.neighbours is not None
    model.neighbours.count(split)
    return model


def fit_power(sizes: list[int], seconds: list[float]) -> float:
    """Return the exponent with which time grows with the size, fitted on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
