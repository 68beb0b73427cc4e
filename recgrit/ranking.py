"""The interfaces of models: ranking items after a batch of histories, and learning from a batch.

Recommending, validation and evaluation use a model only as a `Ranker`, so baselines and the
retriever are measured by the same code.

Shapes: B users, T history items, K listed items, N items of the catalogue, M targets, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError
from recgrit.progress import track

NEVER = float("-inf")
CPU = torch.device("cpu")
# Bounds on memory while all items are scored: users in a batch, and scores in a batch.
MAX_SCORED_USERS = 256
MAX_SCORES = 2**26
# Bounds on memory in a batch: history items including padding, and listed items.
MAX_PADDED = 2**21
MAX_LISTED = 2**16
# Users whose lists are held in memory at once when lists for all users are made.
SHARD_USERS = 65_536

History = Split | Literal["all"]


@dataclass(frozen=True)
class Histories:
    """A batch of user histories, oldest item first.

    Args:
        items: item_idx of each history item, int64 ``[B, T]``, padded at the end with any item.
        lengths: Number of items of each history, int64 ``[B]``.
        users: user_idx of each user, int64 ``[B]``, and -1 for users that the model was not trained
            with. None if no user is known.
    """

    items: Tensor
    lengths: Tensor
    users: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """Return a mask of the items, bool ``[B, T]``, which is false at padding."""
        positions = torch.arange(self.items.shape[1], device=self.items.device)
        return positions < self.lengths.unsqueeze(-1)

    def to(self, device: torch.device) -> Histories:
        """Return the histories on another device."""
        users = None if self.users is None else self.users.to(device)
        return Histories(self.items.to(device), self.lengths.to(device), users)

    @property
    def ends(self) -> Tensor:
        """Return the position of the last item of each history, int64 ``[B]``."""
        return (self.lengths - 1).clamp_min(0)

    def take_last(self, values: Tensor) -> Tensor:
        """Return the value at the last item of each history, ``[B, ...]``.

        Args:
            values: Values at all positions, ``[B, T, ...]``.
        """
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return values[rows, self.ends]


@dataclass(frozen=True)
class Ranked:
    """The best items of a batch of users.

    Args:
        items: item_idx of the listed items, int64 ``[B, K]``, best first. `NO_ITEM` fills the end
            of a list if fewer than K items are allowed.
        scores: Score of each listed item, float32 ``[B, K]``, and -inf at `NO_ITEM`.
    """

    items: Tensor
    scores: Tensor


class Ranker(Protocol):
    """A trained model that can rank items after histories."""

    @property
    def history_length(self) -> int:
        """Return the number of last items of a history that the model reads."""

    @property
    def batch_users(self) -> int:
        """Return the number of users that are ranked at once, which bounds the memory."""

    @property
    def device(self) -> torch.device:
        """Return the device on which `rank` expects histories."""

    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the best items after these histories.

        Args:
            histories: Histories that the model reads.
            top_k: Number of items to list per user, K.
            excluded: Items that must not be listed, one row per user. None excludes no item.
        """


def rank_scores(
    scores: Tensor, *, top_k: int, excluded: Histories | None, allowed: Tensor | None = None
) -> Ranked:
    """Return the best items by their scores.

    Args:
        scores: Score of every item, ``[B, N]``.
        top_k: Number of items to list per user, K. If the catalogue has fewer items, lists are
            shorter.
        excluded: Items that must not be listed, one row per user. None excludes no item.
        allowed: Items that may be listed, bool ``[N]``. None allows all items.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, NEVER)
    if excluded is not None:
        # Padding is written to an extra column, which is removed, so that it excludes no item.
        index = excluded.items.masked_fill(~excluded.present, scores.shape[1])
        extra = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
        scores = extra.scatter(1, index, NEVER)[:, :-1]
    best = scores.topk(min(top_k, scores.shape[1]), dim=-1)
    return Ranked(best.indices.masked_fill(best.values == NEVER, NO_ITEM), best.values)


class ScoreRanker:
    """A `Ranker` that ranks by a function that scores all items.

    Args:
        score: Function from histories to scores of all items, float32 ``[B, N]``.
        num_items: Number of items in the catalogue, N.
        history_length: Number of last items of a history that ``score`` reads.
        device: Device on which ``score`` expects histories.
        allowed: Items that may be listed, bool ``[N]``. None allows all items.
    """

    def __init__(
        self,
        score: Callable[[Histories], Tensor],
        *,
        num_items: int,
        history_length: int,
        device: torch.device = CPU,
        allowed: Tensor | None = None,
    ) -> None:
        require_items(allowed)
        self.score = score
        self.history_length = history_length
        # The number of users in a batch bounds the memory of the scores [B, N].
        self.batch_users = max(1, min(MAX_SCORED_USERS, MAX_SCORES // num_items))
        self.device = device
        self.allowed = None if allowed is None else allowed.to(device)

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the best items after these histories.

        Args:
            histories: Histories that ``score`` reads.
            top_k: Number of items to list per user, K. If the catalogue has fewer items, lists are
                shorter.
            excluded: Items that must not be listed, one row per user, such as all items that the
                user interacted with. None excludes no item.
        """
        scores = self.score(histories)
        return rank_scores(scores, top_k=top_k, excluded=excluded, allowed=self.allowed)


