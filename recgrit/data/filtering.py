"""Filters over raw interactions; each keeps the order of the rows it leaves.

Ids may be text or codes from 0 (`recgrit.data.sources.coding`); with codes, counting is a look-up in
an array.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl


def drop_exact_duplicates(interactions: pl.DataFrame) -> pl.DataFrame:
    """One row, the first, for equal user, item and time: the same event, recorded twice.

    An item taken again at another time is an event of its own and stays.
    """
    key = ["user_id", "item_id", "timestamp"]
    suspects = _find_repeated(interactions, key)
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
    suspects = _find_repeated(interactions, pair)
    in_time = suspects.sort("timestamp", "row")
    return _drop_rows(interactions, suspects, in_time.unique(pair, keep=which, maintain_order=True))


def keep_titled(interactions: pl.DataFrame, items: pl.DataFrame, min_length: int) -> pl.DataFrame:
    """Interactions with items whose title has at least so many characters."""
    titled = items.filter(pl.col("title").str.len_chars() >= min_length)["item_id"]
    return interactions.filter(pl.col("item_id").is_in(titled.implode()))


def count_repeats(interactions: pl.DataFrame) -> int:
    """How many rows are a user's second or later interaction with the same item."""
    pair = ["user_id", "item_id"]
    suspects = _find_repeated(interactions, pair)
    return suspects.height - suspects.n_unique(pair)


def filter_k_core(
    interactions: pl.DataFrame, min_user_interactions: int, min_item_interactions: int
) -> pl.DataFrame:
    """The largest part in which every user and every item has at least so many interactions.

    Dropping a rare item can make a user too short and the reverse, so both are dropped in turns
    until nothing changes; the result does not depend on which comes first. Repeats count.
    """
    users, items = _as_codes(interactions["user_id"]), _as_codes(interactions["item_id"])
    kept = np.ones(len(users), np.bool_)
    while True:
        # Of users and items as they stand, so that a round costs two counts and two look-ups.
        left = (np.bincount(users) >= min_user_interactions)[users]
        left &= (np.bincount(items) >= min_item_interactions)[items]
        if left.all():
            return interactions if kept.all() else interactions.filter(pl.Series(kept))
        kept[kept] = left
        users, items = users[left], items[left]


def _find_repeated(interactions: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """The rows whose key may stand in another row too, with their places as ``row``.

    None that does is missed. Equal hashes find them, sorted as plain numbers; a table of all keys
    would take several times the memory and time, and most logs hold few repeats or none.
    """
    hashes = interactions.select(key).hash_rows()
    in_order = hashes.sort()
    repeated = in_order.filter(in_order == in_order.shift()).unique()
    rows = pl.int_range(pl.len(), dtype=pl.Int64).alias("row")
    columns = [rows, "user_id", "item_id", "timestamp"]
    if repeated.is_empty():
        return interactions.clear().select(columns)
    return interactions.select(columns).filter(hashes.is_in(repeated.implode()))


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
