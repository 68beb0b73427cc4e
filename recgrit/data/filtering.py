"""Filters of raw interactions; each filter keeps the order of the remaining rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Literal

import numpy as np
import polars as pl

from recgrit.data.events import EVENT, LEFT_OUT

# A function that drops rows, which have codes for ids. Whether it keeps a row depends on rows of
# the same user only.
Filter = Callable[[pl.DataFrame], pl.DataFrame]

# Name of the column of fractions of a second, in [0, 1), which exists if any time has a fraction.
# It is used to find duplicates and to sort the rows, and is dropped afterwards.
FRACTION = "fraction"


def time_columns(rows: pl.DataFrame) -> list[str]:
    """Return the names of the columns of a time: seconds and, if present, the fraction."""
    return ["timestamp", *(name for name in rows.columns if name == FRACTION)]


def find_repeats(interactions: pl.DataFrame) -> pl.DataFrame:
    """Find the rows whose pair of user and item occurs in other rows too.

    All such rows are found. A few rows with a unique pair may be among them, because hashes of the
    pairs are compared.

    Returns:
        Columns ``row`` (position of the row), ``user_id``, ``item_id``, those of the time, and
        ``event`` if events have types.
    """
    places = pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
    pair = ["user_id", "item_id"]
    others = [*time_columns(interactions), *_event_column(interactions)]
    return _keep_repeated(interactions.select(*pair, *others, places), pair)


def drop_exact_duplicates(interactions: pl.DataFrame, repeats: pl.DataFrame) -> pl.DataFrame:
    """Keep one row of those with equal user, item and time: the same event, recorded twice.

    The first row is kept. If events have types, the first row of the strongest type is kept, such
    as a purchase instead of the view at the same time. An interaction with the same item at another
    time is a separate event and stays.

    Args:
        interactions: Rows in file order.
        repeats: Rows that `find_repeats` found in the interactions.
    """
    key = ["user_id", "item_id", *time_columns(interactions)]
    suspects = _keep_repeated(repeats, key)
    if EVENT in suspects.columns:
        suspects = suspects.sort(EVENT, "row", descending=[True, False])
    return _drop_rows(interactions, suspects, suspects.unique(key, keep="first"))


def keep_events(interactions: pl.DataFrame) -> pl.DataFrame:
    """Keep the rows whose event type is not left out."""
    return interactions.filter(pl.col(EVENT) != LEFT_OUT)


def keep_within(interactions: pl.DataFrame, since: date | None, until: date | None) -> pl.DataFrame:
    """Keep the rows from the start of one day to before another day, in UTC.

    Args:
        interactions: Rows to filter.
        since: First day that is kept. None sets no bound.
        until: First day that is no longer kept. None sets no bound.
    """
    time = pl.from_epoch("timestamp")
    if since is not None:
        interactions = interactions.filter(time >= since)
    if until is not None:
        interactions = interactions.filter(time < until)
    return interactions


def keep_one_per_item(interactions: pl.DataFrame, which: Literal["first", "last"]) -> pl.DataFrame:
    """Keep each user's first or last interaction with each item.

    Interactions at the same time are ordered as in the file. If events have types, only events of
    the strongest type are candidates: a later purchase is kept instead of an earlier view.
    """
    pair = ["user_id", "item_id"]
    suspects = find_repeats(interactions)
    strength = [pl.col(name) * (-1 if which == "first" else 1) for name in _event_column(suspects)]
    in_order = suspects.sort(*strength, *time_columns(suspects), "row")
    return _drop_rows(
        interactions, suspects, in_order.unique(pair, keep=which, maintain_order=True)
    )


def keep_titled(interactions: pl.DataFrame, items: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """Keep the interactions with items whose title has at least ``min_length`` characters."""
    titled = items.filter(pl.col("title").str.len_chars() >= min_length)["item_id"]
    return interactions.filter(pl.col("item_id").is_in(titled.implode()))


def count_repeats(interactions: pl.DataFrame) -> int:
    """Count the rows that are a user's second or later interaction with the same item."""
    pair = ["user_id", "item_id"]
    suspects = find_repeats(interactions)
    return suspects.height - suspects.n_unique(pair)


def count_distinct(codes: pl.Series) -> int:
    """Count the distinct codes of a column."""
    if codes.is_empty():
        return 0
    numbers = codes.to_numpy()
    lowest = numbers.min()
    seen = np.zeros(numbers.max() - lowest + 1, np.bool_)
    seen[numbers - lowest] = True
    return int(seen.sum())


def _event_column(rows: pl.DataFrame) -> list[str]:
    return [name for name in rows.columns if name == EVENT]


def _keep_repeated(rows: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """Return the rows whose key may occur in another row too.

    Rows are found by sorting the hashes of their keys. A table of all keys would take several times
    the memory and time, and most logs hold few repeats or none.
    """
    hashes = rows.select(key).hash_rows()
    in_order = hashes.sort()
    repeated = in_order.filter(in_order == in_order.shift())
    if repeated.is_empty():
        return rows.clear()
    return rows.filter(hashes.is_in(repeated.unique().implode()))


def _drop_rows(
    interactions: pl.DataFrame, suspects: pl.DataFrame, kept: pl.DataFrame
) -> pl.DataFrame:
    """Return the interactions without the rows that are in ``suspects`` but not in ``kept``."""
    if kept.height == suspects.height:
        return interactions
    stays = np.ones(interactions.height, np.bool_)
    stays[suspects["row"].to_numpy()] = False
    stays[kept["row"].to_numpy()] = True
    return interactions.filter(pl.Series(stays))
