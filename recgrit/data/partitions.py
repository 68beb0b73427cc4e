"""Stores for the rows of a data set: one partition in memory, or many partitions on disk.

A partition is a range of user codes. Codes are assigned in order of first appearance. A file that
lists user after user therefore writes one partition after the other, and the number of partitions
need not be known in advance. Partitions by hash would be of equal size, which is not needed here,
but each block of rows would write to all of them.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from recgrit.data.events import EVENT
from recgrit.data.filtering import FRACTION


class Partitions(Protocol):
    """Rows in numbered partitions, each of which is removed when it is taken."""

    @property
    def users_per_partition(self) -> int:
        """Number of users in a partition; the first user of partition i is i times this number."""

    @property
    def num_partitions(self) -> int:
        """Number of partitions so far."""

    def take(self, number: int) -> pl.DataFrame:
        """Return the rows of a partition and remove them from the store."""


class Store(Partitions, Protocol):
    """Partitions to which rows can be added; the first column of the rows is the user code."""

    def add(self, rows: pl.DataFrame) -> None:
        """Add each row to the partition of its user; rows of one partition keep their order."""

    def read(self, number: int, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of a partition, without removing it."""


class MemoryStore:
    """A store that holds all rows in memory as one partition."""

    users_per_partition = sys.maxsize
    num_partitions = 1

    def __init__(self, *parts: pl.DataFrame) -> None:
        self._parts = list(parts)

    def add(self, rows: pl.DataFrame) -> None:
        """Append rows to those already in the store."""
        self._parts.append(rows)

    def read(self, number: int, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows."""
        return pl.concat([part.select(columns) for part in self._parts])

    def take(self, number: int) -> pl.DataFrame:
        """Return all rows and remove them from the store."""
        parts, self._parts = self._parts, []
        return pl.concat(parts)


class DiskStore:
    """A store with one file per partition, which holds uncompressed records of fixed size.

    Args:
        folder: Folder for the files. It is created and must not exist.
        users_per_partition: Number of users in a partition.
    """

    def __init__(self, folder: Path, users_per_partition: int) -> None:
        folder.mkdir()
        self._folder = folder
        self.users_per_partition = users_per_partition
        self.num_partitions = 0
        # Type of a record in the files. Set when the first rows are added.
        self._record = np.dtype([])

    def add(self, rows: pl.DataFrame) -> None:
        """Append each row to the file of its user's partition."""
        columns = {name: rows[name].to_numpy() for name in rows.columns}
        self._record = np.dtype([(name, column.dtype) for name, column in columns.items()])
        records = np.empty(rows.height, self._record)
        for name, column in columns.items():
            records[name] = column
        numbers = records[rows.columns[0]] // self.users_per_partition
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
            self.num_partitions = max(self.num_partitions, number + 1)

    def read(self, number: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return some columns of a partition; None returns all columns."""
        path, record = self._path(number), self._record
        records = np.fromfile(path, record) if path.is_file() else np.empty(0, record)
        chosen = record.names or () if columns is None else columns
        return pl.DataFrame({name: np.ascontiguousarray(records[name]) for name in chosen})

    def take(self, number: int) -> pl.DataFrame:
        """Return the rows of a partition and delete its file."""
        rows = self.read(number)
        self._path(number).unlink(missing_ok=True)
        return rows

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"


@dataclass(frozen=True)
class Scratch:
    """A folder on disk for partitions.

    Args:
        folder: Folder for the files of all stores.
        users_per_partition: Number of users in a partition.
    """

    folder: Path
    users_per_partition: int

    def open_store(self, name: str) -> DiskStore:
        """Create an empty store in a new folder of this name."""
        return DiskStore(self.folder / name, self.users_per_partition)


class RowPartitions:
    """The rows of all files of a source, written to disk as they are read.

    On disk a missing rating is NaN, and a time without a fraction of a second has the fraction 0.

    Args:
        store: Store to which the rows are added.
    """

    def __init__(self, store: DiskStore) -> None:
        self._store = store
        self.users_per_partition = store.users_per_partition
        self._has_weights = False
        self._has_fractions = False
        self._num_rows = 0

    @property
    def num_partitions(self) -> int:
        """Number of partitions so far."""
        return self._store.num_partitions

    def keep(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Write coded rows to disk, and return an empty table with their columns."""
        weight = pl.col("weight") if "weight" in rows.columns else pl.lit(None, pl.Float32)
        fraction = pl.col(FRACTION) if FRACTION in rows.columns else pl.lit(0.0)
        if FRACTION in rows.columns:
            self._has_fractions |= bool((rows[FRACTION] > 0).any())
        row = pl.int_range(self._num_rows, self._num_rows + rows.height, dtype=pl.Int64)
        self._store.add(
            rows.select(
                "user_id",
                "item_id",
                pl.col("timestamp"),
                fraction.alias(FRACTION),
                weight.fill_null(float("nan")).alias("weight"),
                *(name for name in rows.columns if name == EVENT),
                row.alias("row"),
            )
        )
        self._num_rows += rows.height
        return rows.clear()

    def end_file(self, *, has_weights: bool) -> None:
        """Record that a file is complete, and whether it has ratings."""
        self._has_weights = has_weights

    def take(self, number: int) -> pl.DataFrame:
        """Return the rows of a partition in file order, and delete them from disk.

        Columns: ``user_id``, ``item_id``, ``timestamp`` (seconds), ``fraction`` of a second if any
        time has one, ``weight`` if the files have ratings, ``event`` if events have types, and
        ``row``, the position among the rows of all files. If the files have ratings, rows without
        one are left out.
        """
        rows = self._store.take(number)
        is_rated = pl.col("weight").is_not_nan()
        rows = rows.filter(is_rated) if self._has_weights else rows.drop("weight")
        return rows if self._has_fractions else rows.drop(FRACTION)
