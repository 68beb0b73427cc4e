"""Choice of filters, codebook sizes and model sizes that suit the amount of data.

The sizes are those of the configurations of published data sets of about the same size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.k_core import cut_to_k_core
from recgrit.data.partitions import MemoryStore
from recgrit.errors import DataError

# Least numbers of interactions of a user and of an item, strictest first. The first pair that
# keeps the share ENOUGH of all interactions is chosen.
FILTERS = ((5, 5), (3, 3), (3, 1))
ENOUGH = 0.5
LONG_HISTORY = 100
# Mean number of interactions per item from which a large log counts as dense, as MovieLens-1M does.
# Such a log is regularised less, and long histories pay.
DENSE = 100
LONGEST_HISTORY = 200
# Largest catalogue in which the retriever chooses among all items at once. In all measured
# catalogues of this size its transformer learns more than with a walk down the tree
# (docs/results/leaderboard.md). The time of a training step grows with the number of items.
FEW_ITEMS = 10_000
# Number of items from which a retriever with a vector per node trains slowly, and the rows of the
# table that nodes then share (docs/explanation/trie_softmax.md).
MANY_ITEMS = 1_000_000
NODE_BUCKETS = 65_536
# Least number of training steps per epoch, which bounds the number of targets per step. An epoch
# has fewer steps only if its targets are too few for so many steps of SMALLEST_BATCH. With a
# learning rate of .003, training then converges within its epochs.
STEPS_PER_EPOCH = 16
SMALLEST_BATCH, LARGEST_BATCH = 64, 1024


@dataclass(frozen=True)
class Kept:
    """The proposed filters, and the data that they leave.

    Args:
        min_user: Least number of interactions of a user.
        min_item: Least number of interactions of an item.
        num_users: Number of users that are left.
        num_items: Number of items that are left.
        num_interactions: Number of interactions that are left.
        long_history: Number of interactions that nine of ten users do not exceed.
    """

    min_user: int
    min_item: int
    num_users: int
    num_items: int
    num_interactions: int
    long_history: int


@dataclass(frozen=True)
class Sizes:
    """The proposed sizes of the tokenizer, the retriever and its training.

    Args:
        num_levels: Number of codebooks.
        codebook_size: Number of codes of each codebook.
        text_dim: Dimensions of the text features.
        tree_levels: Number of codes that the retriever chooses one after another. 0 chooses among
            all items at once. None chooses all codes.
        node_buckets: Rows of the table of node vectors that nodes share in a retriever of constant
            size. 0 gives each node its own vector.
        model_dim: Width of the retriever.
        num_layers: Number of layers of the retriever.
        num_heads: Number of attention heads of the retriever.
        history_length: Largest number of items of a history that the retriever reads.
        dropout: Dropout rate of the retriever.
        epochs: Largest number of epochs.
        patience: Number of epochs without an improvement after which training ends.
        batch_targets: Number of targets per training step.
        learning_rate: Learning rate of the retriever.
        warmup_steps: Number of training steps with a linear warm-up of the learning rate.
    """

    num_levels: int
    codebook_size: int
    text_dim: int
    tree_levels: int | None
    node_buckets: int
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
    """Choose the strictest common filter that keeps half of the interactions, and apply it.

    If no filter keeps half, the filter that keeps the most interactions is chosen.

    Args:
        rows: Interactions, with columns ``user_id`` and ``item_id`` as codes from 0.
        num_users: Number of user codes.
        num_items: Number of item codes.
        counted: Noun phrase for the rows in messages, such as "interactions".

    Returns:
        The filter with the numbers that it leaves, and the rows that are left.

    Raises:
        DataError: No filter leaves anything, because no user has three interactions.
    """
    found = [_keep(rows, num_users, num_items, *least) for least in FILTERS]
    enough = [one for one in found if one[0].num_interactions >= ENOUGH * rows.height]
    best, left = enough[0] if enough else max(found, key=lambda one: one[0].num_interactions)
    if not best.num_interactions:
        raise DataError(
            f"None of {num_users:,} user{'s' * (num_users != 1)} has three {counted}: "
            "there is no history to learn "
            "from and test on. Is data.table.user_id the column of customers, rather than of "
            "visits or orders?"
        )
    return best, rows.filter(pl.Series(left))


def _keep(
    rows: pl.DataFrame, num_users: int, num_items: int, min_user: int, min_item: int
) -> tuple[Kept, npt.NDArray[np.bool_]]:
    """Return the numbers that a filter leaves, and for each row whether it is left."""
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
    """Choose sizes that suit the filtered data.

    Args:
        kept: The filters and the data that they leave.
        num_targets: Number of events that training predicts in an epoch.
    """
    items, interactions = kept.num_items, kept.num_interactions
    levels = 2 if items <= 50_000 else 3
    codes = 16 if items <= 300 else 64 if items <= 1000 else 256 if items <= 5000 else 1024
    # With more codes than a quarter of the items, most codes would have one item or none.
    codes = min(codes, max(2, _power_of_two(items // 4)))
    # With few targets, large steps would be too few, and training would end before it converges.
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, _power_of_two(num_targets // STEPS_PER_EPOCH)))
    is_small, is_large = interactions < 20_000, interactions >= 150_000
    is_dense = is_large and interactions >= DENSE * items
    longest = LONGEST_HISTORY if is_dense else LONG_HISTORY
    lengths = (20, 50, LONG_HISTORY, LONGEST_HISTORY)
    history = next(n for n in lengths if n >= min(kept.long_history, longest))
    return Sizes(
        num_levels=levels,
        codebook_size=codes,
        text_dim=min(64, max(2, _power_of_two(items // 4))),
        tree_levels=0 if items <= FEW_ITEMS else None,
        node_buckets=NODE_BUCKETS if items >= MANY_ITEMS else 0,
        model_dim=32 if is_small else 128 if is_large else 64,
        num_layers=1 if is_small else 2,
        num_heads=2 if is_small else 4,
        history_length=history,
        dropout=0.2 if is_dense else 0.5 if is_large else 0.3,
        epochs=20 if is_large else 60,
        patience=4 if is_large else 6,
        batch_targets=batch,
        learning_rate=0.001 if is_large else 0.003,
        warmup_steps=min(200, max(20, 2 * (num_targets // batch))),
    )


def _power_of_two(number: int) -> int:
    """Return the largest power of two that is at most ``number``; 0 for 0."""
    return 2 ** (number.bit_length() - 1) if number > 0 else 0
