"""Readers of files with new items or with histories for an existing bundle."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from recgrit.data.config import TableConfig
from recgrit.data.filtering import FRACTION, time_columns
from recgrit.data.id_columns import as_ids, refuse_damaged_ids
from recgrit.data.items import ItemTable
from recgrit.data.sources import DEFAULT_MAX_MALFORMED_SHARE
from recgrit.data.sources.item_table import read_item_table
from recgrit.data.sources.reading import show_names
from recgrit.data.sources.table import Table
from recgrit.data.sources.table_files import TableFile, find_tables, list_files, open_table
from recgrit.data.splits import SequenceSplit
from recgrit.data.times import TimeReader
from recgrit.data.user_histories import UserHistories
from recgrit.errors import DataError
from recgrit.semantic_ids.table import SemanticIdTable

logger = logging.getLogger(__name__)

DEFAULT_TABLE = TableConfig()


def read_items(path: Path, settings: TableConfig = DEFAULT_TABLE) -> ItemTable:
    """Read items from a file, a folder or a pattern, by the same rules as the items of a run.

    An item without a title gets its id as its title. Lists, such as genres, are lists in Parquet
    and JSON lines files, and text with commas in text files.

    Args:
        path: File, folder or pattern.
        settings: Column names of the run's item files. Files that lack these columns may use the
            names ``item_id`` and ``title``.

    Raises:
        DataError: A file cannot be read, has no ids, or describes an item twice in different ways.
    """
    table = Table(**settings.model_dump())
    items = read_item_table(
        list_files(path, "items"),
        item_id=table.described_id,
        title=table.title,
        text=table.text(table.item_columns),
        max_malformed_share=0,
        or_own_names=True,
    )
    title = pl.col("title").fill_null(pl.col("item_id"))
    return ItemTable(items.frame.with_columns(title))


def read_histories(
    path: Path, table: SemanticIdTable | ItemTable, settings: TableConfig = DEFAULT_TABLE
) -> UserHistories:
    """Read histories from rows of a user, an item and optionally a time.

    Each user's rows are sorted by time. Rows with equal times, and rows of files without times,
    keep the order of the file. Rows of items that ``table`` lacks are skipped and their number is
    logged. Rows without a time are skipped and logged too if they are few. Memory grows with the
    number of rows: a few dozen bytes per row while reading, and 4 bytes per row afterwards.

    Args:
        path: File, folder or pattern.
        table: The items that histories may contain.
        settings: Column names and time format of the run's files. Files that lack these columns may
            use the names ``user_id``, ``item_id`` and ``timestamp``.

    Raises:
        DataError: The file cannot be read, columns are missing, times can be read in two ways, or
            no item is known.
    """
    frame = _read_rows(path, Table(**settings.model_dump()))
    known = pl.DataFrame(
        {"item_id": table.item_ids, "item_idx": np.arange(len(table), dtype=np.int32)}
    )
    rows = frame.join(known, on="item_id", how="inner", maintain_order="left")
    if rows.height < frame.height:
        logger.warning(
            "%d of %d rows of %s have items that are not in the bundle, and are left out",
            frame.height - rows.height,
            frame.height,
            path,
        )
    if not rows.height:
        raise DataError(
            f"No row of {path} names an item of the bundle: the bundle has ids such as "
            f"{table.item_ids.head(3).to_list()}, the file such as "
            f"{frame['item_id'].head(3).to_list()}."
        )
    if "timestamp" in rows.columns:
        rows = rows.sort(time_columns(rows), maintain_order=True)
    # Users whose rows name no known item come last.
    user_ids = pl.concat([rows["user_id"], frame["user_id"]]).unique(maintain_order=True)
    lists = (
        user_ids.to_frame()
        .join(
            rows.group_by("user_id", maintain_order=True).agg("item_idx"),
            on="user_id",
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("item_idx").fill_null([]))
    )
    lengths = lists["item_idx"].list.len().to_numpy()
    return UserHistories(
        user_ids=user_ids,
        split=SequenceSplit.of_histories(
            lists["item_idx"].explode().drop_nulls().to_numpy(),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            len(table),
        ),
    )


def _read_rows(path: Path, table: Table) -> pl.DataFrame:
    """Read rows with the columns ``user_id``, ``item_id`` and, if the files have times, a time."""
    wanted = {"user_id": table.user_id, "item_id": table.item_id, "timestamp": table.timestamp}
    files = [
        open_table(place, [table.user_id, table.item_id], table.text(table.columns))
        for file in list_files(path, "histories")
        for place in find_tables(file)
    ]
    names = [_find_names(file, wanted) for file in files if file.columns]
    files = [file for file in files if file.columns]
    if not files or len({frozenset(found) for found in names}) > 1:
        raise DataError(
            f"{path} holds {'files with and without times' if files else 'no rows'}: expected "
            f"{', '.join(wanted.values())}."
        )

    def all_times() -> Iterator[pl.Series]:
        for file, found in zip(files, names, strict=True):
            yield from (part.frame[found["timestamp"]] for part in file.rows([found["timestamp"]]))

    times = TimeReader(table.timestamp, table.times, other_files=all_times)
    parts, num_unsplit = [], 0
    for file, found in zip(files, names, strict=True):
        file.refuse_repeated(list(found.values()))
        logger.info("%s: %s", file.label, file.describe())
        for part in file.rows(list(found.values())):
            ids = [
                as_ids(part.frame[found[ours]], file.label, found[ours])
                .cast(pl.String)
                .str.strip_chars()
                .alias(ours)
                for ours in ("user_id", "item_id")
            ]
            for column in ids:
                refuse_damaged_ids(column.unique(), file.label, found[column.name])
            exact: list[pl.Series] = []
            if "timestamp" in found:
                exact = list(times.read(part.frame[found["timestamp"]], file.label))
            parts.append(pl.DataFrame([*ids, *exact]))
            num_unsplit += len(part.unsplit)
    times.finish()
    empty = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    rows = pl.concat([empty, *parts], how="diagonal")
    if FRACTION in rows.columns:
        rows = rows.with_columns(pl.col(FRACTION).fill_null(0.0))
    is_bad = pl.any_horizontal(
        (pl.col("user_id", "item_id") == "").fill_null(True),
        *([pl.col("timestamp").is_null()] if "timestamp" in rows.columns else []),
    )
    usable = rows.filter(~is_bad)
    num_bad, num_read = rows.height - usable.height + num_unsplit, rows.height + num_unsplit
    why = "lack a user, an item or a time" if "timestamp" in rows.columns else "lack an id"
    if num_bad > DEFAULT_MAX_MALFORMED_SHARE * num_read or not usable.height:
        unread = times.describe_unread()
        raise DataError(
            f"{path}: {num_bad} of {num_read} rows {why} or have too many "
            f"fields{f' ({unread})' if unread else ''}. Fix these rows. If only times are "
            "wrong and the rows are in order of time, leave out the time column."
        )
    if num_bad:
        logger.warning("%d of %d rows of %s %s and are left out", num_bad, num_read, path, why)
    return usable


def _find_names(file: TableFile, wanted: dict[str, str]) -> dict[str, str]:
    """Return the names that a file has for the user, item and time columns.

    These are the names in the run's files, or else ``user_id``, ``item_id`` and ``timestamp``. The
    time column may be missing.

    Raises:
        DataError: The user or item column is missing.
    """
    found = {}
    for ours, name in wanted.items():
        here = next((known for known in (name, ours) if known in file.columns), None)
        if here is not None:
            found[ours] = here
        elif ours != "timestamp":
            raise DataError(
                f"{file.label} needs the column(s) {wanted['user_id']}, {wanted['item_id']}; "
                f"missing: {name}, found: {show_names(file.columns)}."
            )
    return found
