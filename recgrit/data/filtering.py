"""Filters over raw interactions; each keeps the order of the rows it leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Literal

import numpy as np
import polars as pl

from recgrit.data.events import EVENT, LEFT_OUT

# Of rows with codes for ids; looks at one row or one user at a time.
Filter = Callable[[pl.DataFrame], pl.DataFrame]

# What is left of a time beside whole seconds, in [0, 1), where any time has it: it counts until
# duplicates are found and rows are in order.
FRACTION = "fraction"


def time_columns(rows: pl.DataFrame) -> list[str]:
    """The columns that make up a time."""
    return ["timestamp", *(name for name in rows.columns if name == FRACTION)]


def find_repeats(interactions: pl.DataFrame) -> pl.DataFrame:
    """The rows whose user and item may stand together in another row too; none that do is missed.

    Columns ``row`` (its place), ``user_id``, ``item_id``, those of the time, and ``event`` where
    there are types of events.
    """
    places = pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
    pair = ["user_id", "item_id"]
    others = [*time_columns(interactions), *_event_column(interactions)]
    return _keep_repeated(interactions.select(*pair, *others, places), pair)


def drop_exact_duplicates(interactions: pl.DataFrame, repeats: pl.DataFrame) -> pl.DataFrame:
    """One row, the first, for equal user, item and time: the same event, recorded twice.

    An interaction with the same item at another time is an event of its own and stays. Where
    events have types, the first of the strongest type stays: a purchase and not the view with it.

    Args:
        interactions: In file order.
        repeats: What `find_repeats` found in them.
    """
    key = ["user_id", "item_id", *time_columns(interactions)]
    suspects = _keep_repeated(repeats, key)
    if EVENT in suspects.columns:
        suspects = suspects.sort(EVENT, "row", descending=[True, False])
    return _drop_rows(interactions, suspects, suspects.unique(key, keep="first"))


def keep_events(interactions: pl.DataFrame) -> pl.DataFrame:
    """Events whose type is not left out."""
    return interactions.filter(pl.col(EVENT) != LEFT_OUT)


def keep_within(interactions: pl.DataFrame, since: date | None, until: date | None) -> pl.DataFrame:
    """What happened from the start of ``since`` to before ``until``, in UTC; None is no bound."""
    time = pl.from_epoch("timestamp")
    if since is not None:
        interactions = interactions.filter(time >= since)
    if until is not None:
        interactions = interactions.filter(time < until)
    return interactions


def keep_one_per_item(interactions: pl.DataFrame, which: Literal["first", "last"]) -> pl.DataFrame:
    """Each user's earliest or latest interaction with an item, at one time by file order.

    Where events have types, of those of the strongest type: a purchase and not a view before it.
    """
    pair = ["user_id", "item_id"]
    suspects = find_repeats(interactions)
    strength = [pl.col(name) * (-1 if which == "first" else 1) for name in _event_column(suspects)]
    in_order = suspects.sort(*strength, *time_columns(suspects), "row")
    return _drop_rows(
        interactions, suspects, in_order.unique(pair, keep=which, maintain_order=True)
    )


def keep_titled(interactions: pl.DataFrame, items: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """Interactions with items whose title has at least so many characters."""
    titled = items.filter(pl.col("title").str.len_chars() >= min_length)["item_id"]
    return interactions.filter(pl.col("item_id").is_in(titled.implode()))


def count_repeats(interactions: pl.DataFrame) -> int:
    """How many rows are a user's second or later interaction with the same item."""
    pair = ["user_id", "item_id"]
    suspects = find_repeats(interactions)
    return suspects.height - suspects.n_unique(pair)


def count_distinct(codes: pl.Series) -> int:
    """How many different codes there are."""
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
    """The rows whose key may stand in another row too.

    Equal hashes find them, sorted as plain numbers; a table of all keys would take several times
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
    """All rows but those suspects that are not kept."""
    if kept.height == suspects.height:
        return interactions
    stays = np.ones(interactions.height, np.bool_)
    stays[suspects["row"].to_numpy()] = False
    stays[kept["row"].to_numpy()] = True
    return interactions.filter(pl.Series(stays))
