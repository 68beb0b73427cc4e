"""Protocols that split sequences into training histories and targets of validation and test.

MiniOneRec's protocol is in `recgrit.data.minionerec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.splits import SequenceSplit, Split, first_targets_from, last_targets_before
from recgrit.errors import DataError


@dataclass(frozen=True)
class Sequences:
    """The interactions of some users, one user after another, each user's in time order.

    Args:
        items: int32 ``[num_interactions]``, item_idx of each interaction.
        times: int64 ``[num_interactions]``, time of each interaction in seconds since 1970.
        offsets: int64 ``[num_users + 1]``; user u owns ``items[offsets[u]:offsets[u + 1]]``.
        num_items: Number of items in the catalogue.
        weights: float32 ``[num_interactions]``, weight of each interaction as a target in the
            training loss. 0 keeps an interaction in histories only. None weighs all alike.
    """

    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    num_items: int
    weights: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        frame: pl.DataFrame,
        num_users: int,
        num_items: int,
        *,
        first_user: int = 0,
        weights: npt.NDArray[np.float32] | None = None,
    ) -> Sequences:
        """Build the sequences of rows that are sorted as in `Interactions`.

        Args:
            frame: Rows with ``user_idx``, ``item_idx`` and ``timestamp``.
            num_users: Number of users of the rows.
            num_items: Number of items in the catalogue.
            first_user: Smallest ``user_idx`` of these users.
            weights: float32 ``[num_interactions]``, as in `Sequences`.
        """
        counts = np.bincount(frame["user_idx"].to_numpy() - first_user, minlength=num_users)
        return cls(
            items=frame["item_idx"].to_numpy(),
            times=frame["timestamp"].to_numpy(),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            num_items=num_items,
            weights=weights,
        )


Protocol = Callable[[Sequences], SequenceSplit]


class Splitter:
    """A protocol that is applied to the users part by part and counts the targets.

    Args:
        protocol: Function that splits the sequences of some users.
        counted: Splits whose targets are counted, each with the label of its count in the funnel.
        held_out: bool ``[num_items]``, True for items that are held out of all training histories.
            None holds out no items.
    """

    def __init__(
        self,
        protocol: Protocol,
        counted: Mapping[Split, str],
        held_out: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._protocol, self._counted, self._held_out = protocol, counted, held_out
        self._num_targets = dict.fromkeys(counted, 0)

    def split(self, sequences: Sequences) -> SequenceSplit:
        """Split the sequences of some users, and add their targets to the counts."""
        split = self._protocol(sequences)
        if self._held_out is not None:
            split = without_items(split, self._held_out)
        for name in self._counted:
            self._num_targets[name] += len(split.target_users(name))
        return split

    def counts(self, num_held_out: int) -> list[tuple[str, int]]:
        """Return labels and numbers for the funnel: targets, and items held out of training.

        Args:
            num_held_out: Number of training interactions with items that are held out.
        """
        found = [(label, self._num_targets[name]) for name, label in self._counted.items()]
        if self._held_out is not None:
            found.append(("items held out of training", int(self._held_out.sum())))
            found.append(("training interactions held out with them", num_held_out))
        return found


def leave_one_out(sequences: Sequences) -> SequenceSplit:
    """Split each user's sequence: the last item for test, the one before for validation.

    All items before the validation item are for training. If some interactions may not be targets,
    the last two that may are chosen. A history holds all interactions before its target. A user who
    lacks a second possible target, or an item before it, has no targets. All items of such a user
    are for training.
    """
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    test = last_targets_before(sequences.weights, ends)
    valid = last_targets_before(sequences.weights, np.maximum(test, 0))
    has_targets = valid > starts
    return SequenceSplit(
        items=sequences.items,
        offsets=sequences.offsets,
        train_ends=np.where(has_targets, valid, ends),
        valid_targets=np.where(has_targets, valid, -1),
        test_targets=np.where(has_targets, test, -1),
        num_items=sequences.num_items,
        weights=sequences.weights,
    )


@dataclass(frozen=True)
class CutOffTimes:
    """The two cut-off times of a temporal split.

    Args:
        valid: Time at which the validation period begins, in seconds since 1970.
        test: Time at which the test period begins, in seconds since 1970.
    """

    valid: int
    test: int


def choose_cut_off_times(
    num_interactions: int, time_of: Callable[[int], int], *, valid_share: float, test_share: float
) -> CutOffTimes:
    """Return the cut-off times whose periods hold about these shares of all interactions.

    Shares are approximate, because interactions at the same time are never separated.

    Args:
        num_interactions: Number of interactions of all users.
        time_of: Function that returns the time of the interaction with a rank in time order, from 0
            for the earliest.
        valid_share: Share of all interactions between the two cut-off times.
        test_share: Share of all interactions from the second cut-off time on.

    Raises:
        DataError: The shares leave nothing for training.
    """
    num_train = int(num_interactions * (1 - valid_share - test_share))
    cut_offs = CutOffTimes(
        valid=time_of(min(num_train, num_interactions - 1)),
        test=time_of(int(num_interactions * (1 - test_share))),
    )
    if cut_offs.valid == time_of(0):
        raise DataError(
            f"The first {1 - valid_share - test_share:.0%} of the interactions all have the same "
            "time, so none is left for training. Use data.split=leave_one_out, or lower "
            "data.valid_share or data.test_share."
        )
    return cut_offs


def split_by_time(sequences: Sequences, cut_offs: CutOffTimes) -> SequenceSplit:
    """Split all users at the same cut-off times: training, then validation, then test.

    A user's target in a period is the user's first interaction there that may be a target and has
    an earlier interaction. Everything that a model learns from happened before every target.
    Leave-one-out does not guarantee this, because one user's training items may be later than
    another user's test item.

    Args:
        sequences: Sequences of some users.
        cut_offs: Cut-off times of validation and test.
    """
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]

    def count_before(time: int) -> npt.NDArray[np.int64]:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sequences.times < time)])
        return np.asarray(before[ends] - before[starts], dtype=np.int64)

    train_ends = starts + count_before(cut_offs.valid)
    valid_ends = starts + count_before(cut_offs.test)
    valid, test = (
        first_targets_from(sequences.weights, np.minimum(np.maximum(from_, starts + 1), ends))
        for from_ in (train_ends, valid_ends)
    )
    return SequenceSplit(
        items=sequences.items,
        offsets=sequences.offsets,
        train_ends=train_ends,
        valid_targets=np.where(valid < valid_ends, valid, -1),
        test_targets=np.where(test < ends, test, -1),
        num_items=sequences.num_items,
        weights=sequences.weights,
    )


def draw_items(num_items: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Draw a random share of the items; returns bool ``[num_items]``, True for drawn items."""
    drawn = np.zeros(num_items, dtype=np.bool_)
    order = np.random.default_rng(seed).permutation(num_items)
    drawn[order[: round(share * num_items)]] = True
    return drawn


def without_items(split: SequenceSplit, held_out: npt.NDArray[np.bool_]) -> SequenceSplit:
    """Remove items from all training histories, to measure recommendation of cold items.

    These items remain in the catalogue and may be targets of validation and test. A user whose
    history becomes empty has no targets.

    Args:
        split: Split of some or all users.
        held_out: bool ``[num_items]``, True for the items to remove.
    """
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
        weights=None if split.weights is None else split.weights[kept],
    )
