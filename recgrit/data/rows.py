"""The rows of a data set during the preparation, from reading to splitting.

Most steps look at one row or one user at a time, so they run partition by partition. Two steps need
all rows:

- The k-core needs the counts of each user and item, which are arrays in memory
  (`recgrit.data.k_core`).
- The final indices follow the first appearance of each user and item among the kept rows, which
  needs one more array for each. The new order of users moves rows to new partitions once.

Memory holds the largest partition, some arrays per user and item, and the ids. Without a folder for
partitions there is one partition in memory, which is not copied between steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.events import EVENT, EventTypes
from recgrit.data.filtering import (
    FRACTION,
    Filter,
    count_distinct,
    count_repeats,
    drop_exact_duplicates,
    find_repeats,
    time_columns,
)
from recgrit.data.first_rows import FirstRows, Indices
from recgrit.data.funnel import Tally
from recgrit.data.interactions import sort_by_user_and_time
from recgrit.data.k_core import cut_to_k_core
from recgrit.data.partitions import MemoryStore, Partitions, Scratch, Store
from recgrit.data.protocols import Sequences
from recgrit.data.user_histories import UserHistories

# Index of a user or item that has no row left.
NO_INDEX = -1
BINS = 2**16


@dataclass(frozen=True)
class KeptCodes:
    """The codes of the kept users and items, in the order of their final indices.

    Args:
        users: int64, code of each kept user; entry i is the code of ``user_idx`` i.
        items: int64, code of each kept item; entry i is the code of ``item_idx`` i.
    """

    users: Indices
    items: Indices


class Rows:
    """The rows of a data set, to which the steps of the preparation are applied in order.

    Args:
        read: Rows that a source read, in partitions by user. Ids are codes from 0 on.
        num_users: Number of user codes.
        num_items: Number of item codes.
        scratch: Folder for partitions between the steps. None keeps the rows in memory.
    """

    def __init__(
        self, read: Partitions, *, num_users: int, num_items: int, scratch: Scratch | None = None
    ) -> None:
        self._read, self._scratch = read, scratch
        self._rows = self._open_store("steps")
        self._per_user = np.zeros(num_users, np.int64)
        self._per_item = np.zeros(num_items, np.int64)
        self._is_user_kept = np.ones(num_users, np.bool_)
        self._is_item_kept = np.ones(num_items, np.bool_)
        # For each partition, whether a user may have interacted with an item more than once.
        self._may_repeat: list[bool] = []
        self.num_repeats = 0
        # Codes of users who are not kept and of their kept items, in time order.
        self._left_out: list[pl.DataFrame] = []

    def filter(self, filters: Sequence[Filter]) -> list[Tally]:
        """Drop exact duplicates, then apply filters that look at one row or one user at a time.

        Returns:
            The numbers of interactions, users and items as read, then without duplicates, then
            after each filter.
        """
        counts = np.zeros((len(filters) + 2, 2), np.int64)
        has_item = np.zeros((len(filters) + 2, len(self._per_item)), np.bool_)
        for number in range(self._read.num_partitions):
            rows = self._read.take(number)
            repeats = find_repeats(rows)
            self._may_repeat.append(not repeats.is_empty())
            drop = partial(drop_exact_duplicates, repeats=repeats)
            stages: list[Filter] = [lambda read: read, drop, *filters]
            height = -1
            for place, keep in enumerate(stages):
                rows = keep(rows)
                if rows.height != height:
                    height, num_users = rows.height, count_distinct(rows["user_id"])
                    here = np.zeros(len(self._per_item), np.bool_)
                    here[rows["item_id"].to_numpy()] = True
                counts[place] += height, num_users
                has_item[place] |= here
            first = number * self._read.users_per_partition
            own = self._per_user[first : first + self._read.users_per_partition]
            own += np.bincount(rows["user_id"].to_numpy() - first, minlength=len(own))
            self._per_item += np.bincount(rows["item_id"].to_numpy(), minlength=has_item.shape[1])
            self._rows.add(rows)
        return [
            Tally(int(interactions), int(users), int(items.sum()))
            for (interactions, users), items in zip(counts, has_item, strict=True)
        ]

    def filter_k_core(self, min_user_interactions: int, min_item_interactions: int) -> Tally:
        """Drop rare users and items in turns until no rare one is left; see `cut_to_k_core`."""
        cut_to_k_core(
            self._rows,
            self._per_user,
            self._per_item,
            min_user_interactions=min_user_interactions,
            min_item_interactions=min_item_interactions,
        )
        self._is_user_kept = self._per_user >= min_user_interactions
        self._is_item_kept = self._per_item >= min_item_interactions
        return Tally(
            interactions=int(self._per_user[self._is_user_kept].sum()),
            users=int(self._is_user_kept.sum()),
            items=int(self._is_item_kept.sum()),
        )

    def index(self) -> KeptCodes:
        """Number users and items by their first appearance among the remaining rows."""
        users, items = FirstRows(len(self._per_user)), FirstRows(len(self._per_item))
        for number, may_repeat in enumerate(self._may_repeat):
            rows = self._rows.take(number)
            has_user = self._is_user_kept[rows["user_id"].to_numpy()]
            has_item = self._is_item_kept[rows["item_id"].to_numpy()]
            if not has_user.all():
                left_out = rows.filter(pl.Series(has_item & ~has_user))
                in_order = left_out.sort("user_id", *time_columns(left_out), maintain_order=True)
                self._left_out.append(in_order.select("user_id", "item_id"))
            if not (has_user.all() and has_item.all()):
                rows = rows.filter(pl.Series(has_user & has_item))
            if may_repeat:  # Filters add no repeats to a partition that had none.
                self.num_repeats += count_repeats(rows)
            users.add(rows["user_id"].to_numpy(), rows)
            items.add(rows["item_id"].to_numpy(), rows)
            self._rows.add(rows)
        return KeptCodes(users.in_order(), items.in_order())

    def find_left_out(self, kept: KeptCodes, user_ids: pl.Series) -> UserHistories:
        """Return the users who are not kept, with their interactions with kept items.

        Users with such interactions come first, because recommendations for them use a history.

        Args:
            kept: Kept codes that `index` returned.
            user_ids: External id of each user code.
        """
        # Users with rows come first, because recommendations for them use a history.
        has_rows = np.zeros(len(self._per_user), np.bool_)
        for found in self._left_out:
            has_rows[found["user_id"].to_numpy()] = True
        left_out = ~self._is_user_kept
        codes = np.concatenate(
            [np.flatnonzero(left_out & has_rows), np.flatnonzero(left_out & ~has_rows)]
        )
        place_of = _invert(codes, len(self._per_user))
        item_of = _invert(kept.items, len(self._per_item))
        rows = [place_of[:0], item_of[:0]]
        if self._left_out:
            found = pl.concat(self._left_out)
            rows = [place_of[found["user_id"].to_numpy()], item_of[found["item_id"].to_numpy()]]
        owners, items = rows
        ids = user_ids.gather(codes)
        return UserHistories.of(ids, owners.astype(np.int64), items, len(kept.items))

    def sort(
        self, kept: KeptCodes, *, tie_seed: int | None = None, events: EventTypes | None = None
    ) -> SortedRows:
        """Replace codes by final indices, and move each row to the partition of its user.

        Args:
            kept: Kept codes that `index` returned.
            tie_seed: Seed of a random order of a user's interactions at the same time. None keeps
                the order of the file. A seed requires that all rows are in one partition.
            events: Event types of the rows. None if events have no types.
        """
        user_of = _invert(kept.users, len(self._per_user))
        item_of = _invert(kept.items, len(self._per_item))
        store = self._open_store("sorted")
        assert tie_seed is None or len(self._may_repeat) == 1
        for number in range(len(self._may_repeat)):
            rows = self._rows.take(number)
            rows = rows.select(
                pl.Series("user_idx", user_of[rows["user_id"].to_numpy()]),
                pl.Series("item_idx", item_of[rows["item_id"].to_numpy()]),
                *(
                    name
                    for name in ("timestamp", FRACTION, "weight", EVENT)
                    if name in rows.columns
                ),
            )
            if tie_seed is not None:
                rows = rows[np.random.default_rng(tie_seed).permutation(rows.height)]
            store.add(rows)
        schema = rows.drop(FRACTION, strict=False).schema
        return SortedRows(
            store, schema, num_users=len(kept.users), num_items=len(kept.items), events=events
        )

    def _open_store(self, name: str) -> Store:
        return MemoryStore() if self._scratch is None else self._scratch.open_store(name)


class SortedRows:
    """Kept rows with final indices, in partitions of consecutive users.

    Args:
        store: Store of the rows, in which the rows of a user are in file order.
        schema: Columns and types of the rows after sorting.
        num_users: Number of users of all partitions.
        num_items: Number of items of all partitions.
        events: Event types of the rows. None if events have no types.
    """

    def __init__(
        self,
        store: Store,
        schema: pl.Schema,
        *,
        num_users: int,
        num_items: int,
        events: EventTypes | None = None,
    ) -> None:
        self._store, self._events = store, events
        self.schema = schema
        if events is not None:
            self.schema = pl.Schema({**schema, EVENT: pl.Enum(events.names)})
        self.num_users, self.num_items = num_users, num_items

    def parts(self) -> Iterator[tuple[pl.DataFrame, Sequences]]:
        """Yield each partition as rows sorted by user and time, together with their sequences.

        Each partition is removed from the store.
        """
        for number in range(self._store.num_partitions):
            frame = sort_by_user_and_time(self._store.take(number))
            first = number * self._store.users_per_partition
            num_users = min(self._store.users_per_partition, self.num_users - first)
            weights = None
            if self._events is not None:
                weights = self._events.weigh(frame[EVENT].to_numpy())
                names = pl.Series(self._events.names, dtype=self.schema[EVENT])
                frame = frame.with_columns(names.gather(frame[EVENT]).alias(EVENT))
            sequences = Sequences.of(
                frame, num_users, self.num_items, first_user=first, weights=weights
            )
            yield frame, sequences

    def times(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the times of the rows of each partition, unsorted."""
        for number in range(self._store.num_partitions):
            yield self._store.read(number, ["timestamp"])["timestamp"].to_numpy()

    def time_of(self, rank: int) -> int:
        """Return the time of the interaction with this rank in time order, from 0 for the earliest.

        The time is found by counting interactions in intervals, without sorting all times.
        """
        lowest = min(int(times.min()) for times in self.times())
        highest = max(int(times.max()) for times in self.times())
        while lowest < highest:
            width = (highest - lowest) // BINS + 1
            counts = np.zeros(BINS, np.int64)
            for times in self.times():
                inside = times[(times >= lowest) & (times <= highest)]
                counts += np.bincount((inside - lowest) // width, minlength=BINS)
            up_to = np.cumsum(counts)
            found = int(np.searchsorted(up_to, rank, side="right"))
            rank -= int(up_to[found] - counts[found])
            lowest += found * width
            highest = min(highest, lowest + width - 1)
        return lowest


def _invert(codes: Indices, num_codes: int) -> npt.NDArray[np.int32]:
    """Return the index of each code, int32 ``[num_codes]``, or `NO_INDEX` if it is not kept."""
    indices = np.full(num_codes, NO_INDEX, np.int32)
    indices[codes] = np.arange(len(codes))
    return indices
