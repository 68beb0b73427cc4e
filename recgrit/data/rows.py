"""The rows of a data set on their way from what was read to what is split.

All but two things in preparing concern one row or one user at a time, so they are done partition by
partition. The two are

- the k-core, whose counts per user and per item are arrays in memory (`recgrit.data.k_core`);
- the final indices, by first appearance among what is kept: the place of each user's and item's
  first row, again an array each. They order users anew, so rows move to new partitions once.

Memory is that of the largest partition, some arrays per user and item, and the ids. Without a
folder for partitions there is one, in memory, which is not copied on its way.
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

# What stands for a user or item that has no row left.
NO_INDEX = -1
BINS = 2**16


@dataclass(frozen=True)
class KeptCodes:
    """The code that each final index stands for."""

    users: Indices
    items: Indices


class Rows:
    """Rows as they were read, on which the steps of preparing are done in turn.

    Args:
        read: What a source read, with codes from 0 as ids, in partitions by user.
        num_users: Number of user codes.
        num_items: Number of item codes.
        scratch: Where partitions lie between the steps; None for memory.
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
        # Of each partition, whether a user may be there with an item twice.
        self._may_repeat: list[bool] = []
        self.num_repeats = 0
        # Of users that are not kept, their rows with items that are: codes, in time order.
        self._left_out: list[pl.DataFrame] = []

    def filter(self, filters: Sequence[Filter]) -> list[Tally]:
        """Drop exact duplicates, then apply filters that concern a row or a user.

        Returns what was read, what is left without duplicates, and what each filter left.
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
        """Drop rare users and items until there are none, as `cut_to_k_core` describes."""
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
        """Number users and items by their first appearance among the rows that are left."""
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
            if may_repeat:  # Filters make none.
                self.num_repeats += count_repeats(rows)
            users.add(rows["user_id"].to_numpy(), rows)
            items.add(rows["item_id"].to_numpy(), rows)
            self._rows.add(rows)
        return KeptCodes(users.in_order(), items.in_order())

    def find_left_out(self, kept: KeptCodes, user_ids: pl.Series) -> UserHistories:
        """Users of whom nothing is kept, and their rows with items that are.

        Args:
            kept: What `index` gave.
            user_ids: The id of each user code.
        """
        # Those with rows first: they get other lists than those without.
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
        """Put rows with those of their user, by final indices and in time order.

        Args:
            kept: What `index` gave.
            tie_seed: Draws the order of what a user did at one time, in place of the file's; for
                rows of one partition.
            events: Their types, where they have some.
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
    """Kept rows with final indices, in partitions that follow one another.

    Args:
        store: Holds them, those of a user in file order.
        schema: Of the rows once they are sorted.
        num_users: Number of users of all partitions.
        num_items: Number of items of all partitions.
        events: Types of the rows, where they have some.
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
        """Each partition's rows, sorted by user and time, and the same as sequences."""
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
        """The times of each partition, in no order."""
        for number in range(self._store.num_partitions):
            yield self._store.read(number, ["timestamp"])["timestamp"].to_numpy()

    def time_of(self, rank: int) -> int:
        """The time of this rank among all, from 0 for the earliest: found by counting."""
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
    """The index of each code; NO_INDEX of those that have none."""
    indices = np.full(num_codes, NO_INDEX, np.int32)
    indices[codes] = np.arange(len(codes))
    return indices
