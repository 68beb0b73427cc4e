"""Filters over raw interactions; each keeps the order of the rows it leaves."""

from __future__ import annotations

from datetime import date
from typing import Literal

import polars as pl


def drop_exact_duplicates(interactions: pl.DataFrame) -> pl.DataFrame:
    """One row, the first, for equal user, item and time: the same event, recorded twice.

    An item taken again at another time is an event of its own and stays.
    """
    return interactions.unique(
        ["user_id", "item_id", "timestamp"], keep="first", maintain_order=True
    )


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
    return (
        interactions.with_row_index("row")
        .sort("timestamp", maintain_order=True)
        .unique(["user_id", "item_id"], keep=which, maintain_order=True)
        .sort("row")
        .drop("row")
    )


def keep_titled(interactions: pl.DataFrame, items: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """Interactions with items whose title has at least so many characters."""
    titled = items.filter(pl.col("title").str.len_chars() >= min_length)["item_id"]
    return interactions.filter(pl.col("item_id").is_in(titled.implode()))


def count_repeats(interactions: pl.DataFrame) -> int:
    """How many rows are a user's second or later interaction with the same item."""
    return interactions.height - interactions.n_unique(["user_id", "item_id"])


def filter_k_core(
    interactions: pl.DataFrame, min_user_interactions: int, min_item_interactions: int
) -> pl.DataFrame:
    """The largest part in which every user and every item has at least so many interactions.

    Dropping a rare item can make a user too short and the reverse, so both are dropped in turns
    until nothing changes; the result does not depend on which comes first. Repeats count.
    """
    has_enough = (pl.len().over("user_id") >= min_user_interactions) & (
        pl.len().over("item_id") >= min_item_interactions
    )
    while True:
        kept = interactions.filter(has_enough)
        if kept.height == interactions.height:
            return kept
        interactions = kept
