"""Making semantic IDs unique: by moving items to free codes, or by one more level.

*Greedy resolution* keeps the ID's length: under each prefix the closest item keeps its last code
and the others take the nearest free one. It cannot work where a prefix holds more items than the
last level has codes; then, or by choice, a *disambiguation level* numbers the items that share an
ID. A *Sinkhorn-balanced* last level first spreads the items that share an ID evenly over all last
codes, as LC-Rec does (arXiv 2311.09049, section 3.2), and leaves what still collides to greedy
resolution.

Everything is vectorised over the catalogue: keys of 64 bits are sorted instead of rows, and
distances are computed only for items that share an ID, a block of prefixes at a time.

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
# What the last level was given for some rows of the catalogue, [n] -> [n, D].
ResidualsOf = Callable[[npt.NDArray[np.intp]], Vectors]

# Items whose distances to all last codes are held at once.
BLOCK_ROWS = 32_768
# The softness of the Sinkhorn plan, in mean differences between near and far codes.
SINKHORN_SOFTNESS = 0.05
SINKHORN_ITERATIONS = 50


@dataclass(frozen=True)
class UniqueIds:
    """Unique IDs and what it took.

    Args:
        codes: int32 ``[N, L]`` or, with a disambiguation level, ``[N, L + 1]``.
        codebook_sizes: One per level of ``codes``.
        disambiguation_level: Index of the level that only tells items apart, None without one.
        num_moved: Items whose last code was changed.
        method: How the IDs became unique in the end.
        seconds: What it took.
    """

    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    disambiguation_level: int | None
    num_moved: int
    method: Literal["none needed", "greedy", "sinkhorn", "disambiguation"]
    seconds: float


def explain_method(method: str) -> str:
    """How IDs became unique, in words.

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
    """Unique IDs from codes ``[N, L]``.

    Args:
        codes: One row per item.
        codebook_sizes: K of each level.
        item_ids: External ids; their hash orders items that nothing else tells apart, so that IDs
            do not depend on the order of rows.
        residuals_of: What the last level quantized; asked only for items that share an ID.
        last_codes: ``[K, D]``, the codes of the last level.
        method: "greedy" and "sinkhorn" fall back to a disambiguation level where they cannot work,
            and log it.
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
            "Some prefixes hold more items than the last level has codes (%d): IDs become unique "
            "by %s instead of %s. More or larger levels avoid it.",
            codebook_sizes[-1],
            explain_method("disambiguation"),
            explain_method(method),
        )
    return disambiguate(codes, codebook_sizes, item_ids, started)


def disambiguate(
    codes: Codes, codebook_sizes: tuple[int, ...], item_ids: pl.Series, started: float | None = None
) -> UniqueIds:
    """Unique IDs by one more level, which numbers the items that share an ID.

    Args:
        codes: ``[N, L]``.
        codebook_sizes: K of each level.
        item_ids: External ids; their hash gives the order.
        started: When the work on them began, by `time.perf_counter`.
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
    """Codes with collisions moved to free last codes, or None where a prefix is overfull.

    Of the items that share an ID, the closest keeps it. Then, in rounds, every item without a place
    asks for the nearest code that is still free under its prefix, and the closest of those that ask
    for one code gets it.

    Args:
        codes: ``[N, L]``.
        item_ids: External ids, whose hash orders what distances do not.
        residuals_of: What the last level quantized; never asked for fixed rows.
        last_codes: ``[K, D]``.
        num_fixed: The first rows, which are unique and keep their IDs whatever is closer.
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
    distance = np.full(len(shared), -1, dtype=np.float32)  # Closer than any: what is fixed stays.
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
        # Places are sorted by prefix: those of the crowded prefixes lie in one range.
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
    """Codes ``[N, L]`` whose items that shared an ID are spread evenly over the last codes.

    Entropic optimal transport (Sinkhorn-Knopp) of those items to the last codes, all codes getting
    equally many, at the lowest squared distance; a block of items at a time. Not yet unique.
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
    """0, 1, 2, … for the items of each ID, in the order of a hash of their item_id."""
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
    """A free code of its group for each item: ``distances`` [n, K], ``taken`` [groups, K]."""
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
    """A number from 0 for each different row, per row ``[N]``, and how many rows have it."""
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
    """Rows whose place some other row has too."""
    _, number, counts = np.unique(place, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[number.reshape(-1)] > 1)


def order_by_hash(item_ids: pl.Series, rows: npt.NDArray[np.intp]) -> Codes:
    """Ranks of the rows by a hash of their item_id: arbitrary, the same on every machine."""
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
    """Ranges of sorted prefixes that end between two prefixes, of about `BLOCK_ROWS` rows each."""
    ends = np.flatnonzero(np.diff(prefix)) + 1
    blocks, start = [], 0
    while start < len(prefix):
        later = ends[np.searchsorted(ends, start + BLOCK_ROWS) :]
        stop = int(later[0]) if len(later) else len(prefix)
        blocks.append((start, stop))
        start = stop
    return blocks


def _closest_per_place(place: Codes, distance: Vectors, ties: Codes) -> npt.NDArray[np.bool_]:
    """Whether each row is the closest, then the first by ``ties``, of those with its place."""
    order = np.lexsort((ties, distance, place))
    first = np.ones(len(place), dtype=bool)
    first[1:] = place[order][1:] != place[order][:-1]
    closest = np.zeros(len(place), dtype=bool)
    closest[order[first]] = True
    return closest


def _squared_distances(rows: Vectors, codes: Vectors) -> Vectors:
    norms = np.square(rows).sum(axis=1)[:, None] + np.square(codes).sum(axis=1)[None, :]
    return np.asarray(norms - 2.0 * rows @ codes.T, dtype=np.float32)
