"""The protocols by which sequences are split into what is learned and what is asked.

MiniOneRec's is in `recgrit.data.minionerec`.
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
        items: int32 [num_interactions], the item_idx.
        times: int64 [num_interactions], in seconds.
        offsets: int64 [num_users + 1]; user u owns ``items[offsets[u]:offsets[u + 1]]``.
        num_items: Size of the catalogue.
        weights: float32 [num_interactions], what each counts as a target, 0 for history only; None
            where all count alike.
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
        """Those of rows as in `Interactions`, whose users are numbered from ``first_user`` on."""
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
    """A protocol, applied to some users after others.

    Args:
        protocol: Splits the sequences of some users.
        counted: What to call the number of targets in each split that is to be counted.
        held_out: bool [num_items], the items to keep out of all training parts; None for none.
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
        """The split of these users, and count its targets."""
        split = self._protocol(sequences)
        for name in self._counted:
            self._num_targets[name] += len(split.target_users(name))
        return split if self._held_out is None else without_items(split, self._held_out)

    def counts(self, num_held_out: int) -> list[tuple[str, int]]:
        """What there is to count, by name; given how many interactions were held out."""
        found = [(label, self._num_targets[name]) for name, label in self._counted.items()]
        if self._held_out is not None:
            found.append(("items held out of training", int(self._held_out.sum())))
            found.append(("training interactions held out with them", num_held_out))
        return found


def leave_one_out(sequences: Sequences) -> SequenceSplit:
    """Last item of each user for test, last but one for validation, what is before for training.

    Of the items that may be targets: a history holds all that came before its target. Users without
    two of them, the first with an item before it, have no targets: all their items are for
    training.
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
    """Where a temporal split cuts the time: the first of validation, and the first of test."""

    valid: int
    test: int


def choose_cut_off_times(
    num_interactions: int, time_of: Callable[[int], int], *, valid_share: float, test_share: float
) -> CutOffTimes:
    """The cut-off times that leave about these shares behind them.

    Args:
        num_interactions: Of all users.
        time_of: The time of a rank, from 0 for the earliest.
        valid_share: Share of all interactions between the cut-off times, about: what happened at
            once stays together.
        test_share: Share of all interactions from the second cut-off time on.

    Raises:
        DataError: The shares leave nothing to train on.
    """
    num_train = int(num_interactions * (1 - valid_share - test_share))
    cut_offs = CutOffTimes(
        valid=time_of(min(num_train, num_interactions - 1)),
        test=time_of(int(num_interactions * (1 - test_share))),
    )
    if cut_offs.valid == time_of(0):
        raise DataError(
            f"No interaction lies before the {1 - valid_share - test_share:.0%} mark in time: "
            "all happened at once. Use data.split=leave_one_out, or lower the shares."
        )
    return cut_offs


def split_by_time(sequences: Sequences, cut_offs: CutOffTimes) -> SequenceSplit:
    """Training before the first cut-off time of all users, validation between, test after.

    A user's target in a period is the first interaction there that may be one and has one before
    it. Nothing a
    model learns from happened after any target it is tested on, which leave-one-out does not
    promise: there, one user's training may lie after another's test.
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
    """A random share of the items: bool [num_items]."""
    drawn = np.zeros(num_items, dtype=np.bool_)
    order = np.random.default_rng(seed).permutation(num_items)
    drawn[order[: round(share * num_items)]] = True
    return drawn


def without_items(split: SequenceSplit, held_out: npt.NDArray[np.bool_]) -> SequenceSplit:
    """Take items out of all training parts, to measure a cold start.

    They are targets of validation and test still, and part of the catalogue. A user who is left
    without a history has no targets.

    Args:
        split: Of some users or all.
        held_out: bool [num_items], the items.
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
