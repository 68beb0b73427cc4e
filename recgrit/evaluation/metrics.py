"""Ranking metrics for one relevant item per list, as pure functions of that item's rank.

A list and its target reduce to one number, the rank of the target. Every metric here is a function
of it, per target and without averaging, so that intervals and paired comparisons need nothing else;
serendipity also asks how popular the target is.

NDCG has one definition here, since libraries disagree on it: with one relevant item the ideal DCG
is 1, so a target's NDCG is 1 / log2(rank + 1), with rank from 1 and no further normalisation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError

Ranks = npt.NDArray[np.int32]
PerTarget = npt.NDArray[np.float64]

# The rank of a target that is not in its list.
MISSED = 0


def ranks_of_targets(items: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> Ranks:
    """Rank of each target in its list, from 1; 0 where the list lacks it.

    Args:
        items: int32 [T, K], item_idx by rank; `NO_ITEM` fills the end of short lists.
        targets: int32 [T], the one relevant item of each list.

    Returns:
        int32 [T].

    Raises:
        DataError: The shapes disagree.

    >>> items = np.array([[7, 3, 5], [4, 2, -1]], dtype=np.int32)
    >>> ranks_of_targets(items, np.array([3, 9], dtype=np.int32)).tolist()
    [2, 0]
    """
    if items.ndim != 2 or targets.shape != items.shape[:1]:
        raise DataError(
            f"Ranks need items [T, K] and targets [T], got {items.shape} and {targets.shape}."
        )
    ranks = np.zeros(len(items), dtype=np.int32)
    # Filled places only: a missing target (-1) must not match the padding (-1).
    rows, places = np.nonzero((items == targets[:, None]) & (items != NO_ITEM))
    ranks[rows] = places + 1
    return ranks


def recall_at_k(ranks: Ranks, k: int) -> PerTarget:
    """1 where the target is among the first k, else 0: ``[0 < rank <= k]``.

    With one relevant item this is also the hit rate.

    >>> recall_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    return _is_hit(ranks, k).astype(np.float64)


def ndcg_at_k(ranks: Ranks, k: int) -> PerTarget:
    """Hits discounted by their rank: ``[0 < rank <= k] / log2(rank + 1)``.

    >>> ndcg_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).round(4).tolist()
    [1.0, 0.6309, 0.0, 0.0]
    """
    # A missed target has rank 0, whose discount log2(1) = 0 must not be divided by.
    return np.where(_is_hit(ranks, k), 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


def reciprocal_rank_at_k(ranks: Ranks, k: int) -> PerTarget:
    """One over the rank of hits: ``[0 < rank <= k] / rank``; its mean is MRR@k.

    Voorhees, TREC-8 (1999). It falls much faster with the rank than NDCG does.

    >>> reciprocal_rank_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    return np.where(_is_hit(ranks, k), 1.0 / np.maximum(ranks, 1), 0.0)


def popularity_ranks(counts: npt.NDArray[np.int64]) -> Ranks:
    """Place of each item by its interactions in training: 1 for the most, equal for equal numbers.

    Ranks leave no gap behind equal ones. Items without interactions have one more than there are
    items, behind any place in a list.

    >>> popularity_ranks(np.array([5, 9, 0, 5, 2])).tolist()
    [2, 1, 6, 2, 3]
    """
    values, places = np.unique(counts, return_inverse=True)
    ranks = len(values) - places
    return np.where(counts > 0, ranks, len(counts) + 1).astype(np.int32)


def serendipity_at_k(ranks: Ranks, popularity: Ranks, k: int, num_items: int) -> PerTarget:
    """How much higher hits stand in their lists than popularity puts them, over the list's length.

    ``[0 < rank <= k] max(p - q, 0) / k`` with ``p = (N + 1 - rank) / N`` for the list and
    ``q = (N + 1 - popularity) / N`` for a list that everybody gets. This is serendipity as RecTools
    defines it; that it is what is both right and not obvious: Ge et al., RecSys 2010.

    Args:
        ranks: int32 [T], rank of each target, 0 where missed.
        popularity: int32 [T], `popularity_ranks` of the targets.
        k: Length of the lists.
        num_items: N, items of the catalogue.

    >>> ranks, popularity = np.array([1, 3, 0], dtype=np.int32), np.array([6, 1, 9], dtype=np.int32)
    >>> serendipity_at_k(ranks, popularity, 5, 10).tolist()
    [0.1, 0.0, 0.0]
    """
    ahead = np.maximum(popularity.astype(np.float64) - ranks, 0.0) / num_items
    return np.where(_is_hit(ranks, k), ahead, 0.0) / k


def _is_hit(ranks: Ranks, k: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = (ranks != MISSED) & (ranks <= k)
    return hits


# By the name under which a metric is shown; logged in lower case, as recall_at_10.
METRICS: dict[str, Callable[[Ranks, int], PerTarget]] = {
    "Recall": recall_at_k,
    "NDCG": ndcg_at_k,
    "MRR": reciprocal_rank_at_k,
}
# Of these, the two that tables and comparisons have room for.
HEADLINES = ("Recall", "NDCG")
SERENDIPITY = "Serendipity"
