"""Rows on disk by user, so that what is held in memory is one part of them.

A partition is a range of user codes. Codes are given in order of first appearance, so a range fills
up while its users are new, a file that lists user after user writes one partition after the other,
and how many there will be need not be known before the end. A hash would make partitions of equal
size, which nothing here needs, and touch all of them with every block.

Rows are records of fixed size, appended without compression: 28 bytes each.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

# Times as they are written, which may be finer than seconds: a float64 holds them as exactly as the
# parser did. NaN for no rating. ``row`` counts over all files.
ROW = np.dtype(
    [
        ("user_id", np.int32),
        ("item_id", np.int32),
        ("timestamp", np.float64),
        ("weight", np.float32),
        ("row", np.int64),
    ]
)


class RecordFiles:
    """Numbered files of records, to append to and to read one at a time.

    Args:
        folder: Is made.
        dtype: Of a record.
    """

    def __init__(self, folder: Path, dtype: np.dtype[np.void]) -> None:
        folder.mkdir()
        self._folder, self._dtype = folder, dtype
        self.num_files = 0

    def append(self, records: npt.NDArray[np.void], numbers: npt.NDArray[np.integer]) -> None:
        """Add each record to the file of its number; those of one file stay in order."""
        if np.any(numbers[1:] < numbers[:-1]):
            order = np.argsort(numbers, kind="stable")
            records, numbers = records[order], numbers[order]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]])
        for start, end in itertools.pairwise(starts):
            if start == end:
                continue
            number = int(numbers[start])
            with self._path(number).open("ab") as stream:
                stream.write(records[start:end].view(np.uint8).data)
            self.num_files = max(self.num_files, number + 1)

    def read(self, number: int) -> npt.NDArray[np.void]:
        """The records of a file."""
        path = self._path(number)
        return np.fromfile(path, self._dtype) if path.is_file() else np.empty(0, self._dtype)

    def take(self, number: int) -> npt.NDArray[np.void]:
        """The records of a file, which is deleted."""
        records = self.read(number)
        self._path(number).unlink(missing_ok=True)
        return records

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"


class RowPartitions:
    """The rows of all files of a source, as they are read.

    Args:
        folder: Is made.
        num_users: Users in a partition.
    """

    def __init__(self, folder: Path, num_users: int) -> None:
        self._files = RecordFiles(folder, ROW)
        self.num_users = num_users
        self.num_rows = 0
        self.units_per_second = 1
        # Of each file, the row after its last.
        self.file_ends: list[int] = []

    @property
    def num_partitions(self) -> int:
        """Partitions so far."""
        return self._files.num_files

    def keep(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Write coded rows; gives their columns without any row."""
        records = np.empty(rows.height, ROW)
        for name in ("user_id", "item_id", "timestamp"):
            records[name] = rows[name].to_numpy()
        records["weight"] = (
            rows["weight"].fill_null(float("nan")).to_numpy()
            if "weight" in rows.columns
            else np.nan
        )
        records["row"] = np.arange(self.num_rows, self.num_rows + rows.height)
        self._files.append(records, records["user_id"] // self.num_users)
        self.num_rows += rows.height
        return rows.clear()

    def end_file(self, units_per_second: int) -> None:
        """The next row is another file's; what times counted in this one."""
        self.units_per_second = units_per_second
        self.file_ends.append(self.num_rows)

    def take(self, number: int, *, has_weights: bool) -> pl.DataFrame:
        """The rows of a partition in file order, or within a file that of times finer than seconds.

        They are deleted here. Columns ``user_id``, ``item_id``, ``timestamp`` (seconds), ``weight``
        where the files have ratings, and what tells the order across partitions: ``row`` and, where
        times are finer than seconds, ``file`` and ``exact``.
        """
        records = self._files.take(number)
        frame = pl.DataFrame(
            {name: np.ascontiguousarray(records[name]) for name in ROW.names or ()}
        )
        frame = frame.filter(pl.col("weight").is_not_nan()) if has_weights else frame.drop("weight")
        if self.units_per_second == 1:
            return frame.with_columns(pl.col("timestamp").cast(pl.Int64))
        file = np.searchsorted(self.file_ends, frame["row"].to_numpy(), side="right")
        return (
            frame.with_columns(pl.Series("file", file, pl.Int64), exact=pl.col("timestamp"))
            .sort("file", "exact", maintain_order=True)
            .with_columns((pl.col("timestamp") // self.units_per_second).cast(pl.Int64))
        )
