"""A user's own interactions: Parquet or CSV files, one or many, under their own column names."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from recgrit.data.damage import TABLE_DAMAGE, read_parquet, read_parquet_columns
from recgrit.data.sources.cleaning import (
    CleanRows,
    clean_interactions,
    clean_items,
    clean_text,
    join_rows,
    to_raw_data,
)
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import list_folder, require_path
from recgrit.errors import DataError

TimeUnit = Literal["s", "ms", "us", "ns"]
UNITS_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SUFFIXES = (".parquet", ".csv", ".csv.gz")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Files with one row per interaction and, if there are any, files with one row per item.

    Args:
        items_path: Files of items; None for items of which only the ids are known.
        user_id: Name of the user's column.
        item_id: Name of the item's column, in both kinds of files.
        timestamp: Name of the time's column: numbers, or dates with times.
        weight: Name of the rating's column; None for none.
        title: Name of the title's column among the items.
        time_unit: What times count, where they are numbers.
    """

    items_path: Path | None
    user_id: str
    item_id: str
    timestamp: str
    weight: str | None
    title: str
    time_unit: TimeUnit

    @property
    def expected(self) -> str:
        """The files wanted, in words."""
        return f"Parquet or CSV with the columns {', '.join(self._interaction_columns)}"

    @property
    def _interaction_columns(self) -> dict[str, str]:
        """Their names in the files, and ours."""
        names = {
            self.user_id: "user_id",
            self.item_id: "item_id",
            self.timestamp: "timestamp",
        }
        return names if self.weight is None else {**names, self.weight: "weight"}

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The files of a folder or of a pattern such as ``2024-*.parquet``; those of items last."""
        items = () if self.items_path is None else _list_files(self.items_path, "items")
        return (*_list_files(path, self.expected), *items)

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the interactions, and the items where there are files of them."""
        described = () if self.items_path is None else _list_files(self.items_path, "items")
        logs = files[: len(files) - len(described)]
        coder = coder or InteractionCoder()
        parts = [self._read_interactions(path, max_malformed_share, coder) for path in logs]
        items = self._read_items(described, max_malformed_share)
        return to_raw_data(join_rows(parts, logs), items, files, coder)

    def _read_interactions(
        self, path: Path, max_malformed_share: float, coder: InteractionCoder
    ) -> CleanRows:
        frame = _read_columns(path, self._interaction_columns)
        seconds = _seconds(frame["timestamp"], UNITS_PER_SECOND[self.time_unit])
        # Kept in whole seconds: what happened within one stays in order.
        rows = frame.with_columns(seconds.alias("exact")).sort("exact", maintain_order=True)
        return clean_interactions(
            rows.with_columns(pl.col("exact").floor().alias("timestamp")).drop("exact"),
            str(path),
            f"{', '.join(self._interaction_columns)}, with times as dates or counting "
            f"{self.time_unit} (data.table.time_unit)",
            max_malformed_share,
            coder,
        )

    def _read_items(self, files: tuple[Path, ...], max_malformed_share: float) -> CleanRows:
        if not files:
            schema = {"item_id": pl.String, "title": pl.String}
            return CleanRows(pl.DataFrame(schema=schema), num_read=0, num_malformed=0)
        frames = [
            _read_columns(path, {self.item_id: "item_id"}, keep_others=True) for path in files
        ]
        rows = pl.concat(frames, how="diagonal_relaxed")
        if self.title in rows.columns:
            tidy = pl.col(self.title).cast(pl.String).map_elements(clean_text, pl.String)
            rows = rows.with_columns(tidy.alias("title"))
        else:
            rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias("title"))
        first = ["line", "item_id", "title"]
        others = [name for name in rows.columns if name not in (*first, self.title)]
        return clean_items(
            rows.select(*first, *others), str(files[0]), f"a {self.item_id}", max_malformed_share
        )


def _seconds(times: pl.Series, units_per_second: int) -> pl.Series:
    """Seconds since 1970 of dates or numbers, also as text; null where there is neither."""
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    numbers = times.cast(pl.Float64, strict=False)
    if times.dtype == pl.String and numbers.null_count() == len(times):
        try:
            return _seconds(times.str.to_datetime(strict=False), units_per_second)
        except pl.exceptions.ComputeError:  # No date in any form.
            return numbers
    return numbers / units_per_second


def _list_files(path: Path, expected: str) -> tuple[Path, ...]:
    """The Parquet or else CSV files that a path stands for, in the order of their names."""
    if glob.has_magic(str(path)) and not path.exists():
        folder = path.parent
        require_path(folder, expected)
        found = sorted(folder.glob(path.name))
    else:
        require_path(path, expected)
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        folder = path if path.is_dir() else path.parent
    kinds = {
        suffix: [file for file in found if file.name.endswith(suffix) and file.is_file()]
        for suffix in SUFFIXES
    }
    present = [suffix for suffix, files in kinds.items() if files]
    if len(present) != 1:
        what = f"files of several kinds ({', '.join(present)})" if present else "no such file"
        raise DataError(
            f"{path} holds {what}: expected {expected}, in files of one of {', '.join(SUFFIXES)}; "
            f"found {list_folder(folder)}. Set data.path to a file, a folder or a pattern like "
            f"{folder / '*.parquet'}."
        )
    return tuple(kinds[present[0]])


def _read_columns(path: Path, names: dict[str, str], *, keep_others: bool = False) -> pl.DataFrame:
    """Columns of a file under our names, after ``line``; ids as text."""
    try:
        # Of CSV all as text: what is a number gets decided by the column's meaning.
        is_parquet = path.suffix == ".parquet"
        lazy = None if is_parquet else pl.scan_csv(path, infer_schema=False, glob=False)
        present = read_parquet_columns(path) if lazy is None else lazy.collect_schema().names()
        missing = [name for name in names if name not in present]
        if missing:
            raise DataError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
                f"{', '.join(present)}. Name yours as in data.table.user_id=COLUMN."
            )
        chosen = present if keep_others else list(names)
        frame = read_parquet(path, chosen) if lazy is None else lazy.select(chosen).collect()
    except TABLE_DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as {path.suffix[1:]} ({reason}).") from None
    frame = frame.rename({name: ours for name, ours in names.items() if name != ours})
    for name in {"user_id", "item_id"} & set(frame.columns):
        if frame.schema[name].is_float():
            raise DataError(
                f"{path} has ids with decimals in the column for {name} (as pandas makes of whole "
                "numbers with gaps). Save it as whole numbers or text."
            )
        frame = frame.with_columns(pl.col(name).cast(pl.String))
    # A table's first row of data stands on line 2.
    return frame.with_row_index("line", offset=2).with_columns(pl.col("line").cast(pl.Int64))
