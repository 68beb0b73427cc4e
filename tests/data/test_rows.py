from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.partitions import DiskStore
from recgrit.data.rows import SortedRows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(10**9), 10**11) | st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 3),
    st.data(),
)
def test_the_time_of_a_rank_is_found_by_counting(
    times: list[int], users_per_partition: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(times) - 1))
    users = [place % 4 for place in range(len(times))]
    frame = pl.DataFrame({"user_idx": users, "timestamp": times})
    with tempfile.TemporaryDirectory() as name:
        store = DiskStore(Path(name) / "rows", users_per_partition)
        store.add(frame)
        rows = SortedRows(store, frame.schema, num_users=4, num_items=1)
        assert rows.time_of(rank) == sorted(times)[rank]
