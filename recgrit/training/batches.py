"""Training batches, in which every interaction except a user's first is a target exactly once.

If events have types, only interactions of the predicted types are targets. The others occur in the
histories only.

A long history is cut into overlapping windows. The overlap of a window serves as context, and the
loss skips it. Windows of similar length share a batch, so that little work is spent on padding.
Each batch has about the requested number of targets. With several processes, each plans the same
batches and reads its own windows of them.

Shapes: W windows.
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
    """The windows of a split's training histories, as slices of ``SequenceSplit.items``.

    The target of a position is the item after it. A position is supervised if its target is part of
    the loss.

    Args:
        starts: Index of the first history item of each window, int64 ``[W]``.
        lengths: Number of history items of each window, int64 ``[W]``.
        first_targets: First position within each window that may be supervised, int64 ``[W]``.
            Earlier positions are context.
        counts: Number of supervised positions of each window, at least one, int64 ``[W]``.
        sequences: Row of the split that each window belongs to, int64 ``[W]``.
        mean_weight: Mean weight of all supervised positions. None if they have equal weights.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    first_targets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    sequences: npt.NDArray[np.int64]
    mean_weight: float | None = None

    @property
    def num_targets(self) -> int:
        """Number of supervised positions in all windows."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class TrainingStep:
    """The data of one optimizer step in this process.

    Args:
        parts: Batches of this process's windows, one per part of the step. Empty if the step has
            fewer windows than there are processes and none is left for this one.
        num_targets: Number of targets of the step in all processes.
    """

    parts: list[Batch]
    num_targets: int


def build_windows(split: SequenceSplit, history_length: int) -> Windows:
    """Cut all training histories into windows of at most ``history_length`` history items.

    The windows of one user advance by half of ``history_length``. Each target therefore has at
    least half a window of context, if the user's history is that long.

    Args:
        split: Sequences of the users.
        history_length: Largest number of history items of a window.
    """
    stride = max(1, history_length // 2)
    pairs = np.maximum(split.train_ends - split.offsets[:-1] - 1, 0)
    # The first window covers history_length pairs. Each further window covers up to one stride.
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
    # Each window ends at its last target, and windows without a target are dropped.
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
    """Return the mean weight of all supervised positions; None if all weights are equal."""
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
    """Yield the optimizer steps of one epoch in random order.

    Args:
        split: Sequences of the users.
        windows: Windows of the split's training histories.
        batch_targets: Approximate number of targets of a step, over all processes.
        num_parts: Number of parts of similar size that a step is split into. A step with fewer
            windows has fewer parts.
        generator: Random generator for the order of the windows and steps.
    """
    for chosen in plan_batches(windows, batch_targets=batch_targets, generator=generator):
        # The windows are sorted by length. Dealing them out in turn gives all processes the same
        # amount of work.
        mine = chosen[distributed.process_index() :: distributed.world_size()]
        parts = np.array_split(mine, min(num_parts, len(mine))) if len(mine) else []
        batches = [collate(split, windows, part) for part in parts]
        yield TrainingStep(batches, num_targets=int(windows.counts[chosen].sum()))


def plan_batches(
    windows: Windows, *, batch_targets: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Return the windows of each batch of one epoch, as arrays of window numbers.

    The windows are sorted by length, with ties in random order, and cut into batches of about
    ``batch_targets`` targets. The batches are then shuffled.

    Args:
        windows: Windows of the training histories.
        batch_targets: Approximate number of targets of a batch.
        generator: Random generator for ties and for the order of the batches.
    """
    order = np.lexsort([generator.random(len(windows.lengths)), windows.lengths])
    batch_of = (np.cumsum(windows.counts[order]) - 1) // batch_targets
    cuts = np.flatnonzero(np.diff(batch_of)) + 1
    batches = np.split(order, cuts)
    return [batches[i] for i in generator.permutation(len(batches))]


def collate(split: SequenceSplit, windows: Windows, chosen: npt.NDArray[np.int64]) -> Batch:
    """Return the batch of some windows, with histories padded at the end with item 0.

    Args:
        split: Sequences of the users.
        windows: Windows of the split's training histories.
        chosen: Numbers of the windows of this batch, int64.
    """
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
