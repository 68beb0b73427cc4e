"""What lists of recommendations are like, whoever they are right for: their reach and variety.

A list can be accurate and yet hold what everybody is shown anyway. These are functions of the
lists, of the items' interactions in training, and of the items' features; no target is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.data.recommendations import NO_ITEM

Lists = npt.NDArray[np.int32]
PerList = npt.NDArray[np.float64]

# The items with the most interactions make up the head; all others are the long tail.
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
    """Where each item stands by its number of interactions, from 0 (fewest) to 1 (most).

    ``(items with fewer + half of those with as many) / N``: the mean over the catalogue is 1/2, so
    lists of random items have 1/2 on average.

    >>> popularity_percentiles(np.array([7, 0, 2, 2])).tolist()
    [0.875, 0.125, 0.5, 0.5]
    """
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return np.asarray((below + up_to) / (2 * len(counts)), dtype=np.float64)


def mean_popularity(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Mean popularity percentile of each user's list; NaN for an empty list.

    Args:
        items: int32 [U, K].
        counts: int64 [N], interactions with each item in training.

    >>> lists = np.array([[0, 1], [0, -1]], dtype=np.int32)
    >>> mean_popularity(lists, np.array([7, 0, 2, 2])).tolist()
    [0.5, 0.875]
    """
    return _mean_of_filled(items, popularity_percentiles(counts))


def long_tail_share(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Share of each user's list outside the 20% of items with the most interactions.

    Of items with equally many, those that come first count as having more; NaN for an empty list.

    >>> counts = np.array([9, 1, 1, 1, 1])
    >>> long_tail_share(np.array([[0, 1], [2, 3]], dtype=np.int32), counts).tolist()
    [0.5, 1.0]
    """
    in_tail = np.ones(len(counts))
    head = round(HEAD_SHARE * len(counts))
    in_tail[np.argsort(-counts, kind="stable")[:head]] = 0
    return _mean_of_filled(items, in_tail)


def average_popularity(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Mean number of interactions of the items in each user's list; NaN for an empty list.

    ``mean over listed i of counts[i]``, the popularity bias of Yin et al. (VLDB 2012). Unlike
    `mean_popularity` it grows with the data, and a few bestsellers outweigh all else.

    >>> lists = np.array([[0, 1], [0, -1]], dtype=np.int32)
    >>> average_popularity(lists, np.array([7, 0, 2, 2])).tolist()
    [3.5, 7.0]
    """
    return _mean_of_filled(items, counts.astype(np.float64))


def mean_self_information(
    items: Lists, num_takers: npt.NDArray[np.int64], num_users: int
) -> PerList:
    """Novelty of each user's list, in bits: how surprising it is that somebody took its items.

    ``mean over listed i of -log2(max(num_takers[i], 1) / num_users)`` (Zhou et al., PNAS 2010;
    Vargas and Castells, RecSys 2011); NaN for an empty list. An item that nobody took counts as one
    that one user did.

    Args:
        items: int32 [U, K].
        num_takers: int64 [N], users with each item in training.
        num_users: Users in training.

    >>> lists = np.array([[0, 1], [2, -1]], dtype=np.int32)
    >>> mean_self_information(lists, np.array([8, 2, 0]), 8).tolist()
    [1.0, 3.0]
    """
    information = -np.log2(np.maximum(num_takers, 1) / num_users)
    return _mean_of_filled(items, information)


def gini_index(items: Lists, num_items: int) -> float:
    """How unevenly the catalogue is listed: 0 if all items are equally often, towards 1 if one is.

    ``sum over i of (2 i - N - 1) x_i / (N sum of x)`` with x the number of lists of each item, from
    the fewest (i = 1) to the most (i = N): half the mean difference of two items over the mean
    (Gini, 1912; of recommendations: Fleder and Hosanagar, Management Science 2009). NaN if nothing
    is listed.

    Args:
        items: int32 [U, K].
        num_items: N.

    >>> gini_index(np.array([[0, 1], [2, 3]], dtype=np.int32), 4)
    0.0
    >>> gini_index(np.array([[0], [0]], dtype=np.int32), 4)
    0.75
    """
    times = np.sort(np.bincount(items[items != NO_ITEM], minlength=num_items))
    if not times.any():
        return float("nan")
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights @ times) / (num_items * times.sum()))


def intra_list_diversity(items: Lists, features: npt.NDArray[np.float32]) -> PerList:
    """Mean cosine distance of the pairs in each user's list; NaN for lists of fewer than two.

    ``1 - mean over pairs of cos(x, y)``. With unit vectors, the pairs' sum of cosines is
    ``(|sum of vectors|² - n) / 2``, so a list costs as much as its length, not its square.

    Args:
        items: int32 [U, K].
        features: float32 [N, D], such as those that were tokenized.

    >>> features = np.array([[1, 0], [2, 0], [0, 3]], dtype=np.float32)
    >>> lists = np.array([[0, 1], [0, 2], [1, -1]], dtype=np.int32)
    >>> intra_list_diversity(lists, features).tolist()
    [0.0, 1.0, nan]
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.where(lengths > 0, lengths, 1)
    filled = items != NO_ITEM
    sums = np.zeros((len(items), features.shape[1]))
    for place in range(items.shape[1]):
        sums += np.where(filled[:, place, None], units[items[:, place]], 0)
    num = filled.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (np.square(sums).sum(axis=1) - num) / (num * (num - 1))
    return np.where(num > 1, 1 - cosines, np.nan)


def _mean_of_filled(items: Lists, values: npt.NDArray[np.float64]) -> PerList:
    filled = items != NO_ITEM
    with np.errstate(invalid="ignore"):
        means = np.where(filled, values[items], 0).sum(axis=1) / filled.sum(axis=1)
    return np.asarray(means, dtype=np.float64)
