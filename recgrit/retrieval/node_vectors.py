"""Vectors of the nodes of a trie, and how callers look them up.

A node vector is made of parts, see `recgrit.retrieval.model`. Where every node has an embedding of
its own, the vectors of all nodes are made at once: their table is as large as the embeddings are.
Where none has, or nodes share the rows of a smaller table (`recgrit.retrieval.buckets`), a table of
a large catalogue would bring back what is saved, so only the vectors of the nodes that are asked
for are made.

Shapes: V nodes, N items, L levels of an ID, S nodes of one item, U nodes asked for, D model
dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.retrieval.buckets import assign_buckets, check_buckets
from recgrit.semantic_ids.trie import Trie

# Which nodes have an embedding of their own, see `recgrit.retrieval.model.TrieRetriever`.
Size = Literal["catalogue", "prefixes", "constant"]
# Numbers in the largest table of vectors that is made at once where none has to be: 256 MiB.
MAX_AT_ONCE = 2**26


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
        trie: The trie of the whole catalogue, of ``num_tree_levels`` codes of each ID; one more
            level, if it has one, leads to the items.
        codes: int32 ``[N, L]``, the whole IDs.
        codebook_sizes: K of each level of an ID.
        disambiguation_level: The level without a code embedding, if there is one.
        num_tree_levels: Levels of the trie whose nodes are codes.
        own_nodes: bool ``[V]``, the nodes with an embedding of their own; the others use the
            fallback.
        lone_items: int32 ``[V]``, the item of each node that is the first to lead to it alone, from
            `find_lone_items`: all codes that are left of its ID are part of the node's vector.
        dim: D.
        node_dropout: Fraction of embeddings that the fallback replaces in a training step.
        num_buckets: Rows of the table of node embeddings, which nodes share then, or 0 for no
            table; None for a row per node.

    Raises:
        ConfigError: Siblings would share a row.
    """

    node_levels: Tensor
    code_rows: Tensor
    item_rows: Tensor
    lone_items: Tensor
    lone_nodes: Tensor
    rest_rows: Tensor
    own_nodes: Tensor
    node_rows: Tensor

    def __init__(
        self,
        trie: Trie,
        codes: npt.NDArray[np.int32],
        codebook_sizes: tuple[int, ...],
        *,
        disambiguation_level: int | None,
        num_tree_levels: int,
        own_nodes: Tensor,
        lone_items: Tensor,
        dim: int,
        node_dropout: float,
        num_buckets: int | None = None,
    ) -> None:
        super().__init__()
        self.node_dropout = node_dropout
        self.num_buckets = num_buckets
        self.num_tree_levels = num_tree_levels
        self.codebook_sizes = codebook_sizes
        # First row of each level's codes, None where codes mean nothing. Row 0 is of no code.
        self.code_starts, num_code_rows = _code_starts(codebook_sizes, disambiguation_level)
        self.code_embedding = nn.Embedding(num_code_rows, dim, padding_idx=0)
        # A row per node stands in the order of the trie: it keeps its meaning when items are added.
        num_rows = int(own_nodes.sum()) if num_buckets is None else num_buckets
        self.node_embedding = nn.Embedding(num_rows, dim)
        # The root's vector is 0: it stands for what is not there.
        self.fallback = nn.Embedding(trie.num_levels + 1, dim, padding_idx=0)
        for table in (self.code_embedding, self.node_embedding, self.fallback):
            nn.init.normal_(table.weight, std=0.02)
        for table in (self.code_embedding, self.fallback):
            nn.init.zeros_(table.weight[0])
        # Derived from the ID table, so not in the checkpoint.
        self.register_buffer("node_levels", _node_levels(trie), persistent=False)
        self.register_buffer("item_rows", self._rows_of_codes(codes), persistent=False)
        self.register_buffer("code_rows", self._rows_of_nodes(trie, lone_items), persistent=False)
        if self.fit_at_once:
            lone_nodes = (lone_items >= 0).nonzero().squeeze(-1)
            rest_rows = self._rows_of_rest(lone_nodes, lone_items[lone_nodes])
            self.register_buffer("own_nodes", own_nodes.nonzero().squeeze(-1), persistent=False)
            self.register_buffer("lone_nodes", lone_nodes, persistent=False)
            self.register_buffer("rest_rows", rest_rows, persistent=False)
        else:
            # Rows of the fallbacks follow those of the buckets, as `table` joins them.
            rows = num_rows + self.node_levels
            if num_buckets:
                check_buckets(num_buckets, _codes_to_tell_apart(trie, own_nodes))
                buckets = torch.from_numpy(assign_buckets(trie, num_buckets))
                rows = torch.where(own_nodes, buckets, rows)
            self.register_buffer("node_rows", rows, persistent=False)
            self.register_buffer("lone_items", lone_items, persistent=False)

    @property
    def fit_at_once(self) -> bool:
        """Whether the vectors of all nodes are made at once."""
        num_values = len(self.node_levels) * self.fallback.embedding_dim
        return self.num_buckets is None or (not self.num_buckets and num_values <= MAX_AT_ONCE)

    def _rows_of_codes(self, codes: npt.NDArray[np.int32]) -> Tensor:
        """Rows of the code embeddings for the levels of each ID, int32 ``[N, L]``."""
        starts = [0 if start is None else start for start in self.code_starts]
        meaning = [start is not None for start in self.code_starts]
        rows = (torch.from_numpy(codes) + torch.tensor(starts)) * torch.tensor(meaning)
        return rows.int()

    def _rows_of_nodes(self, trie: Trie, lone_items: Tensor) -> Tensor:
        """The row of the code that leads to each node, int32 ``[V]``; 0 for none.

        Below the first node of a lone item there is none: that node has all codes that are left.
        """
        rows = torch.zeros(trie.num_nodes, dtype=torch.int32)
        paths = torch.from_numpy(trie.paths)
        is_lone = lone_items[paths] == torch.arange(trie.num_items).unsqueeze(-1)
        is_below = is_lone.int().cumsum(dim=1) - is_lone.int() > 0
        for level in range(self.num_tree_levels):
            rows[paths[:, level]] = self.item_rows[:, level]
        for level in range(self.num_tree_levels):
            rows[paths[is_below[:, level], level]] = 0
        return rows

    def _rows_of_rest(self, nodes: Tensor, items: Tensor) -> Tensor:
        """Rows of the codes that are left of an ID below nodes ``[S]`` of one item, ``[S, L]``."""
        depth = self.node_levels[nodes].clamp_max(self.num_tree_levels)
        levels = torch.arange(self.item_rows.shape[1], device=depth.device)
        return self.item_rows[items] * (levels >= depth.unsqueeze(-1))

    def _sum_rest(self, rows: Tensor) -> Tensor:
        """Sums ``[S, D]`` of the code embeddings in rows ``[S, L]``; 0 stands for none."""
        return F.embedding_bag(rows, self.code_embedding.weight, mode="sum", padding_idx=0)

    def forward(self, dropped: Tensor | None = None) -> Tensor:
        """Vectors of all nodes, ``[V, D]``.

        Args:
            dropped: bool, for which rows of the table of node embeddings the fallback stands in,
                as `draw_dropped` returns.
        """
        if not self.fit_at_once:
            nodes = torch.arange(len(self.node_levels), device=self.node_levels.device)
            return self.of(nodes, dropped)
        fallback = self.fallback(self.node_levels)
        own = self.node_embedding.weight
        if dropped is not None:
            own = torch.where(dropped.unsqueeze(-1), fallback[self.own_nodes], own)
        vectors: Tensor = fallback.index_copy(0, self.own_nodes, own)
        vectors = vectors + self.code_embedding(self.code_rows)
        return vectors.index_add(0, self.lone_nodes, self._sum_rest(self.rest_rows))

    def of(self, nodes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Vectors ``[..., D]`` of nodes ``[...]`` that share buckets; as `forward` has them."""
        own = self.fallback(self.node_levels[nodes])
        if self.num_buckets:
            rows = self.node_rows[nodes]
            is_own = rows < self.num_buckets
            rows = torch.where(is_own, rows, 0)
            if dropped is not None:
                is_own = is_own & ~dropped[rows]
            own = torch.where(is_own.unsqueeze(-1), self.node_embedding(rows), own)
        return self.add_rest(own + self.code_embedding(self.code_rows[nodes]), nodes)

    def add_rest(self, vectors: Tensor, nodes: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of nodes ``[...]`` with the codes that are left of a lone item."""
        flat = nodes.flatten()
        items = self.lone_items[flat]
        rows = self._rows_of_rest(flat, items.clamp_min(0)) * (items >= 0).unsqueeze(-1)
        return vectors + self._sum_rest(rows).view_as(vectors)

    def table(self) -> NodeTable:
        """The vectors for ranking, as the weights are now."""
        if self.fit_at_once:
            vectors: Tensor = self()
            return vectors
        tables = (self.node_embedding, self.fallback, self.code_embedding)
        return BucketVectors(torch.cat([table.weight for table in tables]), self)

    def vectors_of_codes(self, level: int) -> Tensor:
        """What a node with each code of a level has without an embedding of its own, ``[K, D]``.

        None, ``[0, D]``, where the nodes of a level are items and not codes.
        """
        fallback: Tensor = self.fallback.weight[level + 1]
        start = self.code_starts[level] if level < self.num_tree_levels else None
        if start is None:
            return fallback.new_empty(0, len(fallback))
        return fallback + self.code_embedding.weight[start : start + self.codebook_sizes[level]]

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
        return self.nodes.add_rest(sums.view(*nodes.shape, self.weights.shape[1]), nodes)


def _code_starts(
    codebook_sizes: tuple[int, ...], disambiguation_level: int | None
) -> tuple[list[int | None], int]:
    """First row of each level's code embeddings, None without any; and how many rows there are."""
    starts: list[int | None] = []
    num_rows = 1
    for level, size in enumerate(codebook_sizes):
        starts.append(None if level == disambiguation_level else num_rows)
        num_rows += 0 if level == disambiguation_level else size
    return starts, num_rows


def _node_levels(trie: Trie) -> Tensor:
    """Depth of each node, int32 ``[V]``; the root's is 0."""
    depths = np.arange(len(trie.level_starts) - 1, dtype=np.int32)
    return torch.from_numpy(np.repeat(depths, np.diff(trie.level_starts)))


def _codes_to_tell_apart(trie: Trie, own_nodes: Tensor) -> list[int]:
    """Codes of each level that nodes with an embedding can have.

    Items that are added lengthen the last level, but by nodes without an embedding.
    """
    codes = torch.from_numpy(trie.node_codes).masked_fill(~own_nodes, -1)
    levels = codes.split(np.diff(trie.level_starts).tolist())[1:]
    return [1 + int(level.max()) for level in levels]


def count_below(trie: Trie, items: Tensor) -> Tensor:
    """How many of these items are below each node, int64 ``[V]``."""
    upto = F.pad(items[torch.from_numpy(trie.leaf_items)].long().cumsum(0), (1, 0))
    return upto[torch.from_numpy(trie.leaf_ends)] - upto[torch.from_numpy(trie.leaf_starts)]


def find_lone_items(trie: Trie, known_items: Tensor) -> Tensor:
    """The item of each node that is the first on a path to lead to one item alone, int32 ``[V]``.

    -1 for other nodes. Items added since training do not count beside one that was there, lest its
    nodes' vectors move.

    Args:
        trie: The trie of the whole catalogue.
        known_items: bool ``[N]``, the catalogue in training.
    """
    num_known, num_all = count_below(trie, known_items), count_below(trie, known_items | True)
    paths = torch.from_numpy(trie.paths)
    alone = torch.where(known_items.unsqueeze(-1), num_known[paths] == 1, num_all[paths] == 1)
    items = torch.arange(trie.num_items, dtype=torch.int32)
    # Whole IDs are unique: the last node of a path leads to one item.
    firsts = paths[items, alone.int().argmax(dim=1)]
    found = torch.full((trie.num_nodes,), -1, dtype=torch.int32)
    found[firsts] = items
    return found


def choose_own_nodes(trie: Trie, train_items: Tensor, known_items: Tensor, size: Size) -> Tensor:
    """The nodes with an embedding of their own, bool ``[V]``: training has to reach them.

    Items added since training change none of it, so that the embeddings stay where they belong.
    """
    own = torch.zeros(trie.num_nodes, dtype=torch.bool)
    if size != "constant":
        own[torch.from_numpy(trie.paths)[train_items].flatten()] = True
    if size == "prefixes":
        own &= count_below(trie, known_items) > 1
    return own
