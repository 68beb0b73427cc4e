"""What lists of recommendations are like, whoever they are right for: their reach and variety.

A list can be accurate and yet hold what everybody is shown anyway. These are functions of the
lists, of how often items were taken in training, and of the items' vectors; no target is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.data.recommendations import NO_ITEM
from recgrit.evaluation.metrics import PerUser

Lists = npt.NDArray[np.int32]

# The items most often taken that make up the head; all others are the long tail.
HEAD_SHARE = 0.2


def catalogue_coverage(items: Lists, num_items: int) -> float:
    """Share of the catalogue that is in at least one list: ``|union of lists| / N``.

    Args:
        items: int32 [U, K], item_idx by rank; `NO_ITEM` fills the end of short lists.
        num_items: N.

    >>> catalogue_coverage(np.array([[0, 1], [1, -1]], dtype=np.int32), 4)
    0.5
    """
    return len(np.unique(items[items != NO_ITEM])) / num_items


def popularity_percentiles(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Where each item stands by how often it was taken, from 0 (rarest) to 1 (most often).

    ``(items taken less often + half of those taken as often) / N``: the mean over the catalogue is
    1/2, so lists of random items have 1/2 on average.

    >>> popularity_percentiles(np.array([7, 0, 2, 2])).tolist()
    [0.875, 0.125, 0.5, 0.5]
    """
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return np.asarray((below + up_to) / (2 * len(counts)), dtype=np.float64)


def mean_popularity(items: Lists, counts: npt.NDArray[np.int64]) -> PerUser:
    """Mean popularity percentile of each user's list; NaN for an empty list.

    Args:
        items: int32 [U, K].
        counts: int64 [N], how often each item was taken in training.

    >>> lists = np.array([[0, 1], [0, -1]], dtype=np.int32)
    >>> mean_popularity(lists, np.array([7, 0, 2, 2])).tolist()
    [0.5, 0.875]
    """
    return _mean_of_filled(items, popularity_percentiles(counts))


def long_tail_share(items: Lists, counts: npt.NDArray[np.int64]) -> PerUser:
    """Share of each user's list that is not among the 20% of items taken most often.

    Of items taken equally often, those that come first count as taken more; NaN for an empty list.

    >>> counts = np.array([9, 1, 1, 1, 1])
    >>> long_tail_share(np.array([[0, 1], [2, 3]], dtype=np.int32), counts).tolist()
    [0.5, 1.0]
    """
    in_tail = np.ones(len(counts))
    head = round(HEAD_SHARE * len(counts))
    in_tail[np.argsort(-counts, kind="stable")[:head]] = 0
    return _mean_of_filled(items, in_tail)


def intra_list_diversity(items: Lists, vectors: npt.NDArray[np.float32]) -> PerUser:
    """Mean cosine distance of the pairs in each user's list; NaN for lists of fewer than two.

    ``1 - mean over pairs of cos(x, y)``. With unit vectors, the pairs' sum of cosines is
    ``(|sum of vectors|² - n) / 2``, so a list costs as much as its length, not its square.

    Args:
        items: int32 [U, K].
        vectors: float32 [N, D], such as the features that were tokenized.

    >>> vectors = np.array([[1, 0], [2, 0], [0, 3]], dtype=np.float32)
    >>> lists = np.array([[0, 1], [0, 2], [1, -1]], dtype=np.int32)
    >>> intra_list_diversity(lists, vectors).tolist()
    [0.0, 1.0, nan]
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1)
    filled = items != NO_ITEM
    sums = np.zeros((len(items), vectors.shape[1]))
    for place in range(items.shape[1]):
        sums += np.where(filled[:, place, None], units[items[:, place]], 0)
    num = filled.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (np.square(sums).sum(axis=1) - num) / (num * (num - 1))
    return np.where(num > 1, 1 - cosines, np.nan)


def _mean_of_filled(items: Lists, values: npt.NDArray[np.float64]) -> PerUser:
    filled = items != NO_ITEM
    with np.errstate(invalid="ignore"):
        means = np.where(filled, values[items], 0).sum(axis=1) / filled.sum(axis=1)
    return np.asarray(means, dtype=np.float64)
