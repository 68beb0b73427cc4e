"""Leaves of each row: how many of them, or how much, lies below a node, in two binary searches.

The leaves below a node of the trie are a range, so leaves kept in order answer for every node. Such
sets say which items a history holds and which items a list must not; such weights, which items are
likely for another reason than the model's.

Shapes: R rows, E entries, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.retrieval.ranking import NEVER


@dataclass(frozen=True)
class LeafSets:
    """One set of leaf positions per row.

    Args:
        keys: int64 ``[R * E]``, sorted: row times ``num_leaves + 1`` plus leaf.
        num_leaves: Leaves of the trie; as a leaf, it stands for no leaf.
    """

    keys: Tensor
    num_leaves: int

    @classmethod
    def build(cls, leaves: Tensor, present: Tensor, num_leaves: int) -> LeafSets:
        """Sets from leaves int64 ``[R, E]``, of which those ``present`` bool ``[R, E]`` count once.

        Example:
            >>> sets = LeafSets.build(torch.tensor([[3, 1, 3]]), torch.ones(1, 3).bool(), 4)
            >>> starts, ends = torch.tensor([0, 2]), torch.tensor([4, 4])
            >>> sets.count(torch.tensor([0, 0]), starts, ends).tolist()
            [2, 1]
        """
        leaves = torch.where(present, leaves, num_leaves).sort(dim=-1).values
        repeated = torch.zeros_like(leaves, dtype=torch.bool)
        repeated[:, 1:] = leaves[:, 1:] == leaves[:, :-1]
        leaves = leaves.masked_fill(repeated, num_leaves).sort(dim=-1).values
        rows = torch.arange(len(leaves), device=leaves.device).unsqueeze(-1)
        return cls((rows * (num_leaves + 1) + leaves).flatten(), num_leaves)

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """How many of the leaves ``starts`` to ``ends`` are in the set of each row, ``[Q]``."""
        first = rows * (self.num_leaves + 1)
        upto: Tensor = torch.searchsorted(self.keys, first + ends)
        return upto - torch.searchsorted(self.keys, first + starts)


@dataclass(frozen=True)
class LeafWeights:
    """Weights of some leaves per row; all others weigh nothing.

    Args:
        keys: int64 ``[R * E]``, sorted: row times ``num_leaves + 1`` plus leaf.
        before: float64 ``[R * E + 1]``, sum of the weights before each key.
        totals: float64 ``[R]``, sum of each row.
        num_leaves: Leaves of the trie.
    """

    keys: Tensor
    before: Tensor
    totals: Tensor
    num_leaves: int

    @classmethod
    def build(cls, leaves: Tensor, weights: Tensor, num_leaves: int) -> LeafWeights:
        """Weights from leaves ``[R, E]``, sorted in each row, and weights float64 ``[R, E]``.

        Example:
            >>> weights = torch.tensor([[0.25, 0.0, 0.5]], dtype=torch.float64)
            >>> row = LeafWeights.build(torch.tensor([[1, 3, 3]]), weights, 4)
            >>> row.sum(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([4, 4])).tolist()
            [0.75, 0.5]
        """
        rows = torch.arange(len(leaves), device=leaves.device).unsqueeze(-1)
        keys = (rows * (num_leaves + 1) + leaves).flatten()
        before = F.pad(weights.flatten().cumsum(0), (1, 0))
        return cls(keys, before, weights.sum(dim=-1), num_leaves)

    def sum(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Weight of the leaves ``starts`` to ``ends`` in each row, float64 ``[...]``."""
        first = rows * (self.num_leaves + 1)
        upto = self.before[torch.searchsorted(self.keys, first + ends)]
        # Differences of sums may fall below 0 by rounding.
        return (upto - self.before[torch.searchsorted(self.keys, first + starts)]).clamp_min_(0)

    def mix(self, log_probs: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The log of a model's probabilities and these weights, mixed, ``[R, C]``.

        The model's share is what the weights of a row leave of 1.

        Args:
            log_probs: ``[R, C]``, the model's; -inf for what is no candidate.
            starts: int64 ``[R, C]``, first leaf below each candidate.
            ends: int64 ``[R, C]``, the leaf after the last.
        """
        mixed = log_probs + (1 - self.totals).log().unsqueeze(-1)
        rows, columns = (log_probs != NEVER).nonzero(as_tuple=True)
        added = self.sum(rows, starts[rows, columns], ends[rows, columns])
        touched = (added > 0).nonzero().squeeze(-1)  # Few: most nodes are near nothing.
        rows, columns, added = rows[touched], columns[touched], added[touched].log()
        mixed[rows, columns] = torch.logaddexp(mixed[rows, columns], added)
        return mixed.float()


def merge_leaves(leaves: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the leaves of each row ``[R, E]``; of a repeated leaf, the last has the whole weight.

    Example:
        >>> merge_leaves(torch.tensor([[3, 1, 3]]), torch.tensor([[1.0, 4.0, 2.0]]))
        (tensor([[1, 3, 3]]), tensor([[4., 0., 3.]]))
    """
    leaves, order = leaves.sort(dim=-1)
    upto = weights.gather(-1, order).cumsum(dim=-1)
    is_last = F.pad(leaves[:, 1:] != leaves[:, :-1], (0, 1), value=True)
    # Weights are not negative, so the sum up to the last leaf's end is the largest before.
    before = F.pad(torch.where(is_last, upto, 0.0)[:, :-1], (1, 0)).cummax(dim=-1).values
    return leaves, torch.where(is_last, upto - before, 0.0)


@dataclass(frozen=True)
class NodeSets:
    """One set of nodes per row.

    Args:
        keys: int64 ``[R * E]``, sorted: row times ``num_nodes + 1`` plus node.
        num_nodes: Nodes of the trie; as a node, it stands for no node.
    """

    keys: Tensor
    num_nodes: int

    @classmethod
    def build(cls, nodes: Tensor, present: Tensor, num_nodes: int) -> NodeSets:
        """Sets from nodes int64 ``[R, E]``, of which those ``present`` bool ``[R, E]`` are meant.

        Example:
            >>> sets = NodeSets.build(torch.tensor([[3, 1]]), torch.tensor([[True, False]]), 4)
            >>> sets.contain(torch.tensor([0, 0, 0]), torch.tensor([1, 3, 0])).tolist()
            [False, True, False]
        """
        nodes = torch.where(present, nodes, num_nodes).sort(dim=-1).values
        rows = torch.arange(len(nodes), device=nodes.device).unsqueeze(-1)
        return cls((rows * (num_nodes + 1) + nodes).flatten(), num_nodes)

    def contain(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """Whether each node ``[...]`` is in the set of its row ``[...]``."""
        wanted = rows * (self.num_nodes + 1) + nodes
        found = torch.searchsorted(self.keys, wanted).clamp_max_(len(self.keys) - 1)
        return self.keys[found] == wanted
