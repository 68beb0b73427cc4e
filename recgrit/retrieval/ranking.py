"""What every model here can do: rank items after histories, a batch of them at a time.

Recommending, validation and evaluation ask no more of a model than a `Ranker`, so that baselines
are read by the same code as the retriever.

Shapes: B users, T history items, K listed items, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM

NEVER = float("-inf")


@dataclass(frozen=True)
class Histories:
    """Some users' items, oldest first.

    Args:
        items: int64 ``[B, T]``, padded at the end with any item.
        lengths: int64 ``[B]``.
    """

    items: Tensor
    lengths: Tensor

    @property
    def present(self) -> Tensor:
        """Bool ``[B, T]``, false where there is padding."""
        positions = torch.arange(self.items.shape[1], device=self.items.device)
        return positions < self.lengths.unsqueeze(-1)

    def to(self, device: torch.device) -> Histories:
        """The same on another device."""
        return Histories(self.items.to(device), self.lengths.to(device))

    def take_last(self, states: Tensor) -> Tensor:
        """Of states ``[B, T, D]``, the one at the end of each history, ``[B, D]``."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return states[rows, self.lengths - 1]


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
