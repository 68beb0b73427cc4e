"""Vectors of the nodes of a trie, and how callers look them up.

A node vector is made of parts, see `recgrit.retrieval.model`. Where every node has an embedding of
its own, the vectors of all nodes are made at once: their table is as large as the embeddings are.
Where nodes share the rows of a smaller table (`recgrit.retrieval.buckets`), that would bring back
what the smaller table saves, so only the vectors of the nodes that are asked for are made.

Shapes: V nodes, N items, U nodes asked for, D model dimensions, F content features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.retrieval.buckets import assign_buckets, check_buckets
from recgrit.semantic_ids.trie import Trie


class NodeLookup(Protocol):
    """Whatever knows the vectors of nodes."""

    def of(self, nodes: Tensor) -> Tensor:
        """``[..., D]`` of nodes ``[...]``."""


# The vectors of all nodes, ``[V, D]``, or what makes them as they are asked for.
NodeTable = Tensor | NodeLookup


def look_up(table: NodeTable, nodes: Tensor) -> Tensor:
    """Vectors ``[..., D]`` of nodes ``[...]``."""
    return F.embedding(nodes, table) if isinstance(table, Tensor) else table.of(nodes)


@dataclass(frozen=True)
class AskedVectors:
    """Vectors of some nodes; others must not be asked for.

    Args:
        nodes: int32 ``[U]``, ascending, each once.
        vectors: ``[U, D]``.
    """

    nodes: Tensor
    vectors: Tensor

    def of(self, nodes: Tensor) -> Tensor:
        """``[..., D]`` of nodes ``[...]``."""
        return F.embedding(torch.searchsorted(self.nodes, nodes.contiguous()), self.vectors)


class NodeVectors(nn.Module):
    """Vectors of all nodes of a trie.

    Args:
        trie: The trie of the whole catalogue.
        codebook_sizes: Of each level.
        disambiguation_level: The level without a code embedding, if there is one.
        own_nodes: bool ``[V]``, the nodes with an embedding of their own; the others use the
            fallback.
        content: float32 ``[N, F]`` item features to project into the vectors, None for none.
        known_items: bool ``[N]``, the catalogue in training: a node above any of them has the mean
            content of those alone, lest its vector move when items are added.
        dim: D.
        node_dropout: Fraction of embeddings that the fallback replaces in a training step.
        num_buckets: Rows of the table of node embeddings, which nodes share then; None for a row
            per node.

    Raises:
        ConfigError: Siblings would share a row.
    """

    def __init__(
        self,
        trie: Trie,
        codebook_sizes: tuple[int, ...],
        *,
        disambiguation_level: int | None,
        own_nodes: Tensor,
        content: Tensor | None,
        known_items: Tensor,
        dim: int,
        node_dropout: float,
        num_buckets: int | None = None,
    ) -> None:
        super().__init__()
        self.node_dropout = node_dropout
        self.num_buckets = num_buckets
        levels, code_rows, code_starts, num_code_rows = _code_rows(
            trie, codebook_sizes, disambiguation_level
        )
        self.codebook_sizes = codebook_sizes
        # First row of each level's codes, None where codes mean nothing.
        self.code_starts = code_starts
        self.code_embedding = nn.Embedding(num_code_rows, dim)
        # A row per node stands in the order of the trie: it keeps its meaning when items are added.
        self.node_embedding = nn.Embedding(num_buckets or int(own_nodes.sum()), dim)
        self.fallback = nn.Embedding(trie.num_levels + 1, dim)
        for table in (self.code_embedding, self.node_embedding, self.fallback):
            nn.init.normal_(table.weight, std=0.02)
        self.node_levels: Tensor
        self.code_rows: Tensor
        self.own_nodes: Tensor
        self.node_rows: Tensor
        self.node_content: Tensor
        # Derived from the ID table, so not in the checkpoint.
        self.register_buffer("node_levels", levels, persistent=False)
        self.register_buffer("code_rows", code_rows, persistent=False)
        if num_buckets is None:
            self.register_buffer("own_nodes", own_nodes.nonzero().squeeze(-1), persistent=False)
        else:
            check_buckets(
                num_buckets,
                _codes_to_tell_apart(trie, own_nodes, codebook_sizes, disambiguation_level),
            )
            buckets = torch.from_numpy(assign_buckets(trie, num_buckets))
            # Rows of the fallbacks follow those of the buckets, as `table` joins them.
            rows = torch.where(own_nodes, buckets, num_buckets + levels)
            self.register_buffer("node_rows", rows, persistent=False)
        self.content_projection: nn.Linear | None = None
        if content is not None:
            self.register_buffer(
                "node_content", _mean_content(trie, content, known_items), persistent=False
            )
            self.content_projection = nn.Linear(content.shape[1], dim, bias=False)
            nn.init.normal_(self.content_projection.weight, std=0.02)

    def forward(self, dropped: Tensor | None = None) -> Tensor:
        """Vectors of all nodes, ``[V, D]``.

        Args:
            dropped: bool, for which rows of the table of node embeddings the fallback stands in,
                as `draw_dropped` returns.
        """
        if self.num_buckets is not None:
            nodes = torch.arange(len(self.node_levels), device=self.node_levels.device)
            return self.of(nodes, dropped)
        fallback = self.fallback(self.node_levels)
        own = self.node_embedding.weight
        if dropped is not None:
            own = torch.where(dropped.unsqueeze(-1), fallback[self.own_nodes], own)
        vectors: Tensor = fallback.index_copy(0, self.own_nodes, own)
        vectors = vectors + self.code_embedding(self.code_rows)
        if self.content_projection is not None:
            vectors = vectors + self.content_projection(self.node_content)
        return vectors

    def of(self, nodes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Vectors ``[..., D]`` of nodes ``[...]`` that share buckets; as `forward` has them."""
        rows = self.node_rows[nodes]
        is_own = rows < len(self.node_embedding.weight)
        rows = torch.where(is_own, rows, 0)
        if dropped is not None:
            is_own = is_own & ~dropped[rows]
        fallback = self.fallback(self.node_levels[nodes])
        own = torch.where(is_own.unsqueeze(-1), self.node_embedding(rows), fallback)
        return self.add_content(own + self.code_embedding(self.code_rows[nodes]), nodes)

    def add_content(self, vectors: Tensor, nodes: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of nodes ``[...]`` with what their content adds, if it does."""
        if self.content_projection is None:
            return vectors
        projected: Tensor = self.content_projection(self.node_content[nodes])
        return vectors + projected

    def table(self) -> NodeTable:
        """The vectors for ranking, as the weights are now."""
        if self.num_buckets is None:
            vectors: Tensor = self()
            return vectors
        tables = (self.node_embedding, self.fallback, self.code_embedding)
        return BucketVectors(torch.cat([table.weight for table in tables]), self)

    def vectors_of_codes(self, level: int) -> Tensor:
        """What a node with each code of a level has without an embedding of its own, ``[K, D]``."""
        fallback: Tensor = self.fallback.weight[level + 1]
        start, size = self.code_starts[level], self.codebook_sizes[level]
        if start is None:
            return (fallback + self.code_embedding.weight[0]).expand(size, -1)
        return fallback + self.code_embedding.weight[start : start + size]

    def draw_dropped(self) -> Tensor | None:
        """The embeddings to drop in one training step, by row; None outside training."""
        if not self.training or self.node_dropout == 0.0:
            return None
        weight = self.node_embedding.weight
        draws = torch.rand(len(weight), device=weight.device)
        return draws < self.node_dropout


@dataclass(frozen=True)
class BucketVectors:
    """Vectors of nodes that share buckets, for ranking: made in one pass over one table.

    Args:
        weights: ``[-1, D]``, the node embeddings, the fallbacks and the code embeddings.
        nodes: Whose they are.
    """

    weights: Tensor
    nodes: NodeVectors

    def of(self, nodes: Tensor) -> Tensor:
        """``[..., D]`` of nodes ``[...]``."""
        first_code = len(self.weights) - len(self.nodes.code_embedding.weight)
        parts = torch.stack(
            [self.nodes.node_rows[nodes], first_code + self.nodes.code_rows[nodes]], dim=-1
        )
        # Sums of two rows, several times faster than two look-ups and an addition.
        sums = F.embedding_bag(parts.view(-1, 2), self.weights, mode="sum")
        return self.nodes.add_content(sums.view(*nodes.shape, self.weights.shape[1]), nodes)


def _code_rows(
    trie: Trie, codebook_sizes: tuple[int, ...], disambiguation_level: int | None
) -> tuple[Tensor, Tensor, list[int | None], int]:
    """Level of each node, its row in the table of code embeddings, each level's first row, rows.

    Row 0 belongs to no code: the root has it, and each node of a disambiguation level.
    """
    levels = torch.zeros(trie.num_nodes, dtype=torch.int32)
    rows = torch.zeros(trie.num_nodes, dtype=torch.int32)
    node_codes = torch.from_numpy(trie.node_codes)
    starts: list[int | None] = []
    offset = 1
    for level, size in enumerate(codebook_sizes):
        nodes = slice(int(trie.level_starts[level + 1]), int(trie.level_starts[level + 2]))
        levels[nodes] = level + 1
        starts.append(None if level == disambiguation_level else offset)
        if level != disambiguation_level:
            rows[nodes] = offset + node_codes[nodes]
            offset += size
    return levels, rows, starts, offset


def _codes_to_tell_apart(
    trie: Trie,
    own_nodes: Tensor,
    codebook_sizes: tuple[int, ...],
    disambiguation_level: int | None,
) -> list[int]:
    """Codes of each level that nodes with an embedding can have.

    Items that are added lengthen a disambiguation level, but by nodes without an embedding.
    """
    sizes = list(codebook_sizes)
    if disambiguation_level is not None:
        first, end = trie.level_starts[disambiguation_level + 1 : disambiguation_level + 3]
        codes = torch.from_numpy(trie.node_codes)[first:end][own_nodes[first:end]]
        sizes[disambiguation_level] = 1 + int(codes.max()) if len(codes) else 0
    return sizes


def count_below(trie: Trie, items: Tensor) -> Tensor:
    """How many of these items are below each node, int64 ``[V]``."""
    upto = F.pad(items[torch.from_numpy(trie.leaf_items)].long().cumsum(0), (1, 0))
    return upto[torch.from_numpy(trie.leaf_ends)] - upto[torch.from_numpy(trie.leaf_starts)]


def _mean_content(trie: Trie, content: Tensor, known_items: Tensor) -> Tensor:
    """Mean features of the known items below each node, or of all where none is known."""
    leaves = torch.from_numpy(trie.leaf_items)
    starts, ends = torch.from_numpy(trie.leaf_starts), torch.from_numpy(trie.leaf_ends)

    def mean_of(items: Tensor, counts: Tensor) -> Tensor:
        ordered = content[leaves].double() * items[leaves].unsqueeze(-1)
        sums = torch.cat([ordered.new_zeros(1, ordered.shape[1]), ordered.cumsum(dim=0)])
        return ((sums[ends] - sums[starts]) / counts.clamp_min(1).unsqueeze(-1)).float()

    num_known = count_below(trie, known_items)
    means = mean_of(known_items, num_known)
    if known_items.all():
        return means
    return torch.where((num_known > 0).unsqueeze(-1), means, mean_of(~known_items, ends - starts))


def choose_own_nodes(
    trie: Trie, train_items: Tensor, known_items: Tensor, which: Literal["all", "shared", "none"]
) -> Tensor:
    """The nodes with an embedding of their own, bool ``[V]``: training has to reach them.

    Items added since training change none of it, so that the embeddings stay where they belong.
    """
    own = torch.zeros(trie.num_nodes, dtype=torch.bool)
    if which != "none":
        own[torch.from_numpy(trie.paths)[train_items].flatten()] = True
    if which == "shared":
        own &= count_below(trie, known_items) > 1
    return own
