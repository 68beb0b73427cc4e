"""Sequences of items, and where training ends and the targets stand in them.

All histories are one flat array of items plus offsets, memory-mapped from disk: a sequence's
history for any split is a slice, never a copy, and memory stays linear in the number of
interactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from recgrit.errors import DataError

Split = Literal["valid", "test"]

ITEMS_NAME, OFFSETS_NAME = "sequence_items.npy", "sequence_offsets.npy"
SPLITS_NAME, OWNERS_NAME = "sequence_splits.npy", "sequence_owners.npy"
WEIGHTS_NAME = "sequence_weights.npy"
# Interactions looked at in one go where all of them are.
PART_SIZE = 2**22
# More are not looked at one by one when a split is opened.
MAX_CHECKED = 2**24


@dataclass(frozen=True)
class SequenceSplit:
    """Every user's items in time order, and where training ends and the targets stand.

    A sequence has one target per split at most. A protocol that evaluates several targets of a user
    has one more sequence for each of them: a copy of the history that the protocol allows, and the
    target. These stand behind the users' own sequences and hold nothing to train on. Everything
    below goes by sequence; the first ``num_users`` sequences are the users' own, in order, and
    `owners_of` tells whose any other is.

    Args:
        items: int32 [num_interactions], the item_idx of all sequences one after another.
        offsets: int64 [num_sequences + 1]; sequence s is ``items[offsets[s]:offsets[s + 1]]``.
        train_ends: int64 [num_sequences], the position in ``items`` where the training part ends.
        valid_targets: int64 [num_sequences], position of the validation target, -1 where none.
        test_targets: int64 [num_sequences], position of the test target, -1 where none.
        num_items: Size of the catalogue.
        owners: int64 [num_sequences], the user_idx of each sequence; None where each user has one.
        weights: float32 [num_interactions], what each interaction counts as a training target, and
            0 for what stands in histories only; None where all count alike.
        people: int64 [num_sequences], the user_idx of those whom a model was trained with, -1 of
            others; None where nobody knows.

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
    weights: npt.NDArray[np.float32] | None = None
    people: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
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
        if self.weights is not None and len(self.weights) != len(self.items):
            raise DataError(
                f"Expected a weight for each of {len(self.items)} interactions, got "
                f"{len(self.weights)}."
            )
        starts, ends = self.offsets[:-1], self.offsets[1:]
        if np.any(self.train_ends < starts) or np.any(self.train_ends > ends):
            raise DataError("A training part must lie within its sequence.")
        for name, targets in (("valid", self.valid_targets), ("test", self.test_targets)):
            has_target = targets >= 0
            if np.any(targets[has_target] < self.train_ends[has_target]) or np.any(
                targets[has_target] >= ends[has_target]
            ):
                raise DataError(f"A {name} target must lie behind its sequence's training part.")

    @property
    def num_sequences(self) -> int:
        """Number of sequences: one per user, and those of further targets."""
        return len(self.offsets) - 1

    @property
    def num_users(self) -> int:
        """Number of users, with or without targets."""
        return self.num_sequences if self.owners is None else int(self.owners.max()) + 1

    def owners_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [len(sequences)], the user_idx whose sequences these are."""
        return sequences if self.owners is None else np.asarray(self.owners[sequences])

    def people_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """The user of each of these sequences, int64 ``[len(sequences)]``, as in ``people``."""
        return None if self.people is None else np.asarray(self.people[sequences])

    def with_own_people(self) -> SequenceSplit:
        """A copy in which ``people`` numbers the users in their own order."""
        return replace(self, people=self.owners_of(np.arange(self.num_sequences)))

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
        """int64 [num_sequences], where each target stands in ``items``; -1 where none."""
        return self.valid_targets if split == "valid" else self.test_targets

    def target_users(self, split: Split) -> npt.NDArray[np.int64]:
        """The sequences that have a target in this split; see `owners_of` for their users."""
        return np.flatnonzero(self.target_positions(split) >= 0)

    def targets(self, split: Split, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """int32 [len(sequences)], the item to be recommended after each of these histories.

        Raises:
            DataError: A sequence has no target in this split.
        """
        return self.items[self._positions_of(split, sequences)]

    def history(self, sequence: int, split: Split) -> npt.NDArray[np.int32]:
        """All items before the target of this split: the test history includes the valid item.

        Raises:
            DataError: The sequence has no target in this split.
        """
        (end,) = self._positions_of(split, np.array([sequence]))
        return self.items[self.offsets[sequence] : end]

    def repeats(self, split: Split, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each target stands in the history before it: bool [len(sequences)].

        Raises:
            DataError: A sequence has no target in this split.
        """
        starts, ends = np.asarray(self.offsets[sequences]), self._positions_of(split, sequences)
        found = np.zeros(len(sequences), np.bool_)
        # Histories that are looked at in one go are as long as a part, but for one that is longer.
        totals = np.cumsum(ends - starts)
        first = 0
        while first < len(sequences):
            before = totals[first - 1] if first else 0
            last = max(int(np.searchsorted(totals, before + PART_SIZE, side="right")), first + 1)
            lengths = (ends - starts)[first:last]
            rows = np.repeat(np.arange(first, last), lengths)
            firsts = np.cumsum(lengths) - lengths
            places = np.arange(len(rows)) + np.repeat(starts[first:last] - firsts, lengths)
            found[rows[self.items[places] == self.items[ends][rows]]] = True
            first = last
        return found

    def _positions_of(
        self, split: Split, sequences: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        positions = self.target_positions(split)[sequences]
        if np.any(positions < 0):
            raise DataError(
                f"Sequence {sequences[positions < 0][0]} has no {split} target. Choose sequences "
                f"from target_users({split!r})."
            )
        return positions

    def train_sequence(self, sequence: int) -> npt.NDArray[np.int32]:
        """The items a model may learn from."""
        return self.items[self.offsets[sequence] : self.train_ends[sequence]]

    def full_sequence(self, sequence: int) -> npt.NDArray[np.int32]:
        """All items of a user: the history from which to recommend what comes next."""
        return self.items[self.offsets[sequence] : self.offsets[sequence + 1]]

    def train_item_counts(self) -> npt.NDArray[np.int64]:
        """int64 [num_items], how often each item stands in the training parts."""
        counts = np.zeros(self.num_items, np.int64)
        for part, may_be_learned in self._train_parts():
            counts += np.bincount(self.items[part][may_be_learned], minlength=self.num_items)
        return counts

    def train_target_counts(self) -> npt.NDArray[np.int64]:
        """int64 [num_items], the same of those interactions that may be targets."""
        if self.weights is None:
            return self.train_item_counts()
        targets = self.items[self.train_mask() & (self.weights > 0)]
        return np.bincount(targets, minlength=self.num_items)

    def train_pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Users and items of the training parts, int64 each, no pair twice."""
        sequences = np.repeat(np.arange(len(self.train_ends)), np.diff(self.offsets))
        trained = self.train_mask()
        users = self.owners_of(sequences[trained]).astype(np.int64)
        pairs = np.unique(users * self.num_items + self.items[trained])
        return pairs // self.num_items, pairs % self.num_items

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
        if self.weights is not None:
            np.save(directory / WEIGHTS_NAME, self.weights)

    @classmethod
    def load(cls, directory: Path, num_items: int) -> SequenceSplit:
        """Memory-map what `save` wrote.

        Raises:
            DataError: The arrays do not fit together.
        """
        items, offsets = (
            np.load(directory / name, mmap_mode="r") for name in (ITEMS_NAME, OFFSETS_NAME)
        )
        splits = np.load(directory / SPLITS_NAME, mmap_mode="r")
        _check_saved(items, offsets, splits, num_items)
        train_ends, valid_targets, test_targets = splits
        owners, path = directory / OWNERS_NAME, directory / WEIGHTS_NAME
        weights = _load_weights(path) if path.is_file() else None
        return cls(
            items=items,
            offsets=offsets,
            train_ends=train_ends,
            valid_targets=valid_targets,
            test_targets=test_targets,
            num_items=num_items,
            owners=np.load(owners, mmap_mode="r") if owners.is_file() else None,
            weights=weights,
        )


def _load_weights(path: Path) -> npt.NDArray[np.float32]:
    """Memory-map the weights of targets.

    Raises:
        DataError: They are of another type, or some are negative, infinite or NaN. Values are not
            checked where there are very many.
    """
    weights: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    if weights.dtype != np.float32:
        raise DataError(f"The weights of a split are {weights.dtype}; expected float32.")
    is_checked = 0 < len(weights) <= MAX_CHECKED
    if is_checked and not 0 <= weights.min() <= weights.max() < np.inf:
        raise DataError("The weights of a split must be finite numbers of at least 0.")
    return weights


def last_targets_before(
    weights: npt.NDArray[np.float32] | None, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The last interaction before each position that may be a target; -1 where there is none.

    Of all sequences together: whose it is has to be looked at.

    Args:
        weights: float32 [num_interactions], 0 for what is no target; None where all may be.
        positions: int64, each from 0 to num_interactions.
    """
    if weights is None:
        return positions - 1
    before = np.full(len(weights) + 1, -1)
    np.maximum.accumulate(np.where(weights > 0, np.arange(len(weights)), -1), out=before[1:])
    return before[positions]


def first_targets_from(
    weights: npt.NDArray[np.float32] | None, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The first interaction at or behind each position that may be a target.

    As `last_targets_before`; num_interactions where there is none.
    """
    if weights is None:
        return positions
    since = np.full(len(weights) + 1, len(weights))
    own = np.where(weights > 0, np.arange(len(weights)), len(weights))
    since[:-1] = np.minimum.accumulate(own[::-1])[::-1]
    return since[positions]


def _check_saved(
    items: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    splits: npt.NDArray[np.int64],
    num_items: int,
) -> None:
    """Refuse arrays that could not be read as sequences.

    Raises:
        DataError: Types or shapes are wrong, offsets fall, or an item is not in the catalogue. That
            takes a look at every item, and is left out where there are very many.
    """
    found = [f"{array.dtype}{list(array.shape)}" for array in (items, offsets, splits)]
    expected = [f"int32[{items.size}]", f"int64[{offsets.size}]", f"int64[3, {offsets.size - 1}]"]
    if found != expected:
        raise DataError(f"The arrays of a split are {found}; expected {expected}.")
    if np.any(np.diff(offsets) < 0):
        raise DataError("Offsets of sequences must not fall.")
    if 0 < len(items) <= MAX_CHECKED and not 0 <= items.min() <= items.max() < num_items:
        raise DataError(f"Sequences hold items outside the catalogue of {num_items}.")


class SplitWriter:
    """What `SequenceSplit.save` writes, of parts that follow one another.

    Args:
        directory: Where the files go; they are whole once the block ends.
        num_users: Of all parts.
    """

    def __init__(self, directory: Path, num_users: int) -> None:
        self._directory = directory
        self._items = _GrowingArray(directory / ITEMS_NAME, np.dtype(np.int32))
        self._weights: _GrowingArray | None = None
        self._num_users = 0
        self._offsets = np.zeros(num_users + 1, np.int64)
        self._splits = np.empty((3, num_users), np.int64)

    def __enter__(self) -> SplitWriter:
        return self

    def add(self, split: SequenceSplit) -> None:
        """Append the sequences of some users."""
        start = self._items.length
        self._items.add(split.items)
        if split.weights is not None:
            if self._weights is None:
                path = self._directory / WEIGHTS_NAME
                self._weights = _GrowingArray(path, np.dtype(np.float32))
            self._weights.add(split.weights)
        users = slice(self._num_users, self._num_users + split.num_users)
        self._offsets[1:][users] = split.offsets[1:] + start
        positions = np.stack([split.train_ends, split.valid_targets, split.test_targets])
        self._splits[:, users] = np.where(positions >= 0, positions + start, -1)
        self._num_users = users.stop

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for array in (self._items, self._weights):
            if array is not None:
                array.close()
        if kind is None:
            np.save(self._directory / OFFSETS_NAME, self._offsets)
            np.save(self._directory / SPLITS_NAME, self._splits)


class _GrowingArray:
    """A ``.npy`` file of one dimension, written in parts.

    Args:
        path: Is opened.
        dtype: Of the elements.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype, self.length = dtype, 0
        self._stream: BinaryIO = path.open("wb")
        self._write_header()

    def add(self, part: npt.NDArray[Any]) -> None:
        """Append elements."""
        self._stream.write(np.ascontiguousarray(part, self._dtype).view(np.uint8).data)
        self.length += len(part)

    def close(self) -> None:
        """Say how many there are, and close the file."""
        with self._stream as stream:
            stream.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        # As long for any number of elements: the format leaves room for it to grow.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
