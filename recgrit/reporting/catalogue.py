"""The searchable item table of a page, and the items whose IDs collide.

Items collide if their IDs are equal without the disambiguation level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.reporting.tree import shorten
from recgrit.semantic_ids.table import SemanticIdTable, format_semantic_id

# Largest number of rows of the item table. A page with more rows is slow to open.
MAX_ROWS = 15_000
NUM_BUCKETS_SHOWN = 8
NUM_TITLES_SHOWN = 6


@dataclass(frozen=True)
class ItemRows:
    """The rows of the searchable item table.

    Args:
        item_ids: External id of each item.
        titles: Title of each item, empty if the title is the same as the id.
        codes: Semantic ID of each item, one code per level.
        counts: Number of training interactions of each item.
        num_items: Number of items in the catalogue. It is larger than the number of rows if they
            are a sample.
        sample: Text that says which items the rows are; empty if they are all items.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    codes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    num_items: int
    sample: str


@dataclass(frozen=True)
class Bucket:
    """Several items that shared one ID.

    Args:
        prefix: The shared codes as text.
        num_items: Number of items that share them.
        titles: Titles of some of these items.
    """

    prefix: str
    num_items: int
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Collisions:
    """The collisions of IDs, which the disambiguation level resolves.

    Args:
        num_ids: Number of IDs by the number of items per ID. Key 1 counts the IDs of a single item.
        largest: The IDs with the most items.
    """

    num_ids: dict[int, int]
    largest: tuple[Bucket, ...]


def list_items(table: SemanticIdTable, counts: npt.NDArray[np.int64]) -> ItemRows:
    """Return the items for the searchable table, in the order of the catalogue.

    If the catalogue has more than `MAX_ROWS` items, only those with the most interactions are
    returned.

    Args:
        table: ID table of all items.
        counts: Number of training interactions of each item, int64 ``[N]`` for N items.
    """
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
    """Find IDs that several items share without the disambiguation level.

    The result is None if the IDs have no disambiguation level.
    """
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
