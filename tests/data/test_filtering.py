from __future__ import annotations

from datetime import date
from typing import Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.filtering import (
    count_repeats,
    drop_exact_duplicates,
    find_repeats,
    keep_one_per_item,
    keep_titled,
    keep_within,
)

ids = st.sampled_from("abcdef")
tables = st.lists(st.tuples(ids, ids, st.integers(0, 3)), max_size=40)


def to_frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


@settings(max_examples=50, deadline=None)
@given(tables)
def test_duplicates_are_dropped_in_order_and_repeats_counted(
    rows: list[tuple[str, str, int]],
) -> None:
    frame = to_frame(rows)
    kept = drop_exact_duplicates(frame, find_repeats(frame))
    assert kept.rows() == list(dict.fromkeys(rows))
    assert count_repeats(kept) == len(set(rows)) - len({row[:2] for row in rows})


def test_first_of_two_ratings_at_one_time_stays() -> None:
    frame = to_frame([("a", "x", 1), ("a", "x", 1)]).with_columns(weight=pl.Series([4.0, 2.0]))
    assert drop_exact_duplicates(frame, find_repeats(frame))["weight"].to_list() == [4.0]


@pytest.mark.parametrize(
    ("since", "until", "kept"),
    [
        (None, None, [0, 1, 2, 3]),
        (date(1970, 1, 2), None, [1, 2, 3]),
        (None, date(1970, 1, 3), [0, 1, 2]),
        (date(1970, 1, 2), date(1970, 1, 3), [1, 2]),
    ],
)
def test_a_window_of_days(since: date | None, until: date | None, kept: list[int]) -> None:
    day = 86_400
    times = [day - 1, day, 2 * day - 1, 2 * day]
    frame = to_frame([("u", str(i), time) for i, time in enumerate(times)])
    found = keep_within(frame, since, until)
    assert found["item_id"].to_list() == [str(i) for i in kept]


@settings(max_examples=50, deadline=None)
@given(tables, st.sampled_from(["first", "last"]))
def test_one_interaction_per_item_is_kept_in_file_order(
    rows: list[tuple[str, str, int]], which: Literal["first", "last"]
) -> None:
    by_pair: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        by_pair.setdefault(row[:2], []).append(place)
    chosen = {
        sorted(places, key=lambda place: (rows[place][2], place))[0 if which == "first" else -1]
        for places in by_pair.values()
    }
    assert keep_one_per_item(to_frame(rows), which).rows() == [rows[i] for i in sorted(chosen)]


def test_items_without_a_long_enough_title_are_dropped() -> None:
    frame = to_frame([("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 4)])
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["Soap", "It", None]})
    assert keep_titled(frame, items, 3)["item_id"].to_list() == ["a"]
    assert keep_titled(frame, items, 1)["item_id"].to_list() == ["a", "b"]
