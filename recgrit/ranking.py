"""What every model here can do: rank items after histories, a batch of them at a time.

Recommending, validation and evaluation ask no more of a model than a `Ranker`, so that baselines
are read by the same code as the retriever.

Shapes: B users, T history items, K listed items, N items.
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
# Users whose scores of all items are held at once, and scores held at once.
MAX_SCORED_USERS = 256
MAX_SCORES = 2**26
# Items of histories that are held at once, padding included, and items of lists.
MAX_PADDED = 2**21
MAX_LISTED = 2**16
# Users whose lists are held at once when a whole user base is served.
SHARD_USERS = 65_536

History = Split | Literal["all"]


@dataclass(frozen=True)
class Histories:
    """Some users' items, oldest first.

    Args:
        items: int64 ``[B, T]``, padded at the end with any item.
        lengths: int64 ``[B]``.
        users: int64 ``[B]``, the user_idx of those whom the model was trained with, -1 of others;
            None where nobody knows.
    """

    items: Tensor
    lengths: Tensor
    users: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """Bool ``[B, T]``, false where there is padding."""
        positions = torch.arange(self.items.shape[1], device=self.items.device)
        return positions < self.lengths.unsqueeze(-1)

    def to(self, device: torch.device) -> Histories:
        """The same on another device."""
        users = None if self.users is None else self.users.to(device)
        return Histories(self.items.to(device), self.lengths.to(device), users)

    @property
    def ends(self) -> Tensor:
        """The position of the last item of each history, int64 ``[B]``."""
        return (self.lengths - 1).clamp_min(0)

    def take_last(self, values: Tensor) -> Tensor:
        """Of values ``[B, T, ...]``, the one at the end of each history, ``[B, ...]``."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return values[rows, self.ends]


@dataclass(frozen=True)
class Ranked:
    """The best items of some users.

    Args:
        items: int64 ``[B, K]``, best first; `NO_ITEM` where fewer than K are allowed.
        scores: float32 ``[B, K]``; -inf where there is no item.
    """

    items: Tensor
    scores: Tensor


class Ranker(Protocol):
    """A trained model, ready to rank."""

    @property
    def history_length(self) -> int:
        """Items of a history that are read, the last ones."""

    @property
    def batch_users(self) -> int:
        """Users ranked at once: bounds memory."""

    @property
    def device(self) -> torch.device:
        """Where histories are wanted."""

    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories.

        Args:
            histories: What is read.
            top_k: K.
            excluded: Items to keep out, one row per user; None for none.
        """


def rank_scores(
    scores: Tensor, *, top_k: int, excluded: Histories | None, allowed: Tensor | None = None
) -> Ranked:
    """The best items by scores of all items.

    Args:
        scores: ``[B, N]``.
        top_k: K; lists are shorter where there are fewer items.
        excluded: Items to keep out.
        allowed: bool ``[N]``, items that may be listed; None for all.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, NEVER)
    if excluded is not None:
        # One extra column takes the padding, which stands for no item.
        index = excluded.items.masked_fill(~excluded.present, scores.shape[1])
        extra = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
        scores = extra.scatter(1, index, NEVER)[:, :-1]
    best = scores.topk(min(top_k, scores.shape[1]), dim=-1)
    return Ranked(best.indices.masked_fill(best.values == NEVER, NO_ITEM), best.values)


