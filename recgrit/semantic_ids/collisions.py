"""Making semantic IDs unique: by moving items to free codes, or by one more level.

*Greedy resolution* keeps the ID's length: under each prefix the closest item keeps its last code
and the others take the nearest free one. It cannot work where a prefix holds more items than the
last level has codes; then, or by choice, a *disambiguation level* numbers the items that share an
ID. Everything is vectorised over the catalogue.

Shapes: N items, L levels, K codes of the last level, D dimensions.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UniqueIds:
    """Unique IDs and what it took.

    Args:
        codes: int32 ``[N, L]`` or, with a disambiguation level, ``[N, L + 1]``.
        codebook_sizes: One per level of ``codes``.
        disambiguation_level: Index of the level that only tells items apart, None without one.
        num_moved: Items whose last code was changed.
        method: How the IDs became unique in the end.
    """

    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    disambiguation_level: int | None
    num_moved: int
    method: Literal["none needed", "greedy", "disambiguation"]


def make_unique(
    codes: npt.NDArray[np.int64],
    codebook_sizes: tuple[int, ...],
    item_ids: pl.Series,
    last_residuals: npt.NDArray[np.float32],
    last_codes: npt.NDArray[np.float32],
    *,
    method: Literal["greedy", "disambiguation"],
) -> UniqueIds:
    """Unique IDs from codes ``[N, L]``.

    Args:
        codes: One row per item.
        codebook_sizes: K of each level.
        item_ids: External ids; their hash orders a disambiguation level, so that it is stable.
        last_residuals: ``[N, D]``, what the last level quantized.
        last_codes: ``[K, D]``, the codes of the last level.
        method: "greedy" falls back to a disambiguation level where it cannot work, and logs it.
    """
    if method == "greedy":
        resolved = resolve_greedy(codes, last_residuals, last_codes)
        if resolved is not None:
            num_moved = int(np.sum(resolved[:, -1] != codes[:, -1]))
            return UniqueIds(
                codes=resolved,
                codebook_sizes=codebook_sizes,
                disambiguation_level=None,
                num_moved=num_moved,
                method="greedy" if num_moved else "none needed",
            )
        logger.warning(
            "Some prefixes hold more items than the last level has codes (%d): IDs get a "
            "disambiguation level instead of greedy resolution. More or larger levels avoid it.",
            codebook_sizes[-1],
        )
    digits = number_within_bucket(codes, item_ids)
    return UniqueIds(
        codes=np.column_stack([codes, digits]).astype(np.int32),
        codebook_sizes=(*codebook_sizes, int(digits.max()) + 1),
        disambiguation_level=codes.shape[1],
        num_moved=0,
        method="disambiguation",
    )


def resolve_greedy(
    codes: npt.NDArray[np.int64],
    last_residuals: npt.NDArray[np.float32],
    last_codes: npt.NDArray[np.float32],
) -> npt.NDArray[np.int32] | None:
    """Codes with collisions moved to free last codes, or None where a prefix is overfull.

    In each round every item without a place asks for the nearest code that is still free under its
    prefix, and the closest of those that ask for one code gets it.
    """
    num_codes = len(last_codes)
    _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    prefix = prefix.reshape(-1).astype(np.int64)
    if np.bincount(prefix).max() > num_codes:
        return None
    resolved = codes.astype(np.int32)
    place = prefix * num_codes + codes[:, -1]
    distance = np.square(last_residuals - last_codes[codes[:, -1]]).sum(axis=1)
    waiting = ~_closest_per_place(place, distance)
    taken = np.unique(place)
    items = np.flatnonzero(waiting)
    # [n, K] distances for the items that move only; a taken code is infinitely far.
    distances = _squared_distances(last_residuals[items], last_codes)
    while len(items):
        places = prefix[items, None] * num_codes + np.arange(num_codes)
        distances[np.isin(places, taken)] = np.inf
        nearest = distances.argmin(axis=1)
        wanted = prefix[items] * num_codes + nearest
        won = _closest_per_place(wanted, distances[np.arange(len(items)), nearest])
        resolved[items[won], -1] = nearest[won]
        taken = np.union1d(taken, wanted[won])
        items, distances = items[~won], distances[~won]
    return resolved


def number_within_bucket(
    codes: npt.NDArray[np.int64], item_ids: pl.Series
) -> npt.NDArray[np.int64]:
    """0, 1, 2, … for the items of each ID, in the order of a hash of their item_id."""
    _, bucket = np.unique(codes, axis=0, return_inverse=True)
    bucket = bucket.reshape(-1)
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(str(item).encode(), digest_size=8).digest(), "big")
            for item in item_ids
        ],
        dtype=np.uint64,
    )
    order = np.lexsort((hashes, bucket))
    counts = np.bincount(bucket)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    digits = np.empty(len(codes), dtype=np.int64)
    digits[order] = np.arange(len(codes)) - starts
    return digits


def _closest_per_place(
    place: npt.NDArray[np.int64], distance: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Whether each row is the closest (then the first) of those with its place."""
    order = np.lexsort((distance, place))
    first = np.ones(len(place), dtype=bool)
    first[1:] = place[order][1:] != place[order][:-1]
    closest = np.zeros(len(place), dtype=bool)
    closest[order[first]] = True
    return closest


def _squared_distances(
    rows: npt.NDArray[np.float32], codes: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    norms = np.square(rows).sum(axis=1)[:, None] + np.square(codes).sum(axis=1)[None, :]
    return np.asarray(norms - 2.0 * rows @ codes.T, dtype=np.float32)