def require_items(allowed: Tensor | None) -> None:
    """Refuse a filter that leaves no item to recommend.

    Args:
        allowed: Items that may be listed, bool ``[N]``. None allows all items.

    Raises:
        DataError: No item is allowed.
    """
    if allowed is not None and not allowed.any():
        raise DataError(
            "No item may be recommended: all are filtered out. Allow more items, or block fewer."
        )


def last_items(
    split_items: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    history_length: int,
    users: npt.NDArray[np.int64] | None = None,
) -> Histories:
    """Return the last items of each history as a padded batch.

    Args:
        split_items: item_idx of all interactions, one history after another.
        starts: Position in ``split_items`` at which each history starts, ``[B]``.
        ends: Position in ``split_items`` after the last item of each history, ``[B]``.
        history_length: Largest number of items to return per history.
        users: user_idx of each history, ``[B]``. None if no user is known.
    """
    lengths = np.minimum(ends - starts, history_length)
    positions = np.arange(max(1, int(lengths.max(initial=1))))
    inside = positions < lengths[:, None]
    index = np.where(inside, (ends - lengths)[:, None] + positions, 0)
    items = np.where(inside, split_items[index], 0).astype(np.int64)
    return Histories(
        torch.from_numpy(items),
        torch.from_numpy(lengths),
        None if users is None else torch.from_numpy(users),
    )


