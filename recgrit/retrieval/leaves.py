"""Sets and weights of trie leaves, one per row, such as the seen items of each history.

The leaves below a node are a range. If a set of leaves is sorted, two binary searches count its
leaves below any node. In the other direction, only few nodes are above a few leaves. A search
therefore checks these nodes instead of thousands of candidates.

Shapes: R rows, E entries, Q requested ranges, C candidates.
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
    """One set of trie leaves per row, such as the seen items of each user. Each leaf is an item.

    Shapes: R rows, E entries per row.

    Args:
        leaves: Leaves of each row ``[R, E]``, ascending. ``num_leaves`` stands for no leaf.
        num_leaves: Number of leaves of the trie.
    """

    leaves: Tensor
    num_leaves: int

    @classmethod
    def build(cls, leaves: Tensor, present: Tensor, num_leaves: int) -> LeafSets:
        """Build the sets of the ``present`` leaves of each row, each leaf once.

        Shapes: R rows, E entries per row.

        Args:
            leaves: Leaves of each row ``[R, E]``, in any order.
            present: Whether each entry counts, bool ``[R, E]``.
            num_leaves: Number of leaves of the trie.

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
        """Sorted keys of all entries, int64 ``[R * E]``: row times ``num_leaves + 1`` plus leaf.

        Shapes: R rows, E entries per row.
        """
        rows = torch.arange(len(self.leaves), device=self.leaves.device).unsqueeze(-1)
        return (rows * (self.num_leaves + 1) + self.leaves).flatten()

    def count(self, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Count the leaves of a row's set in each range of leaves.

        Shapes: Q requested ranges.

        Args:
            rows: Row of each range ``[Q]``.
            starts: First leaf of each range ``[Q]``.
            ends: Leaf after the last leaf of each range ``[Q]``.

        Returns:
            Counts ``[Q]``.
        """
        first = rows * (self.num_leaves + 1)
        upto: Tensor = torch.searchsorted(self.keys, first + ends)
        return upto - torch.searchsorted(self.keys, first + starts)


@dataclass(frozen=True)
class LeafWeights:
    """Mixture weights and additive bonuses of some items for each user, from neighbours.

    Each leaf of the trie is an item, and each row is a user. All other leaves have weight and bonus
    0.

    Shapes: R rows, E entries per row.

    Args:
        leaves: Leaves of each row ``[R, E]``, ascending. If a leaf is repeated, its first entry has
            its whole weight and bonus, and the others have 0.
        weights: Probability that the neighbours add to each leaf, float64 ``[R, E]``. The model's
            own probabilities are scaled so that all sum to 1.
        bonuses: Additive bonuses in the score, float32 ``[R, E]``, at least 0.
    """

    leaves: Tensor
    weights: Tensor
    bonuses: Tensor

    def mix(self, log_probs: Tensor, columns: Tensor, weights: Tensor, bonuses: Tensor) -> Tensor:
        """Combine a model's log-probabilities of candidates with their mixture weights and bonuses.

        A score is the log of the mixture of the model's and the neighbours' probability, plus the
        bonus. The mixture weight of the model is 1 minus the sum of the row's weights. The score of
        a prefix is never lower than the scores below it, so a search can compare prefixes by score.

        Shapes: R rows, C candidates per row, E entries per row.

        Args:
            log_probs: The model's log-probabilities ``[R, C]``, -inf for missing candidates.
            columns: Candidate of each entry, int64 ``[R, E]``, or -1 for an entry without a
                candidate.
            weights: Mixture weight of each entry ``[R, E]``. At most one entry per candidate is
                above 0.
            bonuses: Additive bonus of each entry ``[R, E]``. At most one entry per candidate is
                above 0.

        Returns:
            Scores, float32 ``[R, C]``.

        Example:
            >>> weights = torch.tensor([[0.1, 0.4]])
            >>> row = LeafWeights(torch.tensor([[0, 2]]), weights, torch.zeros(1, 2))
            >>> log_probs = torch.tensor([[0.4, 0.4, 0.2]]).log()
            >>> row.mix(log_probs, row.leaves, row.weights, row.bonuses).exp()
            tensor([[0.3000, 0.2000, 0.5000]])
        """
        mixed = log_probs + (1 - self.weights.sum(dim=-1, keepdim=True)).log().float()
        at = columns.clamp_min(0)
        # On a CPU, the logarithm of 0 takes ten times as long as that of other numbers.
        logs = weights.float().clamp_min(torch.finfo(torch.float32).tiny).log()
        sums = torch.logaddexp(mixed.gather(1, at), logs) + bonuses
        # Weights and bonuses only raise a score, so the maximum is the new score. Entries without a
        # candidate are -inf and change nothing.
        sums = sums.masked_fill_(columns < 0, float("-inf"))
        return mixed.scatter_reduce_(1, at, sums, "amax")


def merge_runs(keys: Tensor, values: Tensor, *, by: Literal["sum", "amax"] = "sum") -> Tensor:
    """Merge the values of equal keys into one entry per key.

    The last of the entries with a key gets the merged value. The others become 0.

    Shapes: R rows, E entries per row.

    Args:
        keys: Keys ``[R, E]``, ascending in each row.
        values: Values ``[R, E]``, at least 0.
        by: How to merge the values of a key: ``sum`` adds them, ``amax`` takes the largest.

    Example:
        >>> merge_runs(torch.tensor([[1, 3, 3]]), torch.tensor([[4.0, 1.0, 2.0]]))
        tensor([[4., 0., 3.]])
    """
    is_last = F.pad(keys[:, 1:] != keys[:, :-1], (0, 1), value=True)
    # Each run is summed separately. Differences of one running sum would lose small values.
    run = F.pad(is_last[:, :-1].cumsum(dim=-1), (1, 0))
    merged = torch.zeros_like(values).scatter_reduce_(1, run, values, by)
    return torch.where(is_last, merged.gather(1, run), 0.0)


@dataclass(frozen=True)
class NodeSets:
    """One set of trie nodes per row.

    Shapes: R rows, E entries per row.

    Args:
        nodes: Nodes of each row ``[R, E]``, ascending. ``num_nodes`` stands for no node.
        num_nodes: Number of nodes of the trie.
    """

    nodes: Tensor
    num_nodes: int

    @classmethod
    def build(cls, nodes: Tensor, present: Tensor, num_nodes: int) -> NodeSets:
        """Build the sets of the ``present`` nodes of each row. Nodes may be repeated.

        Shapes: R rows, E entries per row.

        Args:
            nodes: Nodes of each row ``[R, E]``, in any order.
            present: Whether each entry counts, bool ``[R, E]``.
            num_nodes: Number of nodes of the trie.

        Example:
            >>> sets = NodeSets.build(torch.tensor([[3, 1]]), torch.tensor([[True, False]]), 4)
            >>> sets.nodes.tolist()
            [[3, 4]]
        """
        return cls(torch.where(present, nodes, num_nodes).sort(dim=-1).values, num_nodes)

    @property
    def is_first(self) -> Tensor:
        """Whether each entry is the first of its node in its row, bool ``[R, E]``.

        Shapes: R rows, E entries per row.
        """
        return F.pad(self.nodes[:, 1:] != self.nodes[:, :-1], (1, 0), value=True)
