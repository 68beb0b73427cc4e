"""Sets and weights of leaves of the trie, one per row: what a history holds, what a list must not.

The leaves below a node of the trie are a range, so leaves kept in order answer for every node: how
many of a set lie below it is two binary searches. The other way round, the nodes above a few leaves
are few, so what a search has to change in thousands of candidates is asked of those nodes alone.

Shapes: R rows, E entries, Q questions, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LeafSets:
    """One set of leaf positions per row.

    Args:
        leaves: ``[R, E]``, ascending in each row; ``num_leaves`` stands for no leaf.
        num_leaves: Leaves of the trie.
    """

    leaves: Tensor
    num_leaves: int

    @classmethod
    def build(cls, leaves: Tensor, present: Tensor, num_leaves: int) -> LeafSets:
        """Sets from leaves ``[R, E]``, of which those ``present`` bool ``[R, E]`` count once.

        Example:
            >>> sets = LeafSets.build(torch.tensor([[3, 1, 3]]), torch.ones(1, 3).bool(), 4)
            >>> starts, ends = torch.tensor([0, 2]), torch.tensor([4, 4])
            >>> sets.count(torch.tensor([0, 0]), starts, ends).tolist()
            [2, 1]
        """
        leaves = torch.where(present, leaves, num_leaves).sort(dim=-1).values
        repeated = torch.zeros_like(leaves, dtype=torch.bool)
        repeated[:, 1:] = leaves[:, 1:] == leaves[:, :-1]
        return cls(leaves.masked_fill(repeated, num_leaves).sort(dim=-1).values, num_leaves)

    @cached_property
    def keys(self) -> Tensor:
        """int64 ``[R * E]``, ascending: row times ``num_leaves + 1`` plus leaf."""
        rows = torch.arange(len(self.leaves), device=self.leaves.device).unsqueeze(-1)
        return (rows * (self.num_leaves + 1) + self.leaves).flatten()

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """How many of the leaves ``starts`` to ``ends`` are in the set of each row, ``[Q]``."""
        first = rows * (self.num_leaves + 1)
        upto: Tensor = torch.searchsorted(self.keys, first + ends)
        return upto - torch.searchsorted(self.keys, first + starts)


@dataclass(frozen=True)
class LeafWeights:
    """What some leaves per row are given beside a model; all others are given nothing.

    Args:
        leaves: ``[R, E]``, ascending in each row; of equal ones the first has all that is given.
        weights: float64 ``[R, E]``, parts of the probability.
        bonuses: float32 ``[R, E]``, added to scores, at least 0.
    """

    leaves: Tensor
    weights: Tensor
    bonuses: Tensor

    def mix(self, log_probs: Tensor, columns: Tensor, weights: Tensor, bonuses: Tensor) -> Tensor:
        """Scores by a model's probabilities and what is given, ``[R, C]``.

        A score is the log of the mixture of both probabilities, plus the bonus. The mixture weight
        of the model is what the weights of a row leave of 1. A prefix never scores less than what
        comes below it, so that a search may go by scores.

        Args:
            log_probs: ``[R, C]``, the model's; -inf for what is no candidate.
            columns: int64 ``[R, E]``, the candidate that each entry belongs to; -1 for none.
            weights: ``[R, E]``, what it gets; no candidate gets more than one.
            bonuses: ``[R, E]``, likewise.

        Example:
            >>> weights = torch.tensor([[0.1, 0.4]])
            >>> row = LeafWeights(torch.tensor([[0, 2]]), weights, torch.zeros(1, 2))
            >>> log_probs = torch.tensor([[0.4, 0.4, 0.2]]).log()
            >>> row.mix(log_probs, row.leaves, row.weights, row.bonuses).exp()
            tensor([[0.3000, 0.2000, 0.5000]])
        """
        mixed = log_probs + (1 - self.weights.sum(dim=-1, keepdim=True)).log().float()
        at = columns.clamp_min(0)
        # The logarithm of 0 takes a CPU ten times as long as any other.
        logs = weights.float().clamp_min(torch.finfo(torch.float32).tiny).log()
        sums = torch.logaddexp(mixed.gather(1, at), logs) + bonuses
        # A score only grows: the larger one is the new one, and nothing is less than none.
        sums = sums.masked_fill_(columns < 0, float("-inf"))
        return mixed.scatter_reduce_(1, at, sums, "amax")


def merge_runs(keys: Tensor, values: Tensor, *, by: Literal["sum", "amax"] = "sum") -> Tensor:
    """Values ``[R, E]`` of keys that ascend in each row: of equal keys, the last has it all.

    Args:
        keys: ``[R, E]``.
        values: At least 0.
        by: The sum of a run's values, or the largest.

    Example:
        >>> merge_runs(torch.tensor([[1, 3, 3]]), torch.tensor([[4.0, 1.0, 2.0]]))
        tensor([[4., 0., 3.]])
    """
    is_last = F.pad(keys[:, 1:] != keys[:, :-1], (0, 1), value=True)
    # Runs are summed apart: differences of one running sum would lose what is small beside others.
    run = F.pad(is_last[:, :-1].cumsum(dim=-1), (1, 0))
    merged = torch.zeros_like(values).scatter_reduce_(1, run, values, by)
    return torch.where(is_last, merged.gather(1, run), 0.0)


@dataclass(frozen=True)
class NodeSets:
    """One set of nodes per row.

    Args:
        nodes: ``[R, E]``, ascending in each row; ``num_nodes`` stands for no node.
        num_nodes: Nodes of the trie.
    """

    nodes: Tensor
    num_nodes: int

    @classmethod
    def build(cls, nodes: Tensor, present: Tensor, num_nodes: int) -> NodeSets:
        """Sets from nodes ``[R, E]``, of which those ``present`` bool ``[R, E]`` are meant.

        Example:
            >>> sets = NodeSets.build(torch.tensor([[3, 1]]), torch.tensor([[True, False]]), 4)
            >>> sets.nodes.tolist()
            [[3, 4]]
        """
        return cls(torch.where(present, nodes, num_nodes).sort(dim=-1).values, num_nodes)

    @property
    def is_first(self) -> Tensor:
        """Bool ``[R, E]``, where a node stands in its row for the first time."""
        return F.pad(self.nodes[:, 1:] != self.nodes[:, :-1], (1, 0), value=True)