def items_once(
    split_items: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    num_items: int,
) -> Histories:
    """Return the distinct items of each history in ascending order, as a padded batch.

    A row is never longer than the catalogue, even if a user repeats items many times.

    Args:
        split_items: item_idx of all interactions, one history after another.
        starts: Position in ``split_items`` at which each history starts, ``[B]``.
        ends: Position in ``split_items`` after the last item of each history, ``[B]``.
        num_items: Number of items in the catalogue, N.
    """
    lengths = ends - starts
    rows = np.repeat(np.arange(len(starts)), lengths)
    inside = np.arange(len(rows)) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)
    rows, items = np.divmod(np.unique(rows * num_items + split_items[inside]), num_items)
    counts = np.bincount(rows, minlength=len(starts))
    padded = np.zeros((len(starts), max(1, int(counts.max(initial=1)))), dtype=np.int64)
    padded[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = items
    return Histories(torch.from_numpy(padded), torch.from_numpy(counts))


@torch.inference_mode()
def recommend_items(
    ranker: Ranker,
    split: SequenceSplit,
    history: History,
    users: npt.NDArray[np.int64],
    *,
    top_k: int,
    masked: bool,
) -> Recommendations:
    """Return the best items for some users of a split.

    Args:
        ranker: Trained model.
        split: Sequences that the histories are read from.
        history: Part of each sequence to read. "valid" and "test" read the items before that
            target, and "all" reads all items.
        users: Indices of the sequences to make lists for, one per list.
        top_k: Number of items to list per user.
        masked: Filter seen items out of the lists, including those that are too old to be read.

    Raises:
        DataError: A user has no history to start from.
    """
    ends = split.offsets[1:] if history == "all" else split.target_positions(history)
    starts, ends = np.asarray(split.offsets[:-1][users]), np.asarray(ends[users])
    if np.any(ends <= starts):
        raise DataError(f"{np.sum(ends <= starts)} users have no history to recommend from.")
    items = np.full((len(users), top_k), NO_ITEM, dtype=np.int32)
    scores = np.full((len(users), top_k), -np.inf, dtype=np.float32)
    lengths = ends - starts
    # Users with histories of similar length share a batch, which keeps padding small.
    order = np.argsort(lengths, kind="stable")
    longest = lengths if masked else np.minimum(lengths, ranker.history_length)
    batch_users = max(1, min(ranker.batch_users, MAX_LISTED // top_k))
    batches = _plan_batches(order, longest[order], batch_users)
    for rows in track(batches, f"recommend {history}", len(batches)):
        people = split.people_of(users[rows])
        read = last_items(split.items, starts[rows], ends[rows], ranker.history_length, people)
        excluded = None
        if masked:
            excluded = items_once(split.items, starts[rows], ends[rows], split.num_items)
            excluded = excluded.to(ranker.device)
        ranked = ranker.rank(read.to(ranker.device), top_k=top_k, excluded=excluded)
        found = ranked.items.shape[1]
        items[rows, :found] = ranked.items.cpu().numpy()
        scores[rows, :found] = ranked.scores.cpu().numpy()
    return Recommendations(users=users, items=items, scores=scores)


def _plan_batches(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_users: int
) -> list[npt.NDArray[np.int64]]:
    """Split users into batches whose padded histories fit into memory.

    Args:
        order: Users by ascending length of their history.
        lengths: Number of items that are read of each history, ascending.
        batch_users: Largest number of users in a batch.
    """
    batches, start = [], 0
    while start < len(order):
        rising = lengths[start : start + batch_users]
        padded = rising * np.arange(1, len(rising) + 1)
        size = max(1, int(np.searchsorted(padded, MAX_PADDED, side="right")))
        batches.append(order[start : start + size])
        start += size
    return batches


def recommend_shards(
    ranker: Ranker,
    split: SequenceSplit,
    users: npt.NDArray[np.int64],
    *,
    top_k: int,
    masked: bool,
    shard_users: int = SHARD_USERS,
) -> Iterator[Recommendations]:
    """Yield lists after the users' whole histories, one shard of users at a time.

    Memory does not grow with the number of users.

    Args:
        ranker: Trained model.
        split: Sequences that the histories are read from.
        users: Indices of the sequences to make lists for, one per list.
        top_k: Number of items to list per user.
        masked: Filter seen items out of the lists.
        shard_users: Number of users in a shard.
    """
    for start in range(0, len(users), shard_users):
        yield recommend_items(
            ranker, split, "all", users[start : start + shard_users], top_k=top_k, masked=masked
        )


@dataclass(frozen=True)
class Batch:
    """A training batch: histories, and the target that follows each supervised position.

    Args:
        histories: item_idx of each history item, int64 ``[B, T]``, padded at the end with any item.
        positions: Supervised positions in the flattened histories, int64 ``[M]``, ascending.
        targets: item_idx of the item that follows each supervised position, int64 ``[M]``.
        weights: Weight of each target in the loss, float32 ``[M]``, with mean 1 over all training
            targets. None weights all targets equally.
        people: user_idx of each history, int64 ``[B]``. None if no user is known.
    """

    histories: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor | None = None
    people: Tensor | None = None

    @property
    def num_targets(self) -> int:
        """Return the number of targets, M."""
        return len(self.targets)

    @property
    def users(self) -> Tensor:
        """Return the row in ``histories`` of each target's history, int64 ``[M]``."""
        return self.positions // self.histories.shape[1]

    @property
    def ends(self) -> Tensor:
        """Return the position of each target's last history item in its row, int64 ``[M]``."""
        return self.positions % self.histories.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(
            send(self.histories, device),
            send(self.positions, device),
            send(self.targets, device),
            None if self.weights is None else send(self.weights, device),
            None if self.people is None else send(self.people, device),
        )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on another device; a copy to a GPU does not block the host."""
    if tensor.is_cpu and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class TrainingLoss:
    """The loss of one batch.

    Args:
        value: Scalar loss: mean over the targets of -log P(target) times the target's weight.
        level_accuracy: Share of targets at each level, ``[L]``, whose code got the best score,
            given the right prefix. A model that chooses among all items at once has one level.
    """

    value: Tensor
    level_accuracy: Tensor


@runtime_checkable
class KeepsInStep(Protocol):
    """A sequence model whose forward pass communicates between processes.

    All processes have to make the same number of forward passes, or they wait for each other
    forever.
    """

    def stand_idle(self) -> None:
        """Do the communication of a forward pass in which this process has no targets."""


class Plan(Protocol):
    """A batch, and everything else that the host prepares for a training step on it."""

    def to(self, device: torch.device) -> Plan:
        """Return the plan on another device."""
        ...


class SequenceModel(Protocol):
    """A torch module that the training loop can train on histories."""

    def loss(self, plan: Any) -> TrainingLoss:
        """Return the loss of a batch.

        Args:
            plan: A `Batch`, or what `PlansSteps.plan` made of it.
        """
        ...


@runtime_checkable
class PlansSteps(Protocol):
    """A sequence model that prepares each training step on the host."""

    def plan(self, batch: Batch) -> Plan:
        """Return what `SequenceModel.loss` needs for a batch, computed and kept on the host."""
        ...
