"""Filters over raw interactions; each keeps the order of the rows it leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Literal

import numpy as np
import polars as pl

# Of rows with codes for ids; looks at one row or one user at a time.
Filter = Callable[[pl.DataFrame], pl.DataFrame]


def find_repeats(interactions: pl.DataFrame) -> pl.DataFrame:
    """The rows whose user and item may stand together in another row too; none that do is missed.

    Columns ``row`` (its place), ``user_id``, ``item_id`` and ``timestamp``.
    """
    places = pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
    return _keep_repeated(
        interactions.select("user_id", "item_id", "timestamp", places), ["user_id", "item_id"]
    )


def drop_exact_duplicates(interactions: pl.DataFrame, repeats: pl.DataFrame) -> pl.DataFrame:
    """One row, the first, for equal user, item and time: the same event, recorded twice.

    An interaction with the same item at another time is an event of its own and stays.

    Args:
        interactions: In file order.
        repeats: What `find_repeats` found in them.
    """
    key = ["user_id", "item_id", "timestamp"]
    suspects = _keep_repeated(repeats, key)
    return _drop_rows(interactions, suspects, suspects.unique(key, keep="first"))


def keep_within(interactions: pl.DataFrame, since: date | None, until: date | None) -> pl.DataFrame:
    """What happened from the start of ``since`` to before ``until``, in UTC; None is no bound."""
    time = pl.from_epoch("timestamp")
    if since is not None:
        interactions = interactions.filter(time >= since)
    if until is not None:
        interactions = interactions.filter(time < until)
    return interactions


def keep_one_per_item(interactions: pl.DataFrame, which: Literal["first", "last"]) -> pl.DataFrame:
    """Each user's earliest or latest interaction with an item, at one time by file order."""
    pair = ["user_id", "item_id"]
    suspects = find_repeats(interactions)
    in_time = suspects.sort("timestamp", "row")
    return _drop_rows(interactions, suspects, in_time.unique(pair, keep=which, maintain_order=True))


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
