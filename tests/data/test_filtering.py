from __future__ import annotations

from collections import Counter

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.filtering import count_repeats, drop_exact_duplicates, filter_k_core

ids = st.sampled_from("abcdef")
tables = st.lists(st.tuples(ids, ids, st.integers(0, 3)), max_size=40)


def to_frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def brute_force_core(
    rows: list[tuple[str, str, int]], per_user: int, per_item: int
) -> list[tuple[str, str, int]]:
    """One rare user or item at a time, whichever is found first."""
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


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 5))
def test_k_core_is_the_fixed_point(
    rows: list[tuple[str, str, int]], per_user: int, per_item: int
) -> None:
    kept = filter_k_core(to_frame(rows), per_user, per_item)
    assert kept.rows() == brute_force_core(rows, per_user, per_item)


def test_k_core_needs_more_than_one_round() -> None:
    # Dropping item z leaves user b with one interaction, which leaves item y with one, and so on.
    chain = [("a", "x", 1), ("a", "y", 2), ("b", "y", 3), ("b", "z", 4)]
    assert filter_k_core(to_frame(chain), 2, 2).is_empty()


@settings(max_examples=50, deadline=None)
@given(tables)
def test_duplicates_are_dropped_in_order_and_repeats_counted(
    rows: list[tuple[str, str, int]],
) -> None:
    kept = drop_exact_duplicates(to_frame(rows))
    assert kept.rows() == list(dict.fromkeys(rows))
    assert count_repeats(kept) == len(set(rows)) - len({row[:2] for row in rows})


def test_first_of_two_ratings_at_one_time_stays() -> None:
    frame = to_frame([("a", "x", 1), ("a", "x", 1)]).with_columns(weight=pl.Series([4.0, 2.0]))
    assert drop_exact_duplicates(frame)["weight"].to_list() == [4.0]
