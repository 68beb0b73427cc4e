"""Filters over raw interactions; each keeps the order of the rows it leaves.

Ids may be text or codes from 0 (`recgrit.data.sources.coding`); with codes, counting is a look-up
in an array.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl


def find_repeats(interactions: pl.DataFrame) -> pl.DataFrame:
    """The rows whose user and item may stand together in another row too; none that do is missed.

    Columns ``row`` (its place), ``user_id``, ``item_id`` and ``timestamp``.
    """
    places = pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
    return _keep_repeated(
        interactions.select("user_id", "item_id", "timestamp", places), ["user_id", "item_id"]
    )


def drop_exact_duplicates(
    interactions: pl.DataFrame, repeats: pl.DataFrame | None = None
) -> pl.DataFrame:
    """One row, the first, for equal user, item and time: the same event, recorded twice.

    An item taken again at another time is an event of its own and stays.

    Args:
        interactions: In file order.
        repeats: What `find_repeats` found in them, if it was asked before.
    """
    key = ["user_id", "item_id", "timestamp"]
    suspects = _keep_repeated(find_repeats(interactions) if repeats is None else repeats, key)
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


def filter_k_core(
    interactions: pl.DataFrame, min_user_interactions: int, min_item_interactions: int
) -> pl.DataFrame:
    """The largest part in which every user and every item has at least so many interactions.

    Dropping a rare item can make a user too short and the reverse, so both are dropped in turns
    until nothing changes; the result does not depend on which comes first. Repeats count.
    """
    users, items = _as_codes(interactions["user_id"]), _as_codes(interactions["item_id"])
    per_user, per_item = np.bincount(users), np.bincount(items)
    kept = np.ones(len(users), np.bool_)
    while True:
        left = (per_user >= min_user_interactions)[users]
        left &= (per_item >= min_item_interactions)[items]
        dropped = np.flatnonzero(kept != left)
        if not len(dropped):
            return interactions if kept.all() else interactions.filter(pl.Series(kept))
        per_user -= np.bincount(users[dropped], minlength=len(per_user))
        per_item -= np.bincount(items[dropped], minlength=len(per_item))
        kept = left


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


def _as_codes(ids: pl.Series) -> npt.NDArray[np.integer]:
    """Whole numbers from 0 that tell ids apart, as coded ids are already."""
    return (ids if ids.dtype.is_integer() else ids.rank("dense") - 1).to_numpy()
