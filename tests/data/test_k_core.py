from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.k_core import cut_to_k_core
from recgrit.data.partitions import DiskStore, MemoryStore, Store

codes = st.integers(0, 5)
pairs = st.lists(st.tuples(codes, codes), max_size=40)


def brute_force_core(
    rows: list[tuple[int, int]], per_user: int, per_item: int
) -> list[tuple[int, int]]:
    """Remove one rare user or item at a time, the first that is found, until none is left."""
    while True:
        users = Counter(row[0] for row in rows)
        items = Counter(row[1] for row in rows)
        rare_user = next((user for user, n in users.items() if n < per_user), None)
        rare_item = next((item for item, n in items.items() if n < per_item), None)
        if rare_user is not None:
            rows = [row for row in rows if row[0] != rare_user]
        elif rare_item is not None:
            rows = [row for row in rows if row[1] != rare_item]
        else:
            return rows


def find_core(
    rows: list[tuple[int, int]], per_user: int, per_item: int, store: Store
) -> list[tuple[int, int]]:
    schema = {"user_id": pl.Int32, "item_id": pl.Int32}
    store.add(pl.DataFrame(rows, schema=schema, orient="row"))
    users, items = (
        np.bincount([row[place] for row in rows], minlength=6).astype(np.int64) for place in (0, 1)
    )
    cut_to_k_core(
        store, users, items, min_user_interactions=per_user, min_item_interactions=per_item
    )
    return [row for row in rows if users[row[0]] >= per_user and items[row[1]] >= per_item]


@settings(max_examples=150, deadline=None)
@given(pairs, st.integers(1, 5), st.integers(1, 5), st.sampled_from([None, 1, 2, 4]))
def test_it_is_the_fixed_point(
    rows: list[tuple[int, int]], per_user: int, per_item: int, users_per_partition: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        store: Store = (
            MemoryStore()
            if users_per_partition is None
            else DiskStore(Path(name) / "rows", users_per_partition)
        )
        found = find_core(rows, per_user, per_item, store)
    assert found == brute_force_core(rows, per_user, per_item)


def test_it_needs_more_than_one_round() -> None:
    # Without item 2, user 1 has one interaction left and is removed, and then so is item 1, and so
    # on.
    assert find_core([(0, 0), (0, 1), (1, 1), (1, 2)], 2, 2, MemoryStore()) == []
