"""Sequences of items, with the end of the training part and the targets of each sequence.

All histories are one flat array of items with offsets, memory-mapped from disk. The history of a
sequence is a slice of this array and never a copy, so memory is linear in the number of
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
# Number of interactions that are processed at a time.
PART_SIZE = 2**22
# Largest number of values that are checked one by one when a split is opened.
MAX_CHECKED = 2**24


@dataclass(frozen=True)
class SequenceSplit:
    """The items of all users in time order, with the targets of validation and test.

    A sequence has at most one target per split. Some protocols evaluate several targets of a user.
    The split then has one more sequence for each such target: a copy of the history that the
    protocol allows, followed by the target. These sequences come after the users' own sequences and
    have no training part. All arrays and methods below use sequence numbers. The first
    ``num_users`` sequences are the users' own, in order, and `owners_of` returns the users of all
    sequences.

    Args:
        items: int32 ``[num_interactions]``, item_idx of all sequences, one sequence after another.
        offsets: int64 ``[num_sequences + 1]``; sequence s is ``items[offsets[s]:offsets[s + 1]]``.
        train_ends: int64 ``[num_sequences]``, position in ``items`` at which the training part
            ends.
        valid_targets: int64 ``[num_sequences]``, position in ``items`` of the validation target, -1
            if there is none.
        test_targets: int64 ``[num_sequences]``, position in ``items`` of the test target, -1 if
            there is none.
        num_items: Number of items in the catalogue.
        owners: int64 ``[num_sequences]``, user_idx of each sequence. None if each user has exactly
            one sequence.
        weights: float32 ``[num_interactions]``, weight of each interaction as a target in the
            training loss. 0 keeps an interaction in histories only. None weighs all alike.
        people: int64 ``[num_sequences]``, user_idx of the training user of each sequence, -1 for an
            unknown user. None if no training user is known. Attributes of users are looked up with
            it.

    Raises:
        DataError: The arrays do not fit together, or a target is not after its training part.
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
                raise DataError(f"A {name} target must come after its sequence's training part.")

    @property
    def num_sequences(self) -> int:
        """Number of sequences: one per user, and one for each further target."""
        return len(self.offsets) - 1

    @property
    def num_users(self) -> int:
        """Number of users, with or without targets."""
        return self.num_sequences if self.owners is None else int(self.owners.max()) + 1

    def owners_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the user_idx of each of these sequences, int64 ``[len(sequences)]``."""
        return sequences if self.owners is None else np.asarray(self.owners[sequences])

    def people_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Return the training user of each sequence by user_idx, int64, -1 for an unknown user.

        The result is None if no training user is known.
        """
        return None if self.people is None else np.asarray(self.people[sequences])

    def with_own_people(self) -> SequenceSplit:
        """Return a copy in which the training user of each sequence is its owner."""
        return replace(self, people=self.owners_of(np.arange(self.num_sequences)))

    @classmethod
    def of_histories(
        cls, items: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], num_items: int
    ) -> SequenceSplit:
        """Build a split of histories without targets, for recommending the next items.

        Args:
            items: int32, item_idx of all histories, one user after another.
            offsets: int64 ``[num_users + 1]``; user u owns ``items[offsets[u]:offsets[u + 1]]``.
            num_items: Number of items in the catalogue.
        """
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
        """Return each sequence's target as a position in ``items``, int64, -1 for no target."""
        return self.valid_targets if split == "valid" else self.test_targets

    def target_users(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the numbers of the sequences that have a target in this split.

        `owners_of` returns the users of these sequences.
        """
        return np.flatnonzero(self.target_positions(split) >= 0)

    def targets(self, split: Split, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the target item of each of these sequences, int32 ``[len(sequences)]``.

        Raises:
            DataError: A sequence has no target in this split.
        """
        return self.items[self._positions_of(split, sequences)]

    def history(self, sequence: int, split: Split) -> npt.NDArray[np.int32]:
        """Return all items before the target of this split.

        The history of the test target includes the validation item.

        Raises:
            DataError: The sequence has no target in this split.
        """
        (end,) = self._positions_of(split, np.array([sequence]))
        return self.items[self.offsets[sequence] : end]

    def repeats(self, split: Split, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether each target occurs in the history before it, bool ``[len(sequences)]``.

        Raises:
            DataError: A sequence has no target in this split.
        """
        starts, ends = np.asarray(self.offsets[sequences]), self._positions_of(split, sequences)
        found = np.zeros(len(sequences), np.bool_)
        # Histories are processed in groups of up to PART_SIZE items. A longer history is a group.
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
        """Return the items of a sequence's training part."""
        return self.items[self.offsets[sequence] : self.train_ends[sequence]]

    def full_sequence(self, sequence: int) -> npt.NDArray[np.int32]:
        """Return all items of a sequence, which are the history for recommending the next item."""
        return self.items[self.offsets[sequence] : self.offsets[sequence + 1]]

    def train_item_counts(self) -> npt.NDArray[np.int64]:
        """Count how often each item occurs in the training histories, int64 ``[num_items]``."""
        counts = np.zeros(self.num_items, np.int64)
        for part, may_be_learned in self._train_parts():
            counts += np.bincount(self.items[part][may_be_learned], minlength=self.num_items)
        return counts

    def train_target_counts(self) -> npt.NDArray[np.int64]:
        """Count how often each item may be a training target, int64 ``[num_items]``."""
        if self.weights is None:
            return self.train_item_counts()
        targets = self.items[self.train_mask() & (self.weights > 0)]
        return np.bincount(targets, minlength=self.num_items)

    def train_pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the distinct pairs of user and item in training histories, as two int64 arrays."""
        sequences = np.repeat(np.arange(len(self.train_ends)), np.diff(self.offsets))
        trained = self.train_mask()
        users = self.owners_of(sequences[trained]).astype(np.int64)
        pairs = np.unique(users * self.num_items + self.items[trained])
        return pairs // self.num_items, pairs % self.num_items

    def train_mask(self) -> npt.NDArray[np.bool_]:
        """Return whether each interaction is in a training part, bool ``[num_interactions]``."""
        mask = np.empty(len(self.items), np.bool_)
        for part, may_be_learned in self._train_parts():
            mask[part] = may_be_learned
        return mask

    def _train_parts(self) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
        """Yield consecutive slices of ``items``, with a mask of the training interactions of each.

        A slice consists of whole sequences. Slices bound the memory of the working arrays.
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
        """Write one ``.npy`` file per array into a folder."""
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
        """Open the split that `save` wrote, memory-mapped.

        Args:
            directory: Folder of the files.
            num_items: Number of items in the catalogue.

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
    """Open the weights of interactions as targets, memory-mapped.

    Raises:
        DataError: The weights are not float32, or some are negative, infinite or NaN. The values of
            more than `MAX_CHECKED` weights are not checked.
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
    """Return the last interaction before each position that may be a target, -1 if there is none.

    All sequences are one array here, so the result may lie in an earlier sequence. The caller has
    to check this.

    Args:
        weights: float32 ``[num_interactions]``, 0 for interactions that may not be a target. None
            if all may be.
        positions: int64, positions from 0 to num_interactions.
    """
    if weights is None:
        return positions - 1
    before = np.full(len(weights) + 1, -1)
    np.maximum.accumulate(np.where(weights > 0, np.arange(len(weights)), -1), out=before[1:])
    return before[positions]


def first_targets_from(
    weights: npt.NDArray[np.float32] | None, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the first interaction at or after each position that may be a target.

    The result is num_interactions if there is none. It may lie in a later sequence, which the
    caller has to check.

    Args:
        weights: float32 ``[num_interactions]``, 0 for interactions that may not be a target. None
            if all may be.
        positions: int64, positions from 0 to num_interactions.
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
    """Raise an error if saved arrays cannot be sequences.

    Raises:
        DataError: Types or shapes are wrong, offsets decrease, or an item is not in the catalogue.
            More than `MAX_CHECKED` items are not checked.
    """
    found = [f"{array.dtype}{list(array.shape)}" for array in (items, offsets, splits)]
    expected = [f"int32[{items.size}]", f"int64[{offsets.size}]", f"int64[3, {offsets.size - 1}]"]
    if found != expected:
        raise DataError(f"The arrays of a split are {found}; expected {expected}.")
    if np.any(np.diff(offsets) < 0):
        raise DataError("Offsets of sequences must not decrease.")
    if 0 < len(items) <= MAX_CHECKED and not 0 <= items.min() <= items.max() < num_items:
        raise DataError(f"Sequences hold items outside the catalogue of {num_items}.")


class SplitWriter:
    """A writer of the files of `SequenceSplit.save`, which gets the split in consecutive parts.

    Args:
        directory: Folder of the files, which are complete when the ``with`` block ends.
        num_users: Number of users of all parts.
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
        """Append the sequences of the next users."""
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
    """A one-dimensional ``.npy`` file that is written in parts.

    Args:
        path: Path of the file, which is opened for writing.
        dtype: Type of the elements.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype, self.length = dtype, 0
        self._stream: BinaryIO = path.open("wb")
        self._write_header()

    def add(self, part: npt.NDArray[Any]) -> None:
        """Append elements to the file."""
        self._stream.write(np.ascontiguousarray(part, self._dtype).view(np.uint8).data)
        self.length += len(part)

    def close(self) -> None:
        """Write the number of elements into the header, and close the file."""
        with self._stream as stream:
            stream.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        # The header has the same length for any number of elements, because the format pads it.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
