"""Preparing interactions that exceed the memory: partitions of users on disk, one held at a time.

All but two things in preparing concern one row or one user at a time, so they are done partition by
partition with the functions that prepare data in memory. The two are

- the k-core, whose counts per user and per item are arrays in memory; a round reads the users and
  items of what is left of each partition, but for those read since the last item became too rare;
- the final indices, by first appearance among what is kept: the place of each user's and item's
  first row, again an array each. They order users anew, so rows move to new partitions once.

Memory is that of the largest partition, some arrays per user and item, and the ids. Before it
reaches the artifact a row is written to the disk three times and read five times, whole files at a
time. The result is the one in memory byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.filtering import count_repeats
from recgrit.data.interactions import sort_by_user_and_time, write_interactions
from recgrit.data.sources.partitions import RecordFiles, RowPartitions
from recgrit.data.splits import SequenceSplit, SplitWriter

Filter = Callable[[pl.DataFrame], pl.DataFrame]
Indices = npt.NDArray[np.int64]

# What stands for a user or item that has no row left.
NEVER = np.iinfo(np.int64).max
NO_INDEX = -1
BINS = 2**16
# A kept row, its user and item by their final indices.
KEPT = np.dtype(
    [
        ("user_idx", np.int32),
        ("item_idx", np.int32),
        ("timestamp", np.int64),
        ("weight", np.float32),
    ]
)


@dataclass(frozen=True)
class Tally:
    """What a filter left, and the largest rating before it; None where there is none."""

    interactions: int
    users: int
    items: int
    highest_weight: float | None


@dataclass(frozen=True)
class KeptRows:
    """Sizes of what is left, and what each final index stands for."""

    num_interactions: int
    num_repeats: int
    user_codes: Indices
    item_codes: Indices


class PartitionedRows:
    """Rows that were read into partitions, taken through the steps of preparing in turn.

    Each step leaves its result in files of its own and deletes what it has read.

    Args:
        rows: What a source wrote.
        has_weights: Whether they have ratings.
        num_users: Number of user codes.
        num_items: Number of item codes.
        folder: For the files of the steps.
    """

    def __init__(
        self,
        rows: RowPartitions,
        *,
        has_weights: bool,
        num_users: int,
        num_items: int,
        folder: Path,
    ) -> None:
        self._rows, self._folder = rows, folder
        self._has_weights = has_weights
        self._num_users, self._num_items = num_users, num_items
        self._num_partitions = rows.num_partitions
        self._per_user = np.zeros(num_users, np.int64)
        self._per_item = np.zeros(num_items, np.int64)
        self._per_partition = rows.num_users
        self._kept_users = np.zeros(num_users, np.bool_)
        self._kept_items = np.zeros(num_items, np.bool_)

    def filter(self, filters: Sequence[Filter]) -> list[Tally]:
        """Apply filters that concern a row or a user; what each of them left, in order."""
        counts = np.zeros((len(filters), 2), np.int64)
        items = np.zeros((len(filters), self._num_items), np.bool_)
        highest: list[float | None] = [None] * len(filters)
        for number in range(self._num_partitions):
            rows = self._rows.take(number, has_weights=self._has_weights)
            first = number * self._per_partition
            num_users = min(self._per_partition, self._num_users - first)
            for place, keep in enumerate(filters):
                if self._has_weights and not rows.is_empty():
                    here = float(rows["weight"].to_numpy().max())
                    before = highest[place]
                    highest[place] = here if before is None else max(before, here)
                rows = keep(rows)
                users = np.zeros(num_users, np.bool_)
                users[rows["user_id"].to_numpy() - first] = True
                counts[place] += rows.height, users.sum()
                items[place][rows["item_id"].to_numpy()] = True
            np.add.at(self._per_user, rows["user_id"].to_numpy(), 1)
            np.add.at(self._per_item, rows["item_id"].to_numpy(), 1)
            rows.write_ipc(self._path(number))
        self._kept_users, self._kept_items = self._per_user > 0, self._per_item > 0
        return [
            Tally(int(rows), int(users), int(items[place].sum()), highest[place])
            for place, (rows, users) in enumerate(counts)
        ]

    def filter_k_core(self, min_user_interactions: int, min_item_interactions: int) -> Tally:
        """As `recgrit.data.filtering.filter_k_core`, whose result does not depend on the order."""
        per_user, per_item = self._per_user, self._per_item
        num_rare = 0  # Items that have become too rare so far.
        seen = [-1] * self._num_partitions
        while any(before != num_rare for before in seen):
            for number in range(self._num_partitions):
                if seen[number] == num_rare:
                    continue
                users, items = self._read_pairs(number, is_first=seen[number] < 0)
                while True:
                    left = per_user[users] >= min_user_interactions
                    left &= per_item[items] >= min_item_interactions
                    if left.all():
                        break
                    self._subtract(per_user, users[~left], min_user_interactions)
                    num_rare += self._subtract(per_item, items[~left], min_item_interactions)
                    users, items = users[left], items[left]
                seen[number] = num_rare
                np.save(self._pairs_path(number), np.stack([users, items]))
        for number in range(self._num_partitions):
            self._pairs_path(number).unlink()
        self._kept_users = per_user >= min_user_interactions
        self._kept_items = per_item >= min_item_interactions
        return Tally(
            interactions=int(per_user[self._kept_users].sum()),
            users=int(self._kept_users.sum()),
            items=int(self._kept_items.sum()),
            highest_weight=None,
        )

    def index(self) -> KeptRows:
        """Number users and items by their first appearance among the rows that are left."""
        users = FirstRows(self._num_users, self._rows.file_ends)
        items = FirstRows(self._num_items, self._rows.file_ends)
        num_interactions = num_repeats = 0
        for number in range(self._num_partitions):
            rows = self._read(number)
            num_interactions += rows.height
            num_repeats += count_repeats(rows)
            users.add(rows["user_id"].to_numpy(), rows)
            items.add(rows["item_id"].to_numpy(), rows)
        return KeptRows(num_interactions, num_repeats, users.in_order(), items.in_order())

    def sort(self, kept: KeptRows) -> SortedRows:
        """Give each row its final indices and put it with those of its user's neighbours."""
        user_of = _invert(kept.user_codes, self._num_users)
        item_of = _invert(kept.item_codes, self._num_items)
        files = RecordFiles(self._folder / "sorted", KEPT)
        for number in range(self._num_partitions):
            rows = self._read(number)
            records = np.empty(rows.height, KEPT)
            records["user_idx"] = user_of[rows["user_id"].to_numpy()]
            records["item_idx"] = item_of[rows["item_id"].to_numpy()]
            records["timestamp"] = rows["timestamp"].to_numpy()
            records["weight"] = rows["weight"].to_numpy() if self._has_weights else np.nan
            files.append(records, records["user_idx"] // self._per_partition)
            self._path(number).unlink()
        return SortedRows(
            files,
            has_weights=self._has_weights,
            num_users=len(kept.user_codes),
            num_items=len(kept.item_codes),
            num_interactions=kept.num_interactions,
            users_per_partition=self._per_partition,
        )

    @staticmethod
    def _subtract(counts: Indices, codes: npt.NDArray[np.int32], least: int) -> int:
        """Count these no more; how many codes have fallen below a least count by that."""
        found, times = np.unique(codes, return_counts=True)
        before = counts[found]
        counts[found] = before - times
        return int(np.sum((before >= least) & (before - times < least)))

    def _read(self, number: int) -> pl.DataFrame:
        rows = pl.read_ipc(self._path(number))
        kept = self._kept_users[rows["user_id"].to_numpy()]
        kept &= self._kept_items[rows["item_id"].to_numpy()]
        return rows if kept.all() else rows.filter(pl.Series(kept))

    def _read_pairs(self, number: int, *, is_first: bool) -> npt.NDArray[np.int32]:
        """The users and items of the rows that are left: int32 [2, num_rows]."""
        if not is_first:
            pairs: npt.NDArray[np.int32] = np.load(self._pairs_path(number))
            return pairs
        rows = pl.read_ipc(self._path(number), columns=["user_id", "item_id"])
        return np.stack([rows["user_id"].to_numpy(), rows["item_id"].to_numpy()])

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.arrow"

    def _pairs_path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"


class FirstRows:
    """The first row of each user or item, over all partitions.

    Args:
        num_codes: Number of users or items.
        file_ends: Of each file, the row after its last.
    """

    def __init__(self, num_codes: int, file_ends: Sequence[int]) -> None:
        self._rows = np.full(num_codes, NEVER)
        # Of times finer than seconds, which come before the row within a file.
        self._exact: npt.NDArray[np.float64] | None = None
        self._ends = np.array(file_ends)
        self._places = np.empty(num_codes, np.int32)

    def add(self, codes: npt.NDArray[np.int32], rows: pl.DataFrame) -> None:
        """Take the rows of a partition, in order, with the code of each."""
        places = np.arange(len(codes), dtype=np.int32)
        # Written from the last to the first, the first stays.
        self._places[codes[::-1]] = places[::-1]
        first = np.flatnonzero(self._places[codes] == places)
        codes, found = codes[first], rows["row"].to_numpy()[first]
        known = self._rows[codes]
        if "exact" not in rows.columns:
            self._rows[codes] = np.minimum(known, found)
            return
        if self._exact is None:
            self._exact = np.full(len(self._rows), np.inf)
        exact = rows["exact"].to_numpy()[first]
        known_file, file, known_exact = self._file(known), self._file(found), self._exact[codes]
        is_earlier = (file < known_file) | (
            (file == known_file)
            & ((exact < known_exact) | ((exact == known_exact) & (found < known)))
        )
        self._rows[codes[is_earlier]] = found[is_earlier]
        self._exact[codes[is_earlier]] = exact[is_earlier]

    def in_order(self) -> Indices:
        """The codes that have a row, by it."""
        codes = np.flatnonzero(self._rows != NEVER)
        rows = self._rows[codes]
        if self._exact is None:
            return codes[np.argsort(rows)]
        return codes[np.lexsort((rows, self._exact[codes], self._file(rows)))]

    def _file(self, rows: Indices) -> Indices:
        return np.searchsorted(self._ends, rows, side="right")


class SortedRows:
    """Kept rows with final indices, in partitions that follow one another."""

    def __init__(
        self,
        files: RecordFiles,
        *,
        has_weights: bool,
        num_users: int,
        num_items: int,
        num_interactions: int,
        users_per_partition: int,
    ) -> None:
        self._files, self._has_weights = files, has_weights
        self._num_users, self.num_items = num_users, num_items
        self.num_interactions = num_interactions
        self._per_partition = users_per_partition

    def time_of(self, rank: int) -> int:
        """The time of this rank among all, from 0 for the earliest: found by counting."""
        lowest = min(int(times.min()) for times in self._times())
        highest = max(int(times.max()) for times in self._times())
        while lowest < highest:
            width = (highest - lowest) // BINS + 1
            counts = np.zeros(BINS, np.int64)
            for times in self._times():
                inside = times[(times >= lowest) & (times <= highest)]
                counts += np.bincount((inside - lowest) // width, minlength=BINS)
            up_to = np.cumsum(counts)
            found = int(np.searchsorted(up_to, rank, side="right"))
            rank -= int(up_to[found] - counts[found])
            lowest += found * width
            highest = min(highest, lowest + width - 1)
        return lowest

    def write(
        self,
        directory: Path,
        split: Callable[[npt.NDArray[np.int32], Indices, npt.NDArray[np.int64]], SequenceSplit],
    ) -> None:
        """Write ``interactions.parquet`` and the files of a `SequenceSplit` into a folder.

        Args:
            directory: Where to.
            split: From items, offsets and times of some users to their split.
        """
        schema = pl.Schema(
            {
                "user_idx": pl.Int32,
                "item_idx": pl.Int32,
                "timestamp": pl.Int64,
                **({"weight": pl.Float32} if self._has_weights else {}),
            }
        )
        with SplitWriter(directory, self._num_users) as writer:

            def write_sequences() -> Iterator[pl.DataFrame]:
                for number in range(self._files.num_files):
                    frame = self._take(number, schema)
                    first = number * self._per_partition
                    num_users = min(self._per_partition, self._num_users - first)
                    counts = np.bincount(frame["user_idx"].to_numpy() - first, minlength=num_users)
                    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
                    times = frame["timestamp"].to_numpy()
                    writer.add(split(frame["item_idx"].to_numpy(), offsets, times))
                    yield frame

            write_interactions(write_sequences, schema, directory)

    def _take(self, number: int, schema: pl.Schema) -> pl.DataFrame:
        records = self._files.take(number)
        columns = {name: np.ascontiguousarray(records[name]) for name in schema}
        return sort_by_user_and_time(pl.DataFrame(columns, schema=schema))

    def _times(self) -> Iterator[npt.NDArray[np.int64]]:
        for number in range(self._files.num_files):
            yield self._files.read(number)["timestamp"]


def _invert(codes: Indices, num_codes: int) -> npt.NDArray[np.int32]:
    """The index of each code; NO_INDEX of those that have none."""
    indices = np.full(num_codes, NO_INDEX, np.int32)
    indices[codes] = np.arange(len(codes))
    return indices
