"""Ranking metrics for lists with one relevant item, the target.

Every metric is a function of the rank of the target in its list. Serendipity also depends on the
popularity of the target. The functions return one value per target without averaging, so that
intervals and paired comparisons can be computed from these values.

Libraries disagree on the definition of NDCG. Here, with one relevant item, the ideal DCG is 1, so
the NDCG of a target is 1 / log2(rank + 1), with ranks counted from 1 and no further normalisation.

Shapes: T targets, K listed items, N items.
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
    """Return the rank of each target in its list, counted from 1, and 0 if it is not listed.

    Args:
        items: Lists of items by ``item_idx``, best first, int32 ``[T, K]``. `NO_ITEM` fills the end
            of short lists.
        targets: The relevant item of each list, int32 ``[T]``.

    Returns:
        Ranks, int32 ``[T]``.

    Raises:
        DataError: The shapes of the arrays do not fit together.

    >>> items = np.array([[7, 3, 5], [4, 2, -1]], dtype=np.int32)
    >>> ranks_of_targets(items, np.array([3, 9], dtype=np.int32)).tolist()
    [2, 0]
    """
    if items.ndim != 2 or targets.shape != items.shape[:1]:
        raise DataError(
            f"Ranks need items [T, K] and targets [T], got {items.shape} and {targets.shape}."
        )
    ranks = np.zeros(len(items), dtype=np.int32)
    # The padding is ignored, because a missing target (-1) must not match the padding (-1).
    rows, places = np.nonzero((items == targets[:, None]) & (items != NO_ITEM))
    ranks[rows] = places + 1
    return ranks


def recall_at_k(ranks: Ranks, k: int) -> PerTarget:
    """Return the recall of each target: 1 if it is among the first k items of its list, else 0.

    With one relevant item, recall equals the hit rate.

    Args:
        ranks: Rank of each target, int32 ``[T]``; 0 if it is not listed.
        k: Number of items at the top of each list that count.

    >>> recall_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    return _is_hit(ranks, k).astype(np.float64)


def ndcg_at_k(ranks: Ranks, k: int) -> PerTarget:
    """Return the NDCG of each target: ``1 / log2(rank + 1)`` for ranks from 1 to k, else 0.

    Args:
        ranks: Rank of each target, int32 ``[T]``; 0 if it is not listed.
        k: Number of items at the top of each list that count.

    >>> ndcg_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).round(4).tolist()
    [1.0, 0.6309, 0.0, 0.0]
    """
    # A missed target has rank 0. It is replaced by 1, because log2(0 + 1) = 0 is no divisor.
    return np.where(_is_hit(ranks, k), 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


def reciprocal_rank_at_k(ranks: Ranks, k: int) -> PerTarget:
    """Return the reciprocal rank of each target: ``1 / rank`` for ranks from 1 to k, else 0.

    The mean over targets is MRR@k (Voorhees, TREC-8, 1999). The reciprocal rank falls much faster
    with the rank than NDCG does.

    Args:
        ranks: Rank of each target, int32 ``[T]``; 0 if it is not listed.
        k: Number of items at the top of each list that count.

    >>> reciprocal_rank_at_k(np.array([1, 2, 11, 0], dtype=np.int32), 10).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    return np.where(_is_hit(ranks, k), 1.0 / np.maximum(ranks, 1), 0.0)


def popularity_ranks(counts: npt.NDArray[np.int64]) -> Ranks:
    """Return the popularity rank of each item, with 1 for the most training interactions.

    Items with equally many interactions have equal ranks, and the next rank follows without a gap.
    Items without interactions have rank N + 1, which is larger than any place in a list.

    Args:
        counts: Number of training interactions of each item, int64 ``[N]``.

    >>> popularity_ranks(np.array([5, 9, 0, 5, 2])).tolist()
    [2, 1, 6, 2, 3]
    """
    values, places = np.unique(counts, return_inverse=True)
    ranks = len(values) - places
    return np.where(counts > 0, ranks, len(counts) + 1).astype(np.int32)


def serendipity_at_k(ranks: Ranks, popularity: Ranks, k: int, num_items: int) -> PerTarget:
    """Return the serendipity of each target: high if a hit is ranked far above its popularity.

    The value is ``max(p - q, 0) / k`` for ranks from 1 to k, else 0. Here
    ``p = (N + 1 - rank) / N`` comes from the rank in the user's list, and
    ``q = (N + 1 - popularity) / N`` from the rank in a list by popularity. This is the definition
    of RecTools. The idea that a serendipitous recommendation is right and not obvious is that of
    Ge et al. (RecSys 2010).

    Args:
        ranks: Rank of each target, int32 ``[T]``; 0 if it is not listed.
        popularity: Popularity rank of each target, int32 ``[T]``, see `popularity_ranks`.
        k: Length of the lists.
        num_items: Number of items in the catalogue, N.

    >>> ranks, popularity = np.array([1, 3, 0], dtype=np.int32), np.array([6, 1, 9], dtype=np.int32)
    >>> serendipity_at_k(ranks, popularity, 5, 10).tolist()
    [0.1, 0.0, 0.0]
    """
    ahead = np.maximum(popularity.astype(np.float64) - ranks, 0.0) / num_items
    return np.where(_is_hit(ranks, k), ahead, 0.0) / k


def _is_hit(ranks: Ranks, k: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = (ranks != MISSED) & (ranks <= k)
    return hits


# Metrics by the name that is shown. They are logged in lower case, such as recall_at_10.
METRICS: dict[str, Callable[[Ranks, int], PerTarget]] = {
    "Recall": recall_at_k,
    "NDCG": ndcg_at_k,
    "MRR": reciprocal_rank_at_k,
}
# The metrics that tables and comparisons show, for which there is room.
HEADLINES = ("Recall", "NDCG")
SERENDIPITY = "Serendipity"
