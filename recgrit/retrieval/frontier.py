"""The children of the nodes that a beam search has reached, and their scores.

The children of a node are a range of node numbers, so their vectors are adjacent in memory. On a
CPU, if there are many scores per node, each node is one matrix product. Otherwise all nodes
together are one sampled product (the dot products of a sparse pattern), which copies no vector. The
sizes of these products depend on the data, and an accelerator would have to synchronise with the
host to know them. On an accelerator, every node therefore has as many candidates as the widest node
of its level, and missing candidates score -inf.

Shapes: B users, W beams, R rows, C children, V nodes, E entries, K candidates, D model dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.ranking import NEVER
from recgrit.retrieval.node_vectors import NodeLookup, NodeTable, look_up
from recgrit.retrieval.ragged_products import sampled_products

# Mean number of scores per node from which one matrix product per node is faster than the sampled
# product.
MIN_SCORES_OF_A_NODE = 1024
# Maximum number of values of node vectors to copy at once: 1 GiB.
MAX_COPIED = 2**28


@dataclass(frozen=True)
class Frontier:
    """The nodes that the beams have reached. Their children are the candidates of the next level.

    Candidate ``beam * width + i`` of a user is child i of that beam's node. If the node has no
    child i, the candidate is missing.

    Shapes: B users, W beams per user.

    Args:
        firsts: First child of each node ``[B, W]``.
        counts: Number of children of each node ``[B, W]``.
        width: Number of candidates per node C, at least the number of children of every node.
        shared: Whether all users have reached the same nodes.
    """

    firsts: Tensor
    counts: Tensor
    width: int
    shared: bool = False

    @classmethod
    def build(
        cls, child_starts: Tensor, nodes: Tensor, width: int | None = None, *, shared: bool = False
    ) -> Frontier:
        """Find the children of the nodes that the beams have reached.

        Shapes: V nodes, B users, W beams per user.

        Args:
            child_starts: First child of each node of the trie ``[V + 1]``.
            nodes: Node of each beam ``[B, W]``.
            width: Upper bound of the number of children of a node. None counts them, which reads a
                number back from an accelerator.
            shared: Whether all rows of ``nodes`` are the same.
        """
        firsts = child_starts[nodes]
        counts = child_starts[nodes + 1] - firsts
        return cls(firsts, counts, max(1, int(counts.max())) if width is None else width, shared)

    @property
    def present(self) -> Tensor:
        """Whether each candidate exists, bool ``[B, W, C]``.

        Shapes: B users, W beams per user, C candidates per beam.
        """
        columns = torch.arange(self.width, device=self.counts.device)
        return columns < self.counts.unsqueeze(-1)

    @property
    def children(self) -> Tensor:
        """Node number of each candidate ``[B, W, C]``; missing candidates have 0, the root.

        Shapes: B users, W beams per user, C candidates per beam.
        """
        columns = torch.arange(self.width, device=self.counts.device)
        return (self.firsts.unsqueeze(-1) + columns).masked_fill_(~self.present, 0)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The first children in ascending order, and the beam of each."""
        found = self.firsts.contiguous().sort(dim=-1)
        return found.values, found.indices

    def find(self, nodes: Tensor) -> Tensor:
        """Return the candidate that each node is, or -1 for a node that is no candidate.

        Shapes: B users, E nodes per user.

        Args:
            nodes: Node numbers ``[B, E]``.

        Returns:
            Candidates, int64 ``[B, E]``.
        """
        firsts, beams = self._sorted
        nodes = nodes.to(firsts.dtype)
        place = (torch.searchsorted(firsts, nodes, right=True) - 1).clamp_min_(0)
        children = nodes - firsts.gather(1, place)
        beams = beams.gather(1, place)
        inside = (children >= 0) & (children < self.counts.gather(1, beams))
        return torch.where(inside, beams * self.width + children, -1)

    def nodes_of(self, candidates: Tensor) -> Tensor:
        """Return the node number of each candidate ``[B, K]``.

        Shapes: B users, K candidates per user.
        """
        beams = candidates // self.width
        return self.firsts.gather(1, beams) + candidates % self.width


