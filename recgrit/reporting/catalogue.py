"""The items of a run for a table to search, and what shared an ID before IDs were made unique."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.reporting.tree import shorten
from recgrit.semantic_ids.table import SemanticIdTable, format_semantic_id

# More rows make a page that is slow to open.
MAX_ROWS = 15_000
NUM_BUCKETS_SHOWN = 8
NUM_TITLES_SHOWN = 6


@dataclass(frozen=True)
class ItemRows:
    """Items to search.

    Args:
        item_ids: External ids.
        titles: Empty where a title is only the id again.
        codes: The ID of each.
        counts: Interactions with each in training.
        num_items: Size of the catalogue: more than rows if these are a sample.
        sample: What the rows are if not all: said on the page.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    num_items: int
    sample: str


@dataclass(frozen=True)
class Bucket:
    """Items that shared an ID.

    Args:
        prefix: What they share, as text.
        num_items: How many.
        titles: Some of them.
    """

    prefix: str
    num_items: int
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Collisions:
    """Items that one more level tells apart.

    Args:
        num_ids: Number of IDs by the number of items on each, from 1.
        largest: The fullest IDs.
    """

    num_ids: dict[int, int]
    largest: tuple[Bucket, ...]


def list_items(table: SemanticIdTable, counts: npt.NDArray[np.int64]) -> ItemRows:
    """All items in catalogue order or, of a large one, those with the most interactions."""
    rows = np.arange(len(table))
    sample = ""
    if len(table) > MAX_ROWS:
        rows = np.sort(np.argsort(-counts, kind="stable")[:MAX_ROWS])
        sample = f"the {MAX_ROWS:,} items with the most interactions in training, of {len(table):,}"
    item_ids, titles = table.item_ids.gather(rows).to_list(), table.titles.gather(rows).to_list()
    return ItemRows(
        item_ids=tuple(item_ids),
        titles=tuple(
            "" if title == item_id else title
            for item_id, title in zip(item_ids, titles, strict=True)
        ),
        codes=tuple(map(tuple, table.codes[rows].tolist())),
        counts=tuple(counts[rows].tolist()),
        num_items=len(table),
        sample=sample,
    )


def find_collisions(table: SemanticIdTable) -> Collisions | None:
    """The IDs that several items share but for the disambiguation level; None without one."""
    if table.disambiguation_level is None:
        return None
    prefixes, bucket_of_item, sizes = np.unique(
        table.codes[:, : table.disambiguation_level],
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    bucket_of_item = bucket_of_item.reshape(-1)
    num_ids = {int(n): int(k) for n, k in zip(*np.unique(sizes, return_counts=True), strict=True)}
    largest = []
    for bucket in np.argsort(-sizes, kind="stable")[:NUM_BUCKETS_SHOWN]:
        if sizes[bucket] < 2:
            break
        items = np.flatnonzero(bucket_of_item == bucket)
        titles = table.titles.gather(items[:NUM_TITLES_SHOWN]).to_list()
        largest.append(
            Bucket(
                format_semantic_id(prefixes[bucket].tolist()),
                int(sizes[bucket]),
                tuple(map(shorten, titles)),
            )
        )
    return Collisions(num_ids, tuple(largest))
