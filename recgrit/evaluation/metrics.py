"""Ranking metrics for one relevant item per list, as pure functions of that item's rank.

A list and its target reduce to one number, the rank of the target. Every metric here is a function
of it, per target and without averaging, so that intervals and paired comparisons need nothing else.

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


def _is_hit(ranks: Ranks, k: int) -> npt.NDArray[np.bool_]:
    hits: npt.NDArray[np.bool_] = (ranks != MISSED) & (ranks <= k)
    return hits


# By the name under which a metric is shown; logged in lower case, as recall_at_10.
METRICS: dict[str, Callable[[Ranks, int], PerTarget]] = {"Recall": recall_at_k, "NDCG": ndcg_at_k}
