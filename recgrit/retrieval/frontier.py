"""The children of the nodes that beams stand at: where they are, and their scores.

The children of a node are a range of node numbers, so their vectors lie side by side. On a CPU,
nodes at which many beams stand are one matrix product each, all others together one sampled product
(the dot products of a sparse pattern), which reads each vector once and copies none. How many there
are of each depends on what was computed, which an accelerator would have to be waited for: there
every node has as many candidates as the widest of its level, and those that are none score -inf.

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

# With so many scores a node, a matrix product of its own beats a part of the sampled one.
MIN_SCORES_OF_A_NODE = 1024
# Numbers of node vectors that are copied at once: 1 GiB.
MAX_COPIED = 2**28


@dataclass(frozen=True)
class Frontier:
    """The nodes that beams stand at; their children, side by side, are the candidates.

    Candidate ``beam * width + i`` of a user is child i of the node of that beam; those behind a
    node's last child are none.

    Args:
        firsts: ``[B, W]``, the first child of each node.
        counts: ``[B, W]``, how many children it has.
        width: C, at least the most children of any node here.
        shared: All users stand at the same nodes.
    """

    firsts: Tensor
    counts: Tensor
    width: int
    shared: bool = False

    @classmethod
    def build(
        cls, child_starts: Tensor, nodes: Tensor, width: int | None = None, *, shared: bool = False
    ) -> Frontier:
        """The children of nodes ``[B, W]`` of a trie with these ``child_starts``.

        Args:
            child_starts: Of the trie.
            nodes: ``[B, W]``.
            width: No node here has more children; None to find out, which reads a number back.
            shared: All rows of ``nodes`` are the same.
        """
        firsts = child_starts[nodes]
        counts = child_starts[nodes + 1] - firsts
        return cls(firsts, counts, max(1, int(counts.max())) if width is None else width, shared)

    @property
    def present(self) -> Tensor:
        """Bool ``[B, W, C]``, which candidates there are."""
        columns = torch.arange(self.width, device=self.counts.device)
        return columns < self.counts.unsqueeze(-1)

    @property
    def children(self) -> Tensor:
        """The nodes that all candidates are, ``[B, W, C]``; the root where there is none."""
        columns = torch.arange(self.width, device=self.counts.device)
        return (self.firsts.unsqueeze(-1) + columns).masked_fill_(~self.present, 0)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The first children in ascending order, and the beams that they belong to."""
        found = self.firsts.contiguous().sort(dim=-1)
        return found.values, found.indices

    def find(self, nodes: Tensor) -> Tensor:
        """Which candidates nodes ``[B, E]`` are, int64 ``[B, E]``; -1 for those that are none."""
        firsts, beams = self._sorted
        nodes = nodes.to(firsts.dtype)
        place = (torch.searchsorted(firsts, nodes, right=True) - 1).clamp_min_(0)
        children = nodes - firsts.gather(1, place)
        beams = beams.gather(1, place)
        inside = (children >= 0) & (children < self.counts.gather(1, beams))
        return torch.where(inside, beams * self.width + children, -1)

    def nodes_of(self, candidates: Tensor) -> Tensor:
        """The nodes that candidates ``[B, K]`` are."""
        beams = candidates // self.width
        return self.firsts.gather(1, beams) + candidates % self.width


def score_children(
    queries: Tensor, firsts: Tensor, counts: Tensor, node_vectors: NodeTable, width: int
) -> Tensor:
    """Scores of ranges of nodes by queries ``[R, D]``, ``[R, C]``; -inf behind a range's end."""
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
    """As `score_children`, of all candidates of a frontier: no shape depends on what was computed.

    Vectors are copied, those of some nodes at a time, also of candidates there are not; once for
    all users where these share their nodes.
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
    """Row, column and flat position of every entry of ragged slices ``starts[i] + 0 … counts[i]``.

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
    """The vectors of ranges of nodes, equal ranges once, and where each range starts among them."""
    different, which = firsts.unique(return_inverse=True)
    sizes = torch.zeros_like(different).scatter_(0, which, counts)
    _, _, nodes = ragged_index(different, sizes)
    return (sizes.cumsum(0) - sizes)[which], node_vectors.of(nodes)
