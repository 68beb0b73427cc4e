"""Per-user sequences and the splits over them.

All histories are one flat array of items plus offsets, memory-mapped from disk: a user's history
for any split is a slice, never a copy, and memory stays linear in the number of interactions.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from recgrit.data.interactions import Interactions
from recgrit.errors import DataError

Split = Literal["valid", "test"]

# A user needs a target in valid and in test, and at least one earlier item as history.
MIN_SEQUENCE_LENGTH = 3
OWNERS_NAME = "sequence_owners.npy"


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
        return np.bincount(self.items[self.train_mask()], minlength=self.num_items)

    def train_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each interaction may be learned from: bool [num_interactions]."""
        ends = np.repeat(self.train_ends, np.diff(self.offsets))
        return np.arange(len(self.items)) < ends

    def save(self, directory: Path) -> None:
        """Write one ``.npy`` file per array."""
        np.save(directory / "sequence_items.npy", self.items)
        np.save(directory / "sequence_offsets.npy", self.offsets)
        np.save(
            directory / "sequence_splits.npy",
            np.stack([self.train_ends, self.valid_targets, self.test_targets]),
        )
        if self.owners is not None:
            np.save(directory / OWNERS_NAME, self.owners)

    @classmethod
    def load(cls, directory: Path, num_items: int) -> SequenceSplit:
        """Memory-map what `save` wrote."""
        train_ends, valid_targets, test_targets = np.load(
            directory / "sequence_splits.npy", mmap_mode="r"
        )
        owners = directory / OWNERS_NAME
        return cls(
            items=np.load(directory / "sequence_items.npy", mmap_mode="r"),
            offsets=np.load(directory / "sequence_offsets.npy", mmap_mode="r"),
            train_ends=train_ends,
            valid_targets=valid_targets,
            test_targets=test_targets,
            num_items=num_items,
            owners=np.load(owners, mmap_mode="r") if owners.is_file() else None,
            is_checked=True,
        )


def build_leave_one_out(interactions: Interactions) -> SequenceSplit:
    """Last item of each user for test, last but one for validation, the rest for training.

    Users with fewer than three items have no targets: all their items are for training.
    """
    offsets = sequence_offsets(interactions)
    counts = np.diff(offsets)
    ends = offsets[1:]
    has_targets = counts >= MIN_SEQUENCE_LENGTH
    return SequenceSplit(
        items=interactions.frame["item_idx"].to_numpy().astype(np.int32, copy=False),
        offsets=offsets,
        train_ends=np.where(has_targets, ends - 2, ends),
        valid_targets=np.where(has_targets, ends - 2, -1),
        test_targets=np.where(has_targets, ends - 1, -1),
        num_items=interactions.num_items,
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
    offsets = sequence_offsets(interactions)
    ordered = np.sort(times)
    num_train = int(len(times) * (1 - valid_share - test_share))
    num_before_test = int(len(times) * (1 - test_share))
    first_valid, first_test = ordered[min(num_train, len(times) - 1)], ordered[num_before_test]
    if first_valid == ordered[0]:
        raise DataError(
            f"No interaction lies before the {1 - valid_share - test_share:.0%} mark in time: "
            "all is one moment. Use data.split=leave_one_out, or lower the shares."
        )
    starts, ends = offsets[:-1], offsets[1:]

    def count_before(moment: int) -> npt.NDArray[np.int64]:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(times < moment)])
        return np.asarray(before[ends] - before[starts], dtype=np.int64)

    train_ends, valid_ends = starts + count_before(first_valid), starts + count_before(first_test)
    valid, test = np.maximum(train_ends, starts + 1), np.maximum(valid_ends, starts + 1)
    return SequenceSplit(
        items=interactions.frame["item_idx"].to_numpy().astype(np.int32, copy=False),
        offsets=offsets,
        train_ends=train_ends,
        valid_targets=np.where(valid < valid_ends, valid, -1),
        test_targets=np.where(test < ends, test, -1),
        num_items=interactions.num_items,
    )


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
    held_out = np.zeros(split.num_items, dtype=np.bool_)
    drawn = np.random.default_rng(seed).permutation(split.num_items)
    held_out[drawn[: round(share * split.num_items)]] = True
    kept = ~(split.train_mask() & held_out[split.items])
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    offsets, train_ends = before[split.offsets], before[split.train_ends]
    has_history = train_ends > offsets[:-1]

    def move(targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where((targets >= 0) & has_history, before[np.maximum(targets, 0)], -1)

    left = SequenceSplit(
        items=split.items[kept],
        offsets=offsets,
        train_ends=train_ends,
        valid_targets=move(split.valid_targets),
        test_targets=move(split.test_targets),
        num_items=split.num_items,
    )
    return HeldOut(left, held_out)