def score_children(
    queries: Tensor, firsts: Tensor, counts: Tensor, node_vectors: NodeTable, width: int
) -> Tensor:
    """Return the scores of each query with the children of its node.

    Shapes: R queries, D model dimensions.

    Args:
        queries: Queries ``[R, D]``.
        firsts: First child of each query's node ``[R]``.
        counts: Number of children of each query's node ``[R]``.
        node_vectors: Vectors of all nodes, or an object that computes them on request.
        width: Number of columns C of the result.

    Returns:
        Scores, float32 ``[R, C]``, with -inf after the last child of a node.
    """
    if not isinstance(node_vectors, Tensor):
        firsts, node_vectors = gather_ranges(firsts, counts, node_vectors)
    scores = queries.new_full((len(queries), width), NEVER, dtype=torch.float32)
    ordered, order = firsts.sort(stable=True)
    different, sizes = ordered.unique_consecutive(return_counts=True)
    if int(counts.sum()) >= MIN_SCORES_OF_A_NODE * len(different):
        asked, done = queries[order], 0
        ends = counts[order][sizes.cumsum(0) - 1] + different
        for first, end, size in zip(different.tolist(), ends.tolist(), sizes.tolist(), strict=True):
            rows = slice(done, done + size)
            scores[rows, : end - first] = asked[rows] @ node_vectors[first:end].T
            done += size
        return torch.empty_like(scores).index_copy_(0, order, scores)
    owners, columns, flat = ragged_index(firsts, counts)
    ends = F.pad(counts.long().cumsum(0), (1, 0))
    values = sampled_products(queries, node_vectors, ends, flat)
    return scores.index_put_((owners, columns), values)


def score_in_fixed_shapes(queries: Tensor, frontier: Frontier, node_vectors: NodeTable) -> Tensor:
    """Return the scores of all candidates of a frontier; no shape depends on the data.

    The vectors of all candidates are copied, including missing candidates, for some nodes at a
    time. If all users share their nodes, the vectors are copied once for all users.

    Shapes: B users, W beams per user, D model dimensions, C candidates per beam.

    Args:
        queries: Queries ``[B * W, D]``.
        frontier: Candidates to score.
        node_vectors: Vectors of all nodes, or an object that computes them on request.

    Returns:
        Scores, float32 ``[B * W, C]``, with -inf for missing candidates.
    """
    if frontier.shared:
        nodes = frontier.children[0]
        asked = queries.view(*frontier.counts.shape, -1).transpose(0, 1)
    else:
        nodes = frontier.children.flatten(0, 1)
        asked = queries.unsqueeze(1)
    num_nodes = max(1, MAX_COPIED // (frontier.width * queries.shape[1]))
    scores = [
        torch.bmm(some, look_up(node_vectors, below).transpose(1, 2))
        for some, below in zip(asked.split(num_nodes), nodes.split(num_nodes), strict=True)
    ]
    by_row = torch.cat(scores).transpose(0, 1).reshape(-1, frontier.width).float()
    return by_row.masked_fill_(~frontier.present.flatten(0, 1), NEVER)


def ragged_index(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the row, column and flat position of every entry of ragged slices.

    Slice i has ``counts[i]`` entries and begins at the flat position ``starts[i]``.

    Example:
        >>> [t.tolist() for t in ragged_index(torch.tensor([5, 0]), torch.tensor([2, 1]))]
        [[0, 0, 1], [0, 1, 0], [5, 6, 0]]
    """
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    columns = torch.arange(len(rows), device=counts.device) - before[rows]
    return rows, columns, starts[rows] + columns


def gather_ranges(
    firsts: Tensor, counts: Tensor, node_vectors: NodeLookup
) -> tuple[Tensor, Tensor]:
    """Compute the vectors of ranges of nodes, and those of equal ranges only once.

    Shapes: R ranges.

    Args:
        firsts: First node of each range ``[R]``.
        counts: Number of nodes of each range ``[R]``.
        node_vectors: Object that computes node vectors.

    Returns:
        The start of each range among the vectors ``[R]``, and the vectors.
    """
    different, which = firsts.unique(return_inverse=True)
    sizes = torch.zeros_like(different).scatter_(0, which, counts)
    _, _, nodes = ragged_index(different, sizes)
    return (sizes.cumsum(0) - sizes)[which], node_vectors.of(nodes)
