"""Filters, codebooks and a model that go with so much data.

The sizes are those of the configurations that come with recgrit for data sets of about that size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.k_core import cut_to_k_core
from recgrit.data.partitions import MemoryStore
from recgrit.errors import DataError

# Fewest interactions of a user and of an item: the first that keeps `ENOUGH` is taken.
FILTERS = ((5, 5), (3, 3), (3, 1))
ENOUGH = 0.5
LONG_HISTORY = 100
# A step has so many targets that an epoch has at least so many steps: with a learning rate of .003,
# training then converges within the epochs that it has.
STEPS_PER_EPOCH = 16
SMALLEST_BATCH, LARGEST_BATCH = 64, 1024


@dataclass(frozen=True)
class Kept:
    """What filters leave.

    Args:
        min_user: Fewest interactions of a user.
        min_item: Fewest of an item.
        num_users: Users left.
        num_items: Items left.
        num_interactions: Interactions left.
        long_history: What nine of ten users have fewer interactions than.
    """

    min_user: int
    min_item: int
    num_users: int
    num_items: int
    num_interactions: int
    long_history: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of the stages.

    Args:
        num_levels: Codebooks.
        codebook_size: Codes of each.
        text_dim: Dimensions of the text's features.
        model_dim: Of the retriever.
        num_layers: Of the retriever.
        num_heads: Of the retriever.
        history_length: Items of a history that are read.
        dropout: Of the retriever.
        epochs: At most.
        patience: Epochs without a better one before training ends.
        batch_targets: Targets of a step.
        learning_rate: Of the retriever.
        warmup_steps: Steps of linear warm-up.
    """

    num_levels: int
    codebook_size: int
    text_dim: int
    model_dim: int
    num_layers: int
    num_heads: int
    history_length: int
    dropout: float
    epochs: int
    patience: int
    batch_targets: int
    learning_rate: float
    warmup_steps: int


def choose_filters(
    rows: pl.DataFrame, num_users: int, num_items: int, *, counted: str
) -> tuple[Kept, pl.DataFrame]:
    """The strictest of the usual filters that keeps half of the interactions, and what it keeps.

    Args:
        rows: ``user_id`` and ``item_id`` as codes.
        num_users: How many codes of users there are.
        num_items: Likewise, of items.
        counted: What the rows are, for messages.

    Raises:
        DataError: None leaves anything: nobody has three interactions.
    """
    found = [_keep(rows, num_users, num_items, *least) for least in FILTERS]
    enough = [one for one in found if one[0].num_interactions >= ENOUGH * rows.height]
    best, left = enough[0] if enough else max(found, key=lambda one: one[0].num_interactions)
    if not best.num_interactions:
        raise DataError(
            f"Nobody of {num_users:,} user{'s' * (num_users != 1)} has three {counted}: "
            "there is no history to learn "
            "from and test on. Is data.table.user_id the column of customers, rather than of "
            "visits or orders?"
        )
    return best, rows.filter(pl.Series(left))


def _keep(
    rows: pl.DataFrame, num_users: int, num_items: int, min_user: int, min_item: int
) -> tuple[Kept, npt.NDArray[np.bool_]]:
    """What a filter leaves, and whether each row is of it."""
    per_user = np.bincount(rows["user_id"].to_numpy(), minlength=num_users).astype(np.int64)
    per_item = np.bincount(rows["item_id"].to_numpy(), minlength=num_items).astype(np.int64)
    cut_to_k_core(
        MemoryStore(rows),
        per_user,
        per_item,
        min_user_interactions=min_user,
        min_item_interactions=min_item,
    )
    left = per_user[per_user >= min_user]
    is_left = (per_user >= min_user)[rows["user_id"].to_numpy()]
    is_left &= (per_item >= min_item)[rows["item_id"].to_numpy()]
    kept = Kept(
        min_user=min_user,
        min_item=min_item,
        num_users=len(left),
        num_items=int(np.sum(per_item >= min_item)),
        num_interactions=int(left.sum()),
        long_history=int(np.quantile(left, 0.9)) if len(left) else 0,
    )
    return kept, is_left


def choose_sizes(kept: Kept, num_targets: int) -> Sizes:
    """Sizes for what is kept.

    Args:
        kept: What filters leave.
        num_targets: Events that training predicts in an epoch.
    """
    items, interactions = kept.num_items, kept.num_interactions
    if items <= 300:
        levels, codes = 2, 16
    elif items <= 1000:
        levels, codes = 2, 64
    elif items <= 5000:
        levels, codes = 3, 256
    else:
        levels, codes = (2, 1024) if items <= 50_000 else (3, 1024)
    # No more codes than a quarter of the items: most would stand for one item or none.
    codes = min(codes, max(2, _power_of_two(items // 4)))
    history = next(n for n in (20, 50, LONG_HISTORY) if n >= min(kept.long_history, LONG_HISTORY))
    # Where few events are targets, large steps would be few, and training would end long before it
    # has converged.
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, _power_of_two(num_targets // STEPS_PER_EPOCH)))
    is_small, is_large = interactions < 20_000, interactions >= 150_000
    return Sizes(
        num_levels=levels,
        codebook_size=codes,
        text_dim=min(64, max(2, _power_of_two(items // 4))),
        model_dim=32 if is_small else 128 if is_large else 64,
        num_layers=1 if is_small else 2,
        num_heads=2 if is_small else 4,
        history_length=history,
        dropout=0.5 if is_large else 0.3,
        epochs=20 if is_large else 60,
        patience=4 if is_large else 6,
        batch_targets=batch,
        learning_rate=0.001 if is_large else 0.003,
        warmup_steps=min(200, max(20, 2 * (num_targets // batch))),
    )


def _power_of_two(number: int) -> int:
    """The largest that is no larger; 0 of 0."""
    return 2 ** (number.bit_length() - 1) if number > 0 else 0
