"""Per-user sequences and the splits over them.

All histories are one flat array of items plus offsets, memory-mapped from disk: a user's history
for any split is a slice, never a copy, and memory stays linear in the number of interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from recgrit.data.interactions import Interactions
from recgrit.errors import DataError

Split = Literal["valid", "test"]

# A user needs a target in valid and in test, and at least one earlier item as history.
MIN_SEQUENCE_LENGTH = 3
ITEMS_NAME, OFFSETS_NAME = "sequence_items.npy", "sequence_offsets.npy"
SPLITS_NAME, OWNERS_NAME = "sequence_splits.npy", "sequence_owners.npy"
# Interactions looked at in one go where all of them are.
PART_SIZE = 2**22


@dataclass(frozen=True)
class SequenceSplit:
    """Every user's items in time order, and where training ends and the targets stand.

    A protocol that evaluates several targets of a user has one more sequence for each of them: a
    copy of the history that the protocol allows, and the target. These stand behind the users' own
    sequences, hold nothing to train on, and count as users of their own everywhere but where
    ``owners`` is asked whose they are.

    Args:
        items: int32 [num_interactions], the item_idx of all users one after another.
        offsets: int64 [num_users + 1]; user u owns ``items[offsets[u]:offsets[u + 1]]``.
        train_ends: int64 [num_users], the position in ``items`` where user u's training part ends.
        valid_targets: int64 [num_users], position of the validation target, -1 where none.
        test_targets: int64 [num_users], position of the test target, -1 where none.
        num_items: Size of the catalogue.
        owners: int64 [num_sequences], the user each sequence is of, the users' own sequences first;
            None where there are no others. All arrays above then go by sequence.
        is_checked: Whether the parts are known to fit, as what was saved is: reading all of a
            mapped file to find so would take seconds where opening it takes milliseconds.

    Raises:
        DataError: Offsets do not fit the items, or a target is not behind its training part.
    """

    items: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    train_ends: npt.NDArray[np.int64]
    valid_targets: npt.NDArray[np.int64]
    test_targets: npt.NDArray[np.int64]
    num_items: int
    owners: npt.NDArray[np.int64] | None = None
    is_checked: InitVar[bool] = False

    def __post_init__(self, is_checked: bool) -> None:
        if self.owners is not None and len(self.owners) != self.num_sequences:
            raise DataError(
                f"Expected an owner for each of {self.num_sequences} sequences, got "
                f"{len(self.owners)}."
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise DataError(
                f"Offsets must run from 0 to the number of interactions ({len(self.items)}), "
                f"got {self.offsets[0]} to {self.offsets[-1]}."
            )
        if is_checked:
            return
        starts, ends = self.offsets[:-1], self.offsets[1:]
        if np.any(self.train_ends < starts) or np.any(self.train_ends > ends):
            raise DataError("A training part must lie within its user's sequence.")
        for name, targets in (("valid", self.valid_targets), ("test", self.test_targets)):
            has_target = targets >= 0
            if np.any(targets[has_target] < self.train_ends[has_target]) or np.any(
                targets[has_target] >= ends[has_target]
            ):
                raise DataError(f"A {name} target must lie behind its user's training part.")

    @property
    def num_sequences(self) -> int:
        """Number of sequences: one a user, and those of further targets."""
        return len(self.offsets) - 1

    @property
    def num_users(self) -> int:
        """Number of users, with or without targets."""
        return self.num_sequences if self.owners is None else int(self.owners.max()) + 1

    def owners_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [len(sequences)], the user_idx whose sequences these are."""
        return sequences if self.owners is None else np.asarray(self.owners[sequences])

    @classmethod
    def of_histories(
        cls, items: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], num_items: int
    ) -> SequenceSplit:
        """Sequences to recommend after, without targets: flat items and where each user's start."""
        nobody = np.full(len(offsets) - 1, -1)
        return cls(
            items=items,
            offsets=offsets,
            train_ends=offsets[1:],
            valid_targets=nobody,
            test_targets=nobody,
            num_items=num_items,
        )

    def target_positions(self, split: Split) -> npt.NDArray[np.int64]:
        """int64 [num_users], where each user's target stands in ``items``; -1 where none."""
        return self.valid_targets if split == "valid" else self.test_targets

    def target_users(self, split: Split) -> npt.NDArray[np.int64]:
        """The users that have a target in this split."""
        return np.flatnonzero(self.target_positions(split) >= 0)

    def targets(self, split: Split, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """int32 [len(users)], the item each of these users is to be recommended.

        Raises:
            DataError: A user has no target in this split.
        """
        return self.items[self._positions_of(split, users)]

    def history(self, user_idx: int, split: Split) -> npt.NDArray[np.int32]:
        """All items before the target of this split: the test history includes the valid item.

        Raises:
            DataError: The user has no target in this split.
        """
        (end,) = self._positions_of(split, np.array([user_idx]))
        return self.items[self.offsets[user_idx] : end]

    def _positions_of(self, split: Split, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        positions = self.target_positions(split)[users]
        if np.any(positions < 0):
            raise DataError(
                f"User {users[positions < 0][0]} has no {split} target: a target needs at least "
                f"{MIN_SEQUENCE_LENGTH} interactions. Choose users from target_users({split!r})."
            )
        return positions

    def train_sequence(self, user_idx: int) -> npt.NDArray[np.int32]:
        """The items a model may learn from."""
        return self.items[self.offsets[user_idx] : self.train_ends[user_idx]]

    def full_sequence(self, user_idx: int) -> npt.NDArray[np.int32]:
        """All items of a user: the history from which to recommend what comes next."""
        return self.items[self.offsets[user_idx] : self.offsets[user_idx + 1]]

    def train_item_counts(self) -> npt.NDArray[np.int64]:
        """int64 [num_items], how often each item stands in the training parts."""
        counts = np.zeros(self.num_items, np.int64)
        for part, may_be_learned in self._train_parts():
            counts += np.bincount(self.items[part][may_be_learned], minlength=self.num_items)
        return counts

    def train_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each interaction may be learned from: bool [num_interactions]."""
        mask = np.empty(len(self.items), np.bool_)
        for part, may_be_learned in self._train_parts():
            mask[part] = may_be_learned
        return mask

    def _train_parts(self) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
        """Parts of ``items`` that follow one another, and which of each may be learned from.

        Each is of whole sequences, so that memory holds the working arrays of a part.
        """
        first, num_sequences = 0, self.num_sequences
        while first < num_sequences:
            start = int(self.offsets[first])
            last = int(np.searchsorted(self.offsets, start + PART_SIZE, side="right")) - 1
            last = min(max(last, first + 1), num_sequences)
            end = int(self.offsets[last])
            lengths = np.diff(self.offsets[first : last + 1])
            ends = np.repeat(self.train_ends[first:last], lengths)
            yield slice(start, end), np.arange(start, end) < ends
            first = last

    def save(self, directory: Path) -> None:
        """Write one ``.npy`` file per array."""
        np.save(directory / ITEMS_NAME, self.items)
        np.save(directory / OFFSETS_NAME, self.offsets)
        np.save(
            directory / SPLITS_NAME,
            np.stack([self.train_ends, self.valid_targets, self.test_targets]),
        )
        if self.owners is not None:
            np.save(directory / OWNERS_NAME, self.owners)

    @classmethod
    def load(cls, directory: Path, num_items: int) -> SequenceSplit:
        """Memory-map what `save` wrote."""
        train_ends, valid_targets, test_targets = np.load(directory / SPLITS_NAME, mmap_mode="r")
        owners = directory / OWNERS_NAME
        return cls(
            items=np.load(directory / ITEMS_NAME, mmap_mode="r"),
            offsets=np.load(directory / OFFSETS_NAME, mmap_mode="r"),
            train_ends=train_ends,
            valid_targets=valid_targets,
            test_targets=test_targets,
            num_items=num_items,
            owners=np.load(owners, mmap_mode="r") if owners.is_file() else None,
            is_checked=True,
        )


class SplitWriter:
    """What `SequenceSplit.save` writes, of parts that follow one another.

    Args:
        directory: Where the files go; they are whole once the block ends.
        num_users: Of all parts.
    """

    def __init__(self, directory: Path, num_users: int) -> None:
        self._directory = directory
        self._stream: BinaryIO | None = None
        self._num_items = self._num_users = 0
        self._offsets = np.zeros(num_users + 1, np.int64)
        self._splits = np.empty((3, num_users), np.int64)

    def __enter__(self) -> SplitWriter:
        self._stream = (self._directory / ITEMS_NAME).open("wb")
        self._write_header()
        return self

    def add(self, split: SequenceSplit) -> None:
        """Append the sequences of some users."""
        assert self._stream is not None
        start = self._num_items
        self._stream.write(np.ascontiguousarray(split.items, np.int32).view(np.uint8).data)
        self._num_items += len(split.items)
        users = slice(self._num_users, self._num_users + split.num_users)
        self._offsets[1:][users] = split.offsets[1:] + start
        positions = np.stack([split.train_ends, split.valid_targets, split.test_targets])
        self._splits[:, users] = np.where(positions >= 0, positions + start, -1)
        self._num_users = users.stop

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._stream is not None
        with self._stream as stream:
            stream.seek(0)
            self._write_header()
        if kind is None:
            np.save(self._directory / OFFSETS_NAME, self._offsets)
            np.save(self._directory / SPLITS_NAME, self._splits)

    def _write_header(self) -> None:
        # As long for any number of items: the format leaves room for it to grow.
        assert self._stream is not None
        header = {"descr": "<i4", "fortran_order": False, "shape": (self._num_items,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def build_leave_one_out(interactions: Interactions) -> SequenceSplit:
    """Last item of each user for test, last but one for validation, the rest for training.

    Users with fewer than three items have no targets: all their items are for training.
    """
    return leave_one_out(*_sequences(interactions), interactions.num_items)


def leave_one_out(
    items: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], num_items: int
) -> SequenceSplit:
    """`build_leave_one_out` of some users' sequences."""
    ends = offsets[1:]
    has_targets = np.diff(offsets) >= MIN_SEQUENCE_LENGTH
    return SequenceSplit(
        items=items,
        offsets=offsets,
        train_ends=np.where(has_targets, ends - 2, ends),
        valid_targets=np.where(has_targets, ends - 2, -1),
        test_targets=np.where(has_targets, ends - 1, -1),
        num_items=num_items,
    )


def build_temporal(
    interactions: Interactions, *, valid_share: float, test_share: float
) -> SequenceSplit:
    """Two moments for all users: training before the first, validation between, test after.

    A user's target in a period is the first interaction there that has one before it. Nothing a
    model learns from happened after any target it is tested on, which leave-one-out does not
    promise: there, one user's training may lie after another's test.

    Args:
        interactions: In order.
        valid_share: Share of all interactions between the moments, about: what happened at once
            stays together.
        test_share: Share of all interactions from the second moment on.

    Raises:
        DataError: The shares leave nothing to train on.
    """
    times = interactions.frame["timestamp"].to_numpy()
    ordered = np.sort(times)
    moments = choose_moments(
        len(times), lambda rank: int(ordered[rank]), valid_share=valid_share, test_share=test_share
    )
    return part_in_time(*_sequences(interactions), interactions.num_items, times, moments)


@dataclass(frozen=True)
class Moments:
    """Where a temporal split parts the time: the first of validation, and the first of test."""

    first_valid: int
    first_test: int


def choose_moments(
    num_interactions: int, time_of: Callable[[int], int], *, valid_share: float, test_share: float
) -> Moments:
    """The moments that leave about these shares behind them.

    Args:
        num_interactions: Of all users.
        time_of: The time of a rank, from 0 for the earliest.
        valid_share: As for `build_temporal`.
        test_share: As for `build_temporal`.

    Raises:
        DataError: The shares leave nothing to train on.
    """
    num_train = int(num_interactions * (1 - valid_share - test_share))
    moments = Moments(
        first_valid=time_of(min(num_train, num_interactions - 1)),
        first_test=time_of(int(num_interactions * (1 - test_share))),
    )
    if moments.first_valid == time_of(0):
        raise DataError(
            f"No interaction lies before the {1 - valid_share - test_share:.0%} mark in time: "
            "all is one moment. Use data.split=leave_one_out, or lower the shares."
        )
    return moments


def part_in_time(
    items: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    num_items: int,
    times: npt.NDArray[np.int64],
    moments: Moments,
) -> SequenceSplit:
    """`build_temporal` of some users' sequences, between moments that hold for all."""
    starts, ends = offsets[:-1], offsets[1:]

    def count_before(moment: int) -> npt.NDArray[np.int64]:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(times < moment)])
        return np.asarray(before[ends] - before[starts], dtype=np.int64)

    train_ends = starts + count_before(moments.first_valid)
    valid_ends = starts + count_before(moments.first_test)
    valid, test = np.maximum(train_ends, starts + 1), np.maximum(valid_ends, starts + 1)
    return SequenceSplit(
        items=items,
        offsets=offsets,
        train_ends=train_ends,
        valid_targets=np.where(valid < valid_ends, valid, -1),
        test_targets=np.where(test < ends, test, -1),
        num_items=num_items,
    )


