"""Sets of leaves, one per row: how many of a row's set lie below a node, in two binary searches.

The leaves below a node of the trie are a range, so a set kept in order answers for every node. Such
sets say which items a history holds, and which items a list must not.

Shapes: R rows, E entries, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
