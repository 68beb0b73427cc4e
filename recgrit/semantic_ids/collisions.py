"""Ways to make semantic IDs unique: moving items to free codes, or adding a level.

*Greedy resolution* keeps the length of the ID. Under each prefix, the closest of the items with
equal codes keeps its last code, and the others take the nearest free last codes. It is impossible
if a prefix has more items than the last level has codes. In this case, or if it is requested, a
*disambiguation level* numbers the items that share an ID. *Sinkhorn balancing* first spreads the
items that share an ID evenly over all codes of the last level, as LC-Rec does (arXiv 2311.09049,
section 3.2). Greedy resolution then resolves the remaining collisions.

All steps are vectorised over the catalogue. Keys of 64 bits are sorted instead of rows, and
distances are computed only for items that share an ID, one block of prefixes at a time.

Shapes: N items, L levels, K codes of the last level, D dimensions, n chosen rows.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

logger = logging.getLogger(__name__)

Codes = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
# Function from rows of the catalogue ``[n]`` to the residuals that the last level of the quantizer
# quantizes, ``[n, D]``.
ResidualsOf = Callable[[npt.NDArray[np.intp]], Vectors]

# Number of items whose distances to all last codes are in memory at once.
BLOCK_ROWS = 32_768
# Softness of the Sinkhorn plan: a share of the mean difference between the squared distances to a
# code and to the nearest code.
SINKHORN_SOFTNESS = 0.05
SINKHORN_ITERATIONS = 50


@dataclass(frozen=True)
class UniqueIds:
    """Unique semantic IDs, and how they became unique.

    Args:
        codes: Unique IDs, int32 ``[N, L]``, or ``[N, L + 1]`` with a disambiguation level.
        codebook_sizes: Number of codes of each level in ``codes``.
        disambiguation_level: Index of the level that only tells items apart; None if there is no
            such level.
        num_moved: Number of items whose last code was changed.
        method: The method that made the IDs unique. ``none needed`` means that they were unique
            already.
        seconds: Duration of the work in seconds.
    """

    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    disambiguation_level: int | None
    num_moved: int
    method: Literal["none needed", "greedy", "sinkhorn", "disambiguation"]
    seconds: float


def explain_method(method: str) -> str:
    """Describe in words how IDs become unique.

    Args:
        method: A value of `UniqueIds.method`.

    Example:
        >>> explain_method("disambiguation")
        'one more code that numbers the items of an ID (disambiguation)'
    """
    return {
        "greedy": "giving the farther of two items another last code",
        "sinkhorn": "giving out the last codes evenly",
        "disambiguation": "one more code that numbers the items of an ID (disambiguation)",
    }.get(method, method)


def make_unique(
    codes: Codes,
    codebook_sizes: tuple[int, ...],
    item_ids: pl.Series,
    residuals_of: ResidualsOf,
    last_codes: Vectors,
    *,
    method: Literal["greedy", "sinkhorn", "disambiguation"],
) -> UniqueIds:
    """Make the IDs of all items unique.

    Args:
        codes: Codes of all items, ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        item_ids: Ids of the items. Hashes of the ids order items that nothing else distinguishes,
            so that the result does not depend on the order of the rows.
        residuals_of: Function from n rows to the residuals that the last level quantizes,
            ``[n, D]``. It is called only for items that share an ID.
        last_codes: Codebook entries of the last level, ``[K, D]``.
        method: ``greedy``, ``sinkhorn`` or ``disambiguation``. If ``greedy`` or ``sinkhorn`` is
            impossible, a warning is logged and ``disambiguation`` is used.
    """
    started = time.perf_counter()
    if method != "disambiguation":
        start = codes if method == "greedy" else balance_last_level(codes, residuals_of, last_codes)
        resolved = resolve_greedy(start, item_ids, residuals_of, last_codes)
        if resolved is not None:
            num_moved = int(np.sum(resolved[:, -1] != codes[:, -1]))
            return UniqueIds(
                codes=resolved,
                codebook_sizes=codebook_sizes,
                disambiguation_level=None,
                num_moved=num_moved,
                method=method if num_moved else "none needed",
                seconds=time.perf_counter() - started,
            )
        logger.warning(
            "Some prefixes hold more items than the last level has codes (%d): IDs are made "
            "unique by %s instead of %s. More levels or larger codebooks avoid this.",
            codebook_sizes[-1],
            explain_method("disambiguation"),
            explain_method(method),
        )
    return disambiguate(codes, codebook_sizes, item_ids, started)


def disambiguate(
    codes: Codes, codebook_sizes: tuple[int, ...], item_ids: pl.Series, started: float | None = None
) -> UniqueIds:
    """Make IDs unique by one more level, which numbers the items that share an ID.

    Args:
        codes: Codes of all items, ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        item_ids: Ids of the items. Hashes of the ids give the order of the numbers.
        started: Time from `time.perf_counter` when the work began. None means now.
    """
    started = time.perf_counter() if started is None else started
    digits = number_within_bucket(codes, item_ids)
    return UniqueIds(
        codes=np.column_stack([codes, digits]).astype(np.int32),
        codebook_sizes=(*codebook_sizes, int(digits.max()) + 1),
        disambiguation_level=codes.shape[1],
        num_moved=0,
        method="disambiguation",
        seconds=time.perf_counter() - started,
    )


def resolve_greedy(
    codes: Codes,
    item_ids: pl.Series,
    residuals_of: ResidualsOf,
    last_codes: Vectors,
    *,
    num_fixed: int = 0,
) -> npt.NDArray[np.int32] | None:
    """Make IDs unique by moving items that share an ID to free last codes.

    Of the items that share an ID, the item nearest to its last code keeps it. Then, in rounds, each
    remaining item requests the nearest code that is still free under its prefix, and of the items
    that request a code, the nearest gets it.

    Args:
        codes: Codes of all items, ``[N, L]``.
        item_ids: Ids of the items. Hashes of the ids order items with equal distances.
        residuals_of: Function from n rows to the residuals that the last level quantizes,
            ``[n, D]``. It is never called for fixed rows.
        last_codes: Codebook entries of the last level, ``[K, D]``.
        num_fixed: Number of rows at the start that keep their IDs, even if other items are nearer.
            These IDs have to be unique.

    Returns:
        Unique codes ``[N, L]``, or None if a prefix has more items than the last level has codes.
    """
    num_codes = len(last_codes)
    prefix, counts = number_rows(codes[:, :-1])
    if counts.max() > num_codes:
        return None
    place = prefix * num_codes + codes[:, -1]
    shared = _shared(place)
    resolved = codes.astype(np.int32)
    if len(shared) == 0:
        return resolved
    ties = order_by_hash(item_ids, shared)
    distance = np.full(len(shared), -1, dtype=np.float32)  # Closest: fixed rows stay.
    free = shared >= num_fixed
    distance[free] = np.concatenate(
        [
            np.square(residuals_of(rows) - last_codes[codes[rows, -1]]).sum(axis=1)
            for rows in _blocks(shared[free])
        ]
    )
    stays = _closest_per_place(place[shared], distance, ties)
    waiting, ties = shared[~stays], ties[~stays]
    by_prefix = np.lexsort((ties, prefix[waiting]))
    waiting, ties = waiting[by_prefix], ties[by_prefix]
    occupied = np.unique(place)
    for start, stop in _prefix_blocks(prefix[waiting]):
        items = waiting[start:stop]
        crowded, group = np.unique(prefix[items], return_inverse=True)
        # Places are sorted by prefix, so those of the crowded prefixes are one range.
        first, last = np.searchsorted(
            occupied, [crowded[0] * num_codes, (crowded[-1] + 1) * num_codes]
        )
        where, code = np.divmod(occupied[first:last], num_codes)
        inside = np.isin(where, crowded)
        taken = np.zeros((len(crowded), num_codes), dtype=bool)
        taken[np.searchsorted(crowded, where[inside]), code[inside]] = True
        distances = _squared_distances(residuals_of(items), last_codes)
        resolved[items, -1] = _fill_free_codes(
            group.reshape(-1), distances, taken, ties[start:stop]
        )
    return resolved


def balance_last_level(codes: Codes, residuals_of: ResidualsOf, last_codes: Vectors) -> Codes:
    """Spread the items that share an ID evenly over the codes of the last level.

    Entropic optimal transport (Sinkhorn-Knopp) assigns these items to the last codes at the lowest
    squared distance, such that all codes get about equally many items. It works on one block of
    items at a time.

    Args:
        codes: Codes of all items, ``[N, L]``.
        residuals_of: Function from n rows to the residuals that the last level quantizes,
            ``[n, D]``.
        last_codes: Codebook entries of the last level, ``[K, D]``.

    Returns:
        Codes of all items, ``[N, L]``. They need not be unique.
    """
    place, _ = number_rows(codes)
    shared = _shared(place)
    balanced = codes.copy()
    for rows in _blocks(shared):
        distances = _squared_distances(residuals_of(rows), last_codes)
        above = distances - distances.min(axis=1, keepdims=True)
        unit = max(SINKHORN_SOFTNESS * float(above.mean()), 1e-12)
        plan = np.exp(-above.astype(np.float64) / unit) + 1e-200
        scale = np.ones(len(last_codes))
        for _ in range(SINKHORN_ITERATIONS):
            weight = 1 / (plan @ scale)
            scale = len(rows) / len(last_codes) / (weight @ plan)
        balanced[rows, -1] = (plan * scale).argmax(axis=1)
    return balanced


def number_within_bucket(codes: Codes, item_ids: pl.Series) -> Codes:
    """Number the items of each ID by 0, 1, 2, … in the order of a hash of their item id.

    Args:
        codes: Codes of all items, ``[N, L]``.
        item_ids: Ids of the items.

    Returns:
        Number of each item within its ID, ``[N]``.
    """
    bucket, counts = number_rows(codes)
    shared = np.flatnonzero(counts[bucket] > 1)
    order = np.lexsort((order_by_hash(item_ids, shared), bucket[shared]))
    counts = counts[counts > 1]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    digits = np.zeros(len(codes), dtype=np.int64)
    digits[shared[order]] = np.arange(len(shared)) - starts
    return digits


def _fill_free_codes(
    group: npt.NDArray[np.intp], distances: Vectors, taken: npt.NDArray[np.bool_], ties: Codes
) -> Codes:
    """Return a free last code for each item.

    Args:
        group: Index of each item's prefix among the prefixes in ``taken``, ``[n]``.
        distances: Squared distance of each item to each last code, ``[n, K]``; overwritten.
        taken: Whether each last code is in use under each prefix, bool ``[groups, K]``; updated.
        ties: Rank of each item, ``[n]``. The lowest rank wins if distances are equal.
    """
    found = np.empty(len(group), dtype=np.int64)
    left = np.arange(len(group))
    while len(left):
        distances[taken[group[left]]] = np.inf
        nearest = distances.argmin(axis=1)
        won = _closest_per_place(
            group[left] * taken.shape[1] + nearest,
            distances[np.arange(len(left)), nearest],
            ties[left],
        )
        found[left[won]] = nearest[won]
        taken[group[left[won]], nearest[won]] = True
        left, distances = left[~won], distances[~won]
    return found


def number_rows(codes: Codes) -> tuple[Codes, Codes]:
    """Give equal rows the same number, counted from 0.

    Args:
        codes: Rows of codes, ``[N, L]``.

    Returns:
        Number of each row, ``[N]``, and how many rows have each number.
    """
    key = np.zeros(len(codes), dtype=np.int64)
    capacity = 1
    for column in codes.T:
        size = int(column.max()) + 1
        if capacity * size >= 2**63:
            key = np.unique(key, return_inverse=True)[1].reshape(-1)
            capacity = int(key.max()) + 1
        key = key * size + column
        capacity *= size
    _, number, counts = np.unique(key, return_inverse=True, return_counts=True)
    return number.reshape(-1).astype(np.int64), counts


def _shared(place: Codes) -> npt.NDArray[np.intp]:
    """Return the indices of the rows whose value in ``place`` occurs more than once."""
    _, number, counts = np.unique(place, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[number.reshape(-1)] > 1)


def order_by_hash(item_ids: pl.Series, rows: npt.NDArray[np.intp]) -> Codes:
    """Rank rows by a hash of their item id.

    The order is arbitrary, but the same on every machine.

    Args:
        item_ids: Ids of all items.
        rows: The rows to rank, ``[n]``.

    Returns:
        Rank of each of the rows, ``[n]``.
    """
    chosen = item_ids.gather(pl.Series(rows.astype(np.int64))).cast(pl.String)
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "big")
            for item in chosen
        ),
        dtype=np.uint64,
        count=len(chosen),
    )
    ranks = np.empty(len(rows), dtype=np.int64)
    ranks[np.argsort(hashes, kind="stable")] = np.arange(len(rows))
    return ranks


def _blocks(rows: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    return [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]


def _prefix_blocks(prefix: Codes) -> list[tuple[int, int]]:
    """Split sorted prefixes into ranges of about `BLOCK_ROWS` rows that do not divide a prefix."""
    ends = np.flatnonzero(np.diff(prefix)) + 1
    blocks, start = [], 0
    while start < len(prefix):
        later = ends[np.searchsorted(ends, start + BLOCK_ROWS) :]
        stop = int(later[0]) if len(later) else len(prefix)
        blocks.append((start, stop))
        start = stop
    return blocks


def _closest_per_place(place: Codes, distance: Vectors, ties: Codes) -> npt.NDArray[np.bool_]:
    """Return whether each row has the smallest distance of all rows with the same place.

    Args:
        place: Number of each row's combination of prefix and last code.
        distance: Squared distance of each row to its last code.
        ties: Rank of each row. The lowest rank wins if distances are equal.
    """
    order = np.lexsort((ties, distance, place))
    first = np.ones(len(place), dtype=bool)
    first[1:] = place[order][1:] != place[order][:-1]
    closest = np.zeros(len(place), dtype=bool)
    closest[order[first]] = True
    return closest


def _squared_distances(rows: Vectors, codes: Vectors) -> Vectors:
    norms = np.square(rows).sum(axis=1)[:, None] + np.square(codes).sum(axis=1)[None, :]
    return np.asarray(norms - 2.0 * rows @ codes.T, dtype=np.float32)
