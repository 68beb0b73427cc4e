"""IDs for items that are added to a catalogue, without a change of existing IDs.

The tokenizer stays unchanged, so a new item gets the codes that it would have got before. If
another item has these codes, a table with a disambiguation level gives the new item the number
after the largest that an item with these codes has. A table without this level gives it the nearest
free last code under its prefix. If all last codes under the prefix are in use, it gets the nearest
free ID that differs in the last two codes.

Shapes: N existing items, n new items, L levels without disambiguation, K codes of the last level, D
dimensions, m IDs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from recgrit.errors import DataError
from recgrit.semantic_ids.collisions import (
    Codes,
    ResidualsOf,
    Vectors,
    number_rows,
    number_within_bucket,
    order_by_hash,
    resolve_greedy,
)
from recgrit.semantic_ids.table import SemanticIdTable

# Function from the row of a new item and IDs ``[m, L]`` to the squared distances ``[m]`` between
# the item and the vectors that the IDs decode to.
ErrorsOf = Callable[[int, Codes], Vectors]


@dataclass(frozen=True)
class AddedIds:
    """A table with new items, whose first rows are the rows of the old table.

    Args:
        table: Table of all items, old and new.
        num_moved: Number of new items whose first choice of an ID was not free.
    """

    table: SemanticIdTable
    num_moved: int


def add_items(
    table: SemanticIdTable,
    codes: Codes,
    item_ids: pl.Series,
    titles: pl.Series,
    *,
    residuals_of: ResidualsOf,
    last_codes: Vectors,
    errors_of: ErrorsOf,
) -> AddedIds:
    """Append new items to a table of semantic IDs.

    If several new items compete for an ID, distances and hashes of the item ids decide. The order
    of the new items has no influence.

    Args:
        table: Table of the existing items.
        codes: Codes that the tokenizer gives the new items, ``[n, L]``.
        item_ids: Ids of the new items; none of them is in the table.
        titles: Titles of the new items.
        residuals_of: Function from rows of new items, counted from 0, to the residuals that the
            last level of the quantizer quantizes, ``[n, D]``.
        last_codes: Codebook entries of the last level, ``[K, D]``.
        errors_of: Function from the row of a new item and m IDs to the squared distances between
            the item and these IDs, ``[m]``.

    Raises:
        DataError: An item has no free ID that differs from its own in the last two codes only.
    """
    if not len(codes):
        return AddedIds(table, 0)
    num_old, level = len(table), table.disambiguation_level
    if level is not None:
        unique, num_moved = _take_next_numbers(table.codes.astype(np.int64), codes, item_ids)
    else:
        unique, num_moved = _take_free_codes(
            table, codes, item_ids, residuals_of, last_codes, errors_of
        )
    sizes = list(table.codebook_sizes)
    if level is not None:
        sizes[level] = max(sizes[level], int(unique[:, level].max()) + 1)
    longer = SemanticIdTable(
        codes=np.concatenate([table.codes, unique.astype(np.int32)]),
        codebook_sizes=tuple(sizes),
        disambiguation_level=level,
        item_ids=pl.concat([table.item_ids, item_ids.cast(pl.String).alias(table.item_ids.name)]),
        titles=pl.concat([table.titles, titles.cast(pl.String).alias(table.titles.name)]),
    )
    assert np.array_equal(longer.codes[:num_old], table.codes)
    return AddedIds(longer, num_moved)


def _take_next_numbers(old: Codes, codes: Codes, item_ids: pl.Series) -> tuple[Codes, int]:
    """Number new items after the items with the same codes.

    Returns:
        IDs of the new items, ``[n, L + 1]``, and the number of new items that are not the first
        item with their codes.
    """
    bucket, _ = number_rows(np.concatenate([old[:, :-1], codes]))
    next_number = np.zeros(int(bucket.max()) + 1, dtype=np.int64)
    np.maximum.at(next_number, bucket[: len(old)], old[:, -1] + 1)
    digits = number_within_bucket(codes, item_ids) + next_number[bucket[len(old) :]]
    return np.column_stack([codes, digits]), int(np.sum(digits > 0))


def _take_free_codes(
    table: SemanticIdTable,
    codes: Codes,
    item_ids: pl.Series,
    residuals_of: ResidualsOf,
    last_codes: Vectors,
    errors_of: ErrorsOf,
) -> tuple[Codes, int]:
    """Give new items whose codes are in use the nearest free codes.

    Returns:
        IDs of the new items, ``[n, L]``, and the number of new items whose codes differ from the
        tokenizer's.
    """
    num_old = len(table)
    together = np.concatenate([table.codes.astype(np.int64), codes])
    prefix, counts = number_rows(together[:, :-1])
    num_left = len(last_codes) - np.bincount(prefix[:num_old], minlength=len(counts))
    # If a prefix has too few free codes, the first new items by hash stay under it.
    order = np.lexsort((order_by_hash(item_ids, np.arange(len(codes))), prefix[num_old:]))
    ordered = prefix[num_old:][order]
    place_in_prefix = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    stays = np.empty(len(codes), dtype=bool)
    stays[order] = place_in_prefix < num_left[ordered]
    fitting = np.flatnonzero(stays)
    resolved = resolve_greedy(
        np.concatenate([together[:num_old], codes[fitting]]),
        pl.concat([table.item_ids.rename("item_id"), item_ids.gather(fitting).rename("item_id")]),
        lambda rows: residuals_of(fitting[rows - num_old]),
        last_codes,
        num_fixed=num_old,
    )
    assert resolved is not None  # Items that do not fit were left out.
    found = codes.copy()
    found[fitting] = resolved[num_old:]
    given = resolved.astype(np.int64)
    for row in order[~stays[order]].tolist():
        found[row] = _find_nearby(given, row, codes[row], table.codebook_sizes, item_ids, errors_of)
        given = np.concatenate([given, found[row : row + 1]])
    return found, int(np.sum(np.any(found != codes, axis=1)))


def _find_nearby(
    given: Codes,
    row: int,
    own: Codes,
    sizes: tuple[int, ...],
    item_ids: pl.Series,
    errors_of: ErrorsOf,
) -> Codes:
    """Return the nearest free ID that differs from an item's own in at most the last two codes."""
    best: Codes | None = None
    least = np.inf
    if len(own) > 1:
        beside = np.all(given[:, :-2] == own[:-2], axis=1)
        taken = np.zeros(sizes[-2:], dtype=bool)
        taken[given[beside, -2], given[beside, -1]] = True
        for code in range(sizes[-2]):
            free = np.flatnonzero(~taken[code])
            if len(free):
                candidates = np.tile(own, (len(free), 1))
                candidates[:, -2], candidates[:, -1] = code, free
                errors = errors_of(row, candidates)
                if errors.min() < least:
                    best, least = candidates[errors.argmin()], float(errors.min())
    if best is None:
        raise DataError(
            f"No semantic ID is left near that of item {item_ids[row]!r}: every ID that differs in "
            "the last two codes is taken. Train again with more levels or larger codebooks."
        )
    return best
