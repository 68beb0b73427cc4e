"""Sets and weights of leaves of the trie, one per row: what a history holds, what a list must not.

The leaves below a node of the trie are a range, so leaves kept in order answer for every node: how
many of a set lie below it is two binary searches. The other way round, the nodes above a few leaves
are few, so what a search has to change in thousands of candidates is asked of those nodes alone.

Shapes: R rows, E entries, Q questions, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
    """Weights of some leaves per row; all others weigh nothing.

    Args:
        leaves: ``[R, E]``, ascending in each row.
        weights: float64 ``[R, E]``; of a leaf that stands there repeatedly, the last one's counts.
        boost: Scale of the additive bonus ``boost * log(1 + weight / unit)`` of a score.
        unit: The weight that counts as 1 in the bonus.
    """

    leaves: Tensor
    weights: Tensor
    boost: float = 0.0
    unit: float = 1.0

    def mix(self, log_probs: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
        """Scores by a model's probabilities and these weights, ``[R, C]``.

        A score is the log of their mixture plus the `bonus`. The mixture weight of the model is
        what the weights of a row leave of 1. A prefix never scores less than what comes below it,
        so that a search may go by scores.

        Args:
            log_probs: ``[R, C]``, the model's; -inf for what is no candidate.
            columns: int64 ``[R, E]``, the candidate that each entry belongs to; -1 for none.
            weights: ``[R, E]``, what it gets; no candidate gets more than one.

        Example:
            >>> row = LeafWeights(torch.tensor([[0, 2]]), torch.tensor([[0.1, 0.4]]))
            >>> log_probs = torch.tensor([[0.4, 0.4, 0.2]]).log()
            >>> row.mix(log_probs, row.leaves, row.weights).exp()
            tensor([[0.3000, 0.2000, 0.5000]])
        """
        mixed = log_probs + (1 - self.weights.sum(dim=-1, keepdim=True)).log().float()
        at = columns.clamp_min(0)
        # The logarithm of 0 takes a CPU ten times as long as any other.
        logs = weights.float().clamp_min(torch.finfo(torch.float32).tiny).log()
        sums = torch.logaddexp(mixed.gather(1, at), logs) + self.bonus(weights)
        # A score only grows: the larger one is the new one, and nothing is less than none.
        sums = sums.masked_fill_((columns < 0) | (weights <= 0), float("-inf"))
        return mixed.scatter_reduce_(1, at, sums, "amax")

    def bonus(self, weights: Tensor) -> Tensor:
        """What weights add to the log of the mixture, float32."""
        return self.boost * torch.log1p(weights / self.unit).float()


def merge_runs(keys: Tensor, weights: Tensor) -> Tensor:
    """Weights ``[R, E]`` of keys that ascend in each row: of equal ones, the last has the sum.

    Example:
        >>> merge_runs(torch.tensor([[1, 3, 3]]), torch.tensor([[4.0, 1.0, 2.0]]))
        tensor([[4., 0., 3.]])
    """
    is_last = F.pad(keys[:, 1:] != keys[:, :-1], (0, 1), value=True)
    # Runs are summed apart: differences of one running sum would lose what is small beside others.
    run = F.pad(is_last[:, :-1].cumsum(dim=-1), (1, 0))
    sums = torch.zeros_like(weights).scatter_add_(1, run, weights)
    return torch.where(is_last, sums.gather(1, run), 0.0)


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
            >>> sets.contain(torch.tensor([0, 0, 0]), torch.tensor([1, 3, 0])).tolist()
            [False, True, False]
        """
        return cls(torch.where(present, nodes, num_nodes).sort(dim=-1).values, num_nodes)

    @property
    def is_first(self) -> Tensor:
        """Bool ``[R, E]``, where a node stands in its row for the first time."""
        return F.pad(self.nodes[:, 1:] != self.nodes[:, :-1], (1, 0), value=True)

    @cached_property
    def keys(self) -> Tensor:
        """int64 ``[R * E]``, ascending: row times ``num_nodes + 1`` plus node."""
        rows = torch.arange(len(self.nodes), device=self.nodes.device).unsqueeze(-1)
        return (rows * (self.num_nodes + 1) + self.nodes).flatten()

    def contain(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """Whether each node ``[...]`` is in the set of its row ``[...]``."""
        wanted = rows * (self.num_nodes + 1) + nodes
        found = torch.searchsorted(self.keys, wanted).clamp_max_(len(self.keys) - 1)
        return self.keys[found] == wanted
