"""Metrics of recommendation lists that need no targets: coverage, popularity and diversity.

A list can be accurate and still hold only items that everybody is shown. These metrics depend on
the lists, on the items' interactions in training and on the items' features.

Shapes: U users, K listed items, N items, D feature dimensions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recgrit.data.recommendations import NO_ITEM

Lists = npt.NDArray[np.int32]
PerList = npt.NDArray[np.float64]

# Share of the catalogue that is the head, the items with the most interactions. All other items are
# the long tail.
HEAD_SHARE = 0.2


def catalogue_coverage(items: Lists, num_items: int) -> float:
    """Return the share of the catalogue that is in at least one list: ``|union of lists| / N``.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
            `NO_ITEM` fills the end of short lists.
        num_items: Number of items in the catalogue, N.

    >>> catalogue_coverage(np.array([[0, 1], [1, -1]], dtype=np.int32), 4)
    0.5
    """
    return len(np.unique(items[items != NO_ITEM])) / num_items


def popularity_percentiles(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the popularity percentile of each item, from 0 (fewest interactions) to 1 (most).

    The percentile is ``(items with fewer + half of the items with equally many) / N``. Its mean
    over the catalogue is 1/2, so lists of random items have 1/2 on average.

    Args:
        counts: Number of training interactions of each item, int64 ``[N]``.

    >>> popularity_percentiles(np.array([7, 0, 2, 2])).tolist()
    [0.875, 0.125, 0.5, 0.5]
    """
    ordered = np.sort(counts)
    below = np.searchsorted(ordered, counts, side="left")
    up_to = np.searchsorted(ordered, counts, side="right")
    return np.asarray((below + up_to) / (2 * len(counts)), dtype=np.float64)


def mean_popularity(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Return the mean popularity percentile of each user's list; NaN for an empty list.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        counts: Number of training interactions of each item, int64 ``[N]``.

    >>> lists = np.array([[0, 1], [0, -1]], dtype=np.int32)
    >>> mean_popularity(lists, np.array([7, 0, 2, 2])).tolist()
    [0.5, 0.875]
    """
    return _mean_of_filled(items, popularity_percentiles(counts))


def long_tail_share(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Return the share of each user's list that is outside the 20% most popular items.

    The most popular items are those with the most training interactions. Among items with equally
    many, the one with the lower ``item_idx`` counts as more popular. An empty list has NaN.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        counts: Number of training interactions of each item, int64 ``[N]``.

    >>> counts = np.array([9, 1, 1, 1, 1])
    >>> long_tail_share(np.array([[0, 1], [2, 3]], dtype=np.int32), counts).tolist()
    [0.5, 1.0]
    """
    in_tail = np.ones(len(counts))
    head = round(HEAD_SHARE * len(counts))
    in_tail[np.argsort(-counts, kind="stable")[:head]] = 0
    return _mean_of_filled(items, in_tail)


def average_popularity(items: Lists, counts: npt.NDArray[np.int64]) -> PerList:
    """Return the mean number of training interactions of each list's items; NaN if empty.

    This is the popularity bias of Yin et al. (VLDB 2012). Unlike `mean_popularity`, it grows with
    the size of the data, and a few bestsellers can dominate it.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        counts: Number of training interactions of each item, int64 ``[N]``.

    >>> lists = np.array([[0, 1], [0, -1]], dtype=np.int32)
    >>> average_popularity(lists, np.array([7, 0, 2, 2])).tolist()
    [3.5, 7.0]
    """
    return _mean_of_filled(items, counts.astype(np.float64))


def mean_self_information(
    items: Lists, num_takers: npt.NDArray[np.int64], num_users: int
) -> PerList:
    """Return the novelty of each user's list in bits: high if few users interacted with its items.

    The novelty is the mean over the listed items i of
    ``-log2(max(num_takers[i], 1) / num_users)`` (Zhou et al., PNAS 2010; Vargas and Castells,
    RecSys 2011). An item without users counts like an item with one user. An empty list has NaN.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        num_takers: Number of users who interacted with each item in training, int64 ``[N]``.
        num_users: Number of users in training.

    >>> lists = np.array([[0, 1], [2, -1]], dtype=np.int32)
    >>> mean_self_information(lists, np.array([8, 2, 0]), 8).tolist()
    [1.0, 3.0]
    """
    information = -np.log2(np.maximum(num_takers, 1) / num_users)
    return _mean_of_filled(items, information)


def gini_index(items: Lists, num_items: int) -> float:
    """Return the Gini index of the lists, which measures how unevenly they use the catalogue.

    The index is 0 if all items are listed equally often, and close to 1 if only one item is listed.
    It is ``sum over i of (2 i - N - 1) x_i / (N sum of x)``, where x_i is the number of lists that
    contain an item, sorted from the fewest (i = 1) to the most (i = N). This equals half of the
    mean difference between two items, divided by the mean (Gini, 1912; for recommendations: Fleder
    and Hosanagar, Management Science 2009). The index is NaN if no item is listed.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        num_items: Number of items in the catalogue, N.

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
    """Return the mean cosine distance between two items of each user's list.

    The value is ``1 - mean over pairs of cos(x, y)``, and NaN for a list of fewer than two items.
    For unit vectors, the sum of the cosines over all pairs of n items is
    ``(|sum of vectors|² - n) / 2``, so the cost of a list grows linearly with its length. An item
    whose features are all 0 has cosine 0 with every item.

    Args:
        items: Lists of K items for each of U users, by ``item_idx``, best first, int32 ``[U, K]``.
        features: Feature vectors of the items, float32 ``[N, D]``, such as the vectors that the
            semantic IDs were made from.

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
    num_units = (filled & (lengths[items, 0] > 0)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (np.square(sums).sum(axis=1) - num_units) / (num * (num - 1))
    return np.where(num > 1, 1 - cosines, np.nan)


def _mean_of_filled(items: Lists, values: npt.NDArray[np.float64]) -> PerList:
    filled = items != NO_ITEM
    with np.errstate(invalid="ignore"):
        means = np.where(filled, values[items], 0).sum(axis=1) / filled.sum(axis=1)
    return np.asarray(means, dtype=np.float64)
