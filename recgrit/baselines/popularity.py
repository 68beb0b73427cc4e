"""The most popular items, the same for everyone but for what a user already has.

The floor that any model must beat. Memory is linear in the output and in the histories: no table
of users times items is built, whatever the size of the catalogue or the longest history.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError

# Bounds what is held at once beside the result: this many users' histories.
USERS_PER_CHUNK = 16_384


def recommend_popular(
    split: SequenceSplit,
    split_name: Split,
    users: npt.NDArray[np.int64],
    top_k: int,
    masked: bool,
) -> Recommendations:
    """The items with the most interactions in the training parts, ties by item_idx.

    Args:
        split: The sequences; counts come from their training parts only.
        split_name: Which targets the lists are for: decides what a user's history holds.
        users: int64 [U], the users to recommend to; each needs a target in this split.
        top_k: Length of each list; shorter where fewer items are left.
        masked: Whether to leave out the items of each user's history.

    Returns:
        Lists in the order of ``users``; an item's score is its count.

    Raises:
        DataError: A user has no target in this split.
    """
    if np.any(split.target_positions(split_name)[users] < 0):
        raise DataError(
            f"Some users have no {split_name} target, hence no history that ends before it. "
            f"Choose among split.target_users({split_name!r})."
        )
    counts = split.train_item_counts()
    by_popularity = np.argsort(-counts, kind="stable").astype(np.int32)
    items = np.empty((len(users), top_k), dtype=np.int32)
    for start in range(0, len(users), USERS_PER_CHUNK):
        chunk = users[start : start + USERS_PER_CHUNK]
        places = np.broadcast_to(np.arange(top_k), (len(chunk), top_k))
        if masked:
            places = places + _places_skipped(split, split_name, chunk, top_k, by_popularity)
        in_catalogue = places < split.num_items
        items[start : start + len(chunk)] = np.where(
            in_catalogue, by_popularity[np.where(in_catalogue, places, 0)], NO_ITEM
        )
    scores = np.where(items != NO_ITEM, counts[items], -np.inf).astype(np.float32)
    return Recommendations(users=users, items=items, scores=scores)


def _places_skipped(
    split: SequenceSplit,
    split_name: Split,
    users: npt.NDArray[np.int64],
    top_k: int,
    by_popularity: npt.NDArray[np.int32],
) -> npt.NDArray[np.int64]:
    """int64 [U, top_k], how many history items stand before each user's j-th allowed item.

    With the history's places in the popularity order sorted as m_0 < m_1 < ..., exactly m_i - i
    allowed items stand before m_i. So m_i is skipped on the way to the j-th allowed item if and
    only if m_i - i <= j: counting these values and summing the counts up gives the shift.
    """
    place_of_item = np.empty(split.num_items, dtype=np.int64)
    place_of_item[by_popularity] = np.arange(split.num_items)
    starts = split.offsets[users]
    lengths = split.target_positions(split_name)[users] - starts
    rows = np.repeat(np.arange(len(users)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = place_of_item[split.items[np.repeat(starts, lengths) + within]]

    # One sort for all users; repeats of an item take its place only once.
    rows, places = np.divmod(np.unique(rows * split.num_items + places), split.num_items)
    allowed_before = places - (np.arange(len(rows)) - np.searchsorted(rows, rows))
    matters = allowed_before < top_k
    skipped = np.bincount(
        rows[matters] * top_k + allowed_before[matters], minlength=len(users) * top_k
    )
    return skipped.reshape(len(users), top_k).cumsum(axis=1)