class ScoreRanker:
    """Ranks items by a function that scores all of them.

    Args:
        score: Scores float32 ``[B, N]`` after some histories.
        num_items: N.
        history_length: Items of a history that are read, the last ones.
        device: Where ``score`` wants its histories.
        allowed: bool ``[N]``, items that may be listed; None for all.
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
        # Bounds the table of scores.
        self.batch_users = max(1, min(MAX_SCORED_USERS, MAX_SCORES // num_items))
        self.device = device
        self.allowed = None if allowed is None else allowed.to(device)

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        scores = self.score(histories)
        return rank_scores(scores, top_k=top_k, excluded=excluded, allowed=self.allowed)


def require_items(allowed: Tensor | None) -> None:
    """Refuse a filter that leaves no item.

    Raises:
        DataError: No item is allowed.
    """
    if allowed is not None and not allowed.any():
        raise DataError("No item of the catalogue may be recommended: all are filtered out.")


def last_items(
    split_items: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    history_length: int,
    users: npt.NDArray[np.int64] | None = None,
) -> Histories:
    """The last items of each slice, at most ``history_length``, and the user of each slice."""
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
    """The different items of slices, in ascending order.

    A row is never longer than the catalogue, however often its items come again.
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
    """The best items of these users.

    Args:
        ranker: A trained model.
        split: Whose sequences to read.
        history: "valid" and "test" read what comes before that target, "all" everything.
        users: user_idx of each list.
        top_k: Longest list.
        masked: Keep out the items of the whole history, also of what is too old to be read.

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
    # Users with histories of like length together: little padding.
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
    """Users in batches, few where their histories are very long.

    Args:
        order: Users by rising length.
        lengths: Of what is read of each, rising.
        batch_users: Most users of a batch.
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
    """`recommend_items` after all that these users interacted with, some users at a time.

    Memory does not grow with their number.
    """
    for start in range(0, len(users), shard_users):
        yield recommend_items(
            ranker, split, "all", users[start : start + shard_users], top_k=top_k, masked=masked
        )


@dataclass(frozen=True)
class Batch:
    """Histories to learn from, and the items that follow some of their positions.

    Args:
        histories: int64 ``[B, T]``, padded at the end with any item.
        positions: int64 ``[M]``, the supervised positions of the flattened histories, ascending.
        targets: int64 ``[M]``, the item that follows each.
        weights: float32 ``[M]``, what each counts in the loss, 1 in the mean over all training
            targets; None where all count alike.
        people: int64 ``[B]``, the user_idx of each history; None where nobody knows.
    """

    histories: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor | None = None
    people: Tensor | None = None

    @property
    def num_targets(self) -> int:
        """M."""
        return len(self.targets)

    @property
    def users(self) -> Tensor:
        """The history of each target, int64 ``[M]``."""
        return self.positions // self.histories.shape[1]

    @property
    def ends(self) -> Tensor:
        """The position of each target in its history, int64 ``[M]``."""
        return self.positions % self.histories.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            send(self.histories, device),
            send(self.positions, device),
            send(self.targets, device),
            None if self.weights is None else send(self.weights, device),
            None if self.people is None else send(self.people, device),
        )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; the host goes on while it is copied to a GPU."""
    if tensor.is_cpu and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class TrainingLoss:
    """Loss of one batch.

    Args:
        value: Scalar, mean of -log P(target), times its weight, over the supervised positions.
        level_accuracy: ``[L]``, share of positions whose right child scored best, given the right
            prefix; one level for a model that chooses among all items at once.
    """

    value: Tensor
    level_accuracy: Tensor


@runtime_checkable
class KeepsInStep(Protocol):
    """A sequence model whose forward passes have to be as many on every process."""

    def stand_idle(self) -> None:
        """What a forward pass of no targets leaves behind."""


class Plan(Protocol):
    """A batch, and whatever else of it is found out on the host before a step."""

    def to(self, device: torch.device) -> Plan:
        """The same on another device."""
        ...


class SequenceModel(Protocol):
    """What the loop asks of a model, beside being a module."""

    def loss(self, plan: Any) -> TrainingLoss:
        """Loss of a `Batch`, or of what `PlansSteps` made of it."""
        ...


@runtime_checkable
class PlansSteps(Protocol):
    """A sequence model that finds out on the host what a step needs."""

    def plan(self, batch: Batch) -> Plan:
        """What `SequenceModel.loss` is to be given of a batch, both on the host."""
        ...