def _sequences(
    interactions: Interactions,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    items = interactions.frame["item_idx"].to_numpy().astype(np.int32, copy=False)
    return items, sequence_offsets(interactions)


def sequence_offsets(interactions: Interactions) -> npt.NDArray[np.int64]:
    """Where each user's interactions begin, and the end of the last."""
    counts = np.bincount(interactions.frame["user_idx"], minlength=interactions.num_users)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True)
class HeldOut:
    """A split whose training parts lack some items.

    Args:
        split: The items are targets of validation and test still, and part of the catalogue.
        items: bool [num_items], the items held out.
    """

    split: SequenceSplit
    items: npt.NDArray[np.bool_]


def hold_out_items(split: SequenceSplit, share: float, seed: int) -> HeldOut:
    """Take a random share of the items out of all training parts, to measure a cold start.

    A user who is left without a history has no targets.
    """
    held_out = draw_items(split.num_items, share, seed)
    return HeldOut(without_items(split, held_out), held_out)


def draw_items(num_items: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """A random share of the items: bool [num_items]."""
    drawn = np.zeros(num_items, dtype=np.bool_)
    order = np.random.default_rng(seed).permutation(num_items)
    drawn[order[: round(share * num_items)]] = True
    return drawn


def without_items(split: SequenceSplit, held_out: npt.NDArray[np.bool_]) -> SequenceSplit:
    """`hold_out_items` of given items: bool [num_items]."""
    kept = ~(split.train_mask() & held_out[split.items])
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    offsets, train_ends = before[split.offsets], before[split.train_ends]
    has_history = train_ends > offsets[:-1]

    def move(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where((targets >= 0) & has_history, before[np.maximum(targets, 0)], -1)

    return SequenceSplit(
        items=split.items[kept],
        offsets=offsets,
        train_ends=train_ends,
        valid_targets=move(split.valid_targets),
        test_targets=move(split.test_targets),
        num_items=split.num_items,
    )
