"""Tables of items and of histories from files, over the items of a bundle."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recgrit.data.items import ItemTable
from recgrit.data.splits import SequenceSplit
from recgrit.errors import DataError
from recgrit.semantic_ids.table import SemanticIdTable

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class UserHistories:
    """Histories over the items of a table.

    Args:
        user_ids: Users with at least one known item, in the order of their first rows.
        split: Row i belongs to user i; everything is history.
    """

    user_ids: pl.Series
    split: SequenceSplit


def read_items(path: Path) -> ItemTable:
    """Items with ``item_id`` and the columns of the catalogue they are to join.

    A missing title is the item's id. Lists, such as genres, are lists in Parquet and JSON lines,
    text with commas in CSV.

    Raises:
        DataError: The file cannot be read, has no ``item_id``, or names an item twice.
    """
    frame = _read(path, ("item_id",))
    title = pl.col("title") if "title" in frame.columns else pl.lit(None)
    return ItemTable(
        frame.with_columns(title.cast(pl.String).fill_null(pl.col("item_id")).alias("title"))
    )


def read_histories(path: Path, table: SemanticIdTable | ItemTable) -> UserHistories:
    """Histories from rows of ``user_id``, ``item_id`` and, where there is one, ``timestamp``.

    Rows are sorted by time; without one, and where times are equal, they keep the file's order.
    Items that the table does not have are passed over and told. Memory grows with the number of
    rows, by a few dozen bytes each while reading and 4 bytes after.

    Raises:
        DataError: The file cannot be read, columns are missing, or no item is known.
    """
    frame = _read(path, ("user_id", "item_id"))
    known = pl.DataFrame(
        {"item_id": table.item_ids, "item_idx": np.arange(len(table), dtype=np.int32)}
    )
    rows = frame.join(known, on="item_id", how="inner", maintain_order="left")
    if rows.height < frame.height:
        logger.warning(
            "%d of %d rows of %s name no item of the bundle",
            frame.height - rows.height,
            frame.height,
            path,
        )
    if not rows.height:
        raise DataError(
            f"No row of {path} names an item of the bundle, whose ids are such as "
            f"{table.item_ids.head(3).to_list()}."
        )
    if "timestamp" in rows.columns:
        rows = rows.sort("timestamp", maintain_order=True)
    lists = rows.group_by("user_id", maintain_order=True).agg("item_idx")
    lengths = lists["item_idx"].list.len().to_numpy()
    return UserHistories(
        user_ids=lists["user_id"],
        split=SequenceSplit.of_histories(
            lists["item_idx"].explode().to_numpy(),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            len(table),
        ),
    )


def _read(path: Path, ids: tuple[str, ...]) -> pl.DataFrame:
    """The rows of a file, whose ids are text and without nulls."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"Cannot read {path}: expected a file ending in {', '.join(SUFFIXES)}.")
    text = dict.fromkeys(ids, pl.String)
    try:
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, glob=False)
        elif path.suffix == ".csv":
            frame = pl.read_csv(path, glob=False, schema_overrides=text, try_parse_dates=True)
        else:
            frame = pl.read_ndjson(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from None
    missing = [name for name in ids if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path} needs the column(s) {', '.join(ids)}; missing: {', '.join(missing)}, found: "
            f"{', '.join(frame.columns)}."
        )
    frame = frame.with_columns(pl.col(name).cast(pl.String) for name in ids)
    nulls = {name: count for name in ids if (count := frame[name].null_count())}
    if nulls:
        raise DataError(f"{path} has rows without {', '.join(nulls)}: fill or drop them.")
    return frame
