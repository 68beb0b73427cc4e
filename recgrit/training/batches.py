"""Training batches: every interaction but a user's first is a target exactly once.

Where events have types, those that are predicted are targets, and the others stand in the histories
alone.

Long histories become overlapping windows; the loss skips the overlap, whose positions serve as
context only. Windows of like length share a batch and a batch has about as many targets as asked,
so that little of the work is spent on padding. Each of several processes plans the same batches
and reads its own windows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recgrit import distributed
from recgrit.data.splits import SequenceSplit, last_targets_before
from recgrit.ranking import Batch


@dataclass(frozen=True)
class Windows:
    """Slices of ``SequenceSplit.items`` to train on.

    Args:
        starts: int64 ``[W]``, first history item of each window.
        lengths: int64 ``[W]``, history items; the targets are one further on.
        first_targets: int64 ``[W]``, first position within the window that may be supervised.
        counts: int64 ``[W]``, supervised positions of each window, at least one.
        sequences: int64 ``[W]``, the row of the split that each is of.
        mean_weight: Of all supervised positions; None where they count alike.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    first_targets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    sequences: npt.NDArray[np.int64]
    mean_weight: float | None = None

    @property
    def num_targets(self) -> int:
        """Supervised positions in all windows."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class TrainingStep:
    """What one step of the optimizer learns from.

    Args:
        parts: This process's windows, in parts; none where there are fewer windows than processes.
        num_targets: Supervised positions of all processes.
    """

    parts: list[Batch]
    num_targets: int


def build_windows(split: SequenceSplit, history_length: int) -> Windows:
    """Cut all training parts into windows of at most ``history_length`` history items.

    Windows of one user advance by half their length: each target has at least half a window of
    context, where the user has it.
    """
    stride = max(1, history_length // 2)
    pairs = np.maximum(split.train_ends - split.offsets[:-1] - 1, 0)
    # One window, and one more for each stride begun behind its end.
    num_more = -(-np.maximum(pairs - history_length, 0) // stride)
    num_windows = np.where(pairs > 0, 1 + num_more, 0)
    user = np.repeat(np.arange(len(pairs)), num_windows)
    place = np.arange(len(user)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    begins = place * stride
    starts = split.offsets[:-1][user] + begins
    lengths = np.minimum(history_length, pairs[user] - begins)
    first_targets = np.where(place > 0, history_length - stride, 0)
    if split.weights is None:
        return Windows(starts, lengths, first_targets, lengths - first_targets, user)
    # To the last target, without windows that have none.
    lengths = last_targets_before(split.weights, starts + lengths + 1) - starts
    kept = lengths > first_targets
    starts, lengths, first_targets = starts[kept], lengths[kept], first_targets[kept]
    num_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(split.weights > 0)])
    return Windows(
        starts,
        lengths,
        first_targets,
        counts=num_before[starts + lengths + 1] - num_before[starts + first_targets + 1],
        sequences=user[kept],
        mean_weight=_mean_weight(split),
    )


def _mean_weight(split: SequenceSplit) -> float | None:
    """The mean weight of all that is supervised; None where all weigh the same."""
    assert split.weights is not None
    supervised = split.train_mask()
    starts = split.offsets[:-1]
    supervised[starts[starts < len(supervised)]] = False
    weights = split.weights[supervised]
    weights = weights[weights > 0]
    if not len(weights) or weights.min() == weights.max():
        return None
    return float(weights.mean(dtype=np.float64))


def iterate_steps(
    split: SequenceSplit,
    windows: Windows,
    *,
    batch_targets: int,
    num_parts: int = 1,
    generator: np.random.Generator,
) -> Iterator[TrainingStep]:
    """One epoch of batches in random order, each of about ``batch_targets`` targets.

    Each comes in up to ``num_parts`` parts of like size, of which only one need be held at once.
    """
    for chosen in plan_batches(windows, batch_targets=batch_targets, generator=generator):
        # They are sorted by length: taking turns, all processes have as much to do.
        mine = chosen[distributed.process_index() :: distributed.world_size()]
        parts = np.array_split(mine, min(num_parts, len(mine))) if len(mine) else []
        batches = [collate(split, windows, part) for part in parts]
        yield TrainingStep(batches, num_targets=int(windows.counts[chosen].sum()))


def plan_batches(
    windows: Windows, *, batch_targets: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Window numbers of each batch.

    Windows are sorted by length with random ties, cut where the targets are enough, and the
    batches shuffled.
    """
    order = np.lexsort([generator.random(len(windows.lengths)), windows.lengths])
    batch_of = (np.cumsum(windows.counts[order]) - 1) // batch_targets
    cuts = np.flatnonzero(np.diff(batch_of)) + 1
    batches = np.split(order, cuts)
    return [batches[i] for i in generator.permutation(len(batches))]


def collate(split: SequenceSplit, windows: Windows, chosen: npt.NDArray[np.int64]) -> Batch:
    """The batch of these windows, padded at the end with item 0."""
    lengths = windows.lengths[chosen]
    positions = np.arange(lengths.max())
    inside = positions < lengths[:, None]
    index = np.where(inside, windows.starts[chosen][:, None] + positions, 0)
    histories = np.where(inside, split.items[index], 0)
    supervised = np.flatnonzero(inside & (positions >= windows.first_targets[chosen][:, None]))
    targets, weights = index.reshape(-1)[supervised] + 1, None
    if split.weights is not None:
        wanted = split.weights[targets] > 0
        supervised, targets = supervised[wanted], targets[wanted]
        if windows.mean_weight is not None:
            weights = torch.from_numpy(split.weights[targets] / np.float32(windows.mean_weight))
    people = split.people_of(windows.sequences[chosen])
    return Batch(
        torch.from_numpy(histories.astype(np.int64)),
        torch.from_numpy(supervised),
        torch.from_numpy(split.items[targets].astype(np.int64)),
        weights,
        None if people is None else torch.from_numpy(people),
    )
