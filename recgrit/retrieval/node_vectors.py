"""Vectors of the nodes of a trie, and how callers look them up.

A node vector is the sum of rows of two tables, see `recgrit.retrieval.model`: its own embedding,
and code embeddings and fallbacks, which nodes share. A training step makes the vectors of the nodes
that it asks for. For ranking, those of all nodes are made once, unless none has an embedding of its
own or they share the rows of a smaller table (`recgrit.retrieval.buckets`): a table of a large
catalogue would bring back what is saved then.

Shapes: V nodes, N items, L levels of an ID, U nodes asked for, R rows that are added up, D model
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
# Nodes whose vectors are copied at a time.
NODES_AT_ONCE = 2**18
# The row of a node without an embedding of its own.
NO_ROW = -1


class NodeLookup(Protocol):
    """Whatever knows the vectors of nodes."""

    def of(self, nodes: Tensor) -> Tensor:
        """``[..., D]`` of nodes ``[...]``."""


# The vectors of all nodes, ``[V, D]``, or what makes them as they are asked for.
NodeTable = Tensor | NodeLookup


def look_up(table: NodeTable, nodes: Tensor) -> Tensor:
    """Vectors ``[..., D]`` of nodes ``[...]``."""
    return F.embedding(nodes, table) if isinstance(table, Tensor) else table.of(nodes)


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
        self.num_rows = int(own_nodes.sum()) if num_buckets is None else num_buckets
        self.node_embedding = nn.Embedding(self.num_rows, dim)
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
        self.register_buffer("lone_items", lone_items, persistent=False)
        rows = (own_nodes.int().cumsum(0, dtype=torch.int32) - 1).where(own_nodes, NO_ROW)
        if num_buckets is not None:
            rows = torch.full_like(rows, NO_ROW)
        if num_buckets:
            check_buckets(num_buckets, _codes_to_tell_apart(trie, own_nodes))
            rows = torch.from_numpy(assign_buckets(trie, num_buckets)).where(own_nodes, NO_ROW)
        self.register_buffer("node_rows", rows, persistent=False)

    @property
    def own_nodes(self) -> Tensor:
        """Nodes with an embedding of their own or a bucket, ascending."""
        return (self.node_rows != NO_ROW).nonzero().squeeze(-1)

    @property
    def fit_at_once(self) -> bool:
        """Whether the vectors of all nodes are made at once, for ranking."""
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

    def rows(self, nodes: Tensor, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows whose sum is the vector of each node ``[U]``.

        Args:
            nodes: int32 ``[U]``.
            dropped: bool, for which rows of the node embeddings the fallback stands in, as
                `draw_dropped` returns.

        Returns:
            Rows of the node embeddings int32 ``[U]``, `NO_ROW` for none; and rows of `shared`,
            int32 ``[U, R]``, 0 for none.
        """
        own = self.node_rows[nodes]
        if dropped is not None and self.num_rows:
            own = own.where(~dropped[own.clamp_min(0)], NO_ROW)
        levels = self.node_levels[nodes]
        fallback = levels.where(own == NO_ROW, 0)
        # All codes that are left below a node of one item.
        items = self.lone_items[nodes]
        depth = levels.clamp_max(self.num_tree_levels).unsqueeze(-1)
        below = torch.arange(self.item_rows.shape[1], device=nodes.device) >= depth
        is_lone = (items >= 0).unsqueeze(-1)
        rest = self.item_rows[items.clamp_min(0)] * (below & is_lone)
        codes = torch.cat([self.code_rows[nodes].unsqueeze(-1), rest], dim=-1)
        first_code = len(self.fallback.weight)
        codes = torch.where(codes > 0, codes + first_code, 0)
        return own, torch.cat([fallback.unsqueeze(-1), codes], dim=-1)

    def shared(self) -> Tensor:
        """Fallbacks and code embeddings, ``[-1, D]``; row 0 is 0."""
        return torch.cat([self.fallback.weight, self.code_embedding.weight])

    def of(self, nodes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Vectors ``[U, D]`` of nodes ``[U]``, with gradients; see `rows`."""
        own, shared = self.rows(nodes, dropped)
        vectors = F.embedding_bag(shared, self.shared(), mode="sum", padding_idx=0)
        if not self.num_rows:
            return vectors
        weights = (own != NO_ROW).to(vectors.dtype).unsqueeze(-1)
        return vectors + F.embedding_bag(
            own.clamp_min(0).unsqueeze(-1),
            self.node_embedding.weight,
            mode="sum",
            per_sample_weights=weights,
        )

    @torch.no_grad()
    def start_from(self, source: NodeVectors, places: Tensor) -> None:
        """Give nodes the vectors that they have in a trained table, whose shared rows are here too.

        A node that had no embedding of its own there begins with what stood in for it. Where other
        items joined or left below a node, other codes may be part of its vector than there: its own
        embedding makes up for them.

        Args:
            source: Of the same sizes, in eval mode.
            places: ``[V]``, the number of each node there.
        """
        if self.num_buckets is not None:  # Rows go by the path, not by the catalogue.
            self.node_embedding.weight.copy_(source.node_embedding.weight)
            return
        for nodes in self.own_nodes.split(NODES_AT_ONCE):
            rows, shared = self.rows(nodes)
            others = F.embedding_bag(shared, self.shared(), mode="sum", padding_idx=0)
            self.node_embedding.weight[rows] = source.of(places[nodes]) - others

    def forward(self, dropped: Tensor | None = None) -> Tensor:
        """Vectors of all nodes, ``[V, D]``."""
        return self.of(torch.arange(len(self.node_levels), device=self.node_levels.device), dropped)

    def table(self) -> NodeTable:
        """The vectors for ranking, as the weights are now."""
        if self.fit_at_once:
            vectors: Tensor = self()
            return vectors
        return JoinedVectors(torch.cat([self.shared(), self.node_embedding.weight]), self)

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
class JoinedVectors:
    """Vectors of nodes for ranking, made as they are asked for in one pass over one table.

    Args:
        weights: ``[-1, D]``, `NodeVectors.shared` and then the node embeddings.
        nodes: Whose they are.
    """

    weights: Tensor
    nodes: NodeVectors

    def of(self, nodes: Tensor) -> Tensor:
        """``[..., D]`` of nodes ``[...]``."""
        own, shared = self.nodes.rows(nodes.flatten())
        first_own = len(self.weights) - self.nodes.num_rows
        own = torch.where(own == NO_ROW, 0, own + first_own)
        rows = torch.cat([own.unsqueeze(-1), shared], dim=-1)
        sums = F.embedding_bag(rows, self.weights, mode="sum", padding_idx=0)
        return sums.view(*nodes.shape, self.weights.shape[1])


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
