"""Where rows lie while they are prepared: in memory as one partition, or on disk in many.

A partition is a range of user codes. Codes are given in order of first appearance, so a range fills
up while its users are new, a file that lists user after user writes one partition after the other,
and how many there will be need not be known before the end. A hash would make partitions of equal
size, which nothing here needs, and touch all of them with every block.
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
    """Rows in numbered partitions, given away one partition after another."""

    @property
    def users_per_partition(self) -> int:
        """Partition i holds the users from i times this number on."""

    @property
    def num_partitions(self) -> int:
        """Partitions so far."""

    def take(self, number: int) -> pl.DataFrame:
        """The rows of a partition, which are kept here no longer."""


class Store(Partitions, Protocol):
    """Partitions to add to; the first column of their rows is the user."""

    def add(self, rows: pl.DataFrame) -> None:
        """Add each row to the partition of its user; rows of one partition stay in order."""

    def read(self, number: int, columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of a partition."""


class MemoryStore:
    """All rows as one partition in memory."""

    users_per_partition = sys.maxsize
    num_partitions = 1

    def __init__(self, *parts: pl.DataFrame) -> None:
        self._parts = list(parts)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows behind those that are there."""
        self._parts.append(rows)

    def read(self, number: int, columns: Sequence[str]) -> pl.DataFrame:
        """Some columns of all rows."""
        return pl.concat([part.select(columns) for part in self._parts])

    def take(self, number: int) -> pl.DataFrame:
        """All rows, which are kept here no longer."""
        parts, self._parts = self._parts, []
        return pl.concat(parts)


class DiskStore:
    """Partitions as files of records of fixed size, appended without compression.

    Args:
        folder: Is made.
        users_per_partition: Users in a partition.
    """

    def __init__(self, folder: Path, users_per_partition: int) -> None:
        folder.mkdir()
        self._folder = folder
        self.users_per_partition = users_per_partition
        self.num_partitions = 0
        # Of the rows, once there are any.
        self._record = np.dtype([])

    def add(self, rows: pl.DataFrame) -> None:
        """Add each row to the file of its user's partition."""
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
        """Columns of a partition, all unless some are named."""
        path, record = self._path(number), self._record
        records = np.fromfile(path, record) if path.is_file() else np.empty(0, record)
        chosen = record.names or () if columns is None else columns
        return pl.DataFrame({name: np.ascontiguousarray(records[name]) for name in chosen})

    def take(self, number: int) -> pl.DataFrame:
        """The rows of a partition, whose file is deleted."""
        rows = self.read(number)
        self._path(number).unlink(missing_ok=True)
        return rows

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"


@dataclass(frozen=True)
class Scratch:
    """Where partitions lie on disk.

    Args:
        folder: For all files.
        users_per_partition: Users in a partition.
    """

    folder: Path
    users_per_partition: int

    def open_store(self, name: str) -> DiskStore:
        """An empty store in a folder of its own."""
        return DiskStore(self.folder / name, self.users_per_partition)


class RowPartitions:
    """The rows of all files of a source, put on disk as they are read.

    A missing rating is NaN, and a time without a part of a second has a fraction of 0.

    Args:
        store: Where they go.
    """

    def __init__(self, store: DiskStore) -> None:
        self._store = store
        self.users_per_partition = store.users_per_partition
        self._has_weights = False
        self._has_fractions = False
        self._num_rows = 0

    @property
    def num_partitions(self) -> int:
        """Partitions so far."""
        return self._store.num_partitions

    def keep(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Write coded rows; gives their columns without any row."""
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
        """The next row is another file's; whether this one has ratings."""
        self._has_weights = has_weights

    def take(self, number: int) -> pl.DataFrame:
        """The rows of a partition in file order.

        Columns ``user_id``, ``item_id``, ``timestamp`` (seconds), ``fraction`` of a second where
        any file has one, ``weight`` where the files have ratings, ``event`` where events have
        types, and ``row``, the place among the rows of all files.
        """
        rows = self._store.take(number)
        is_rated = pl.col("weight").is_not_nan()
        rows = rows.filter(is_rated) if self._has_weights else rows.drop("weight")
        return rows if self._has_fractions else rows.drop(FRACTION)
