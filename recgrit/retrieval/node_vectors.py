"""Vectors of the nodes of a trie, and their look-up.

A node vector is a sum of rows of two tables (see `recgrit.retrieval.model`). One table has the
nodes' own embeddings. The other has code embeddings and fallbacks, which nodes share. A training
step computes the vectors of the nodes that it needs. For ranking, the vectors of all nodes are
computed once. The exceptions are large catalogues whose nodes have no own embeddings, and nodes
that share the rows of a smaller table (`recgrit.retrieval.buckets`): a table of all nodes would use
the memory that these settings save.

Shapes: V nodes, N items, L levels of an ID, U needed nodes, R rows to sum, D model dimensions.
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

# Selects the nodes that have their own embedding. See `recgrit.retrieval.model.TrieRetriever`.
Size = Literal["catalogue", "prefixes", "constant"]
# Maximum number of values in a table of all node vectors if nodes have no own embeddings: 256 MiB.
# Larger catalogues compute node vectors on request.
MAX_AT_ONCE = 2**26
# Number of nodes whose vectors are copied at a time.
NODES_AT_ONCE = 2**18
# Row number of a node without an embedding of its own.
NO_ROW = -1


class NodeLookup(Protocol):
    """An object that computes the vectors of nodes on request."""

    def of(self, nodes: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of nodes ``[...]``.

        Shapes: D model dimensions.
        """


# The vectors of all nodes, ``[V, D]``, or an object that computes them on request.
NodeTable = Tensor | NodeLookup


def look_up(table: NodeTable, nodes: Tensor) -> Tensor:
    """Return the vectors ``[..., D]`` of nodes ``[...]``.

    Shapes: D model dimensions.
    """
    return F.embedding(nodes, table) if isinstance(table, Tensor) else table.of(nodes)


class NodeVectors(nn.Module):
    """The trained tables and row numbers from which the vectors of all nodes of a trie are summed.

    A node vector is the sum of code embeddings and the node's own embedding. If a node has no
    embedding of its own, a fallback takes its place, which is one learned embedding per level.

    Shapes: N items, L levels of an ID, V nodes.

    Args:
        trie: Trie of the whole catalogue. Its first ``num_tree_levels`` levels are codes. One
            further level, if there is one, leads to the items.
        codes: Whole IDs, int32 ``[N, L]``.
        codebook_sizes: Codebook size of each level of an ID.
        disambiguation_level: Level without code embeddings. None if there is no such level.
        num_tree_levels: Number of levels of the trie whose nodes are codes.
        own_nodes: Whether each node has its own embedding, bool ``[V]``. The other nodes use the
            fallback.
        lone_items: Item of each node that is the first on its path to lead to a single item, and -1
            for all other nodes, int32 ``[V]``, from `find_lone_items`. All remaining codes of the
            item's ID are part of the node's vector.
        dim: Number of model dimensions D.
        node_dropout: Share of node embeddings that the fallback replaces in a training step.
        num_buckets: Number of rows of a table of node embeddings that nodes share. 0 means no
            table. None gives each node its own row.

    Raises:
        ConfigError: ``num_buckets`` is so small that children of one node would share a row.
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
        # First row of each level's codes. None at a disambiguation level. Row 0 stands for no code.
        self.code_starts, num_code_rows = _code_starts(codebook_sizes, disambiguation_level)
        self.code_embedding = nn.Embedding(num_code_rows, dim, padding_idx=0)
        # Rows are in the order of the trie, so each row keeps its node when items are added.
        self.num_rows = int(own_nodes.sum()) if num_buckets is None else num_buckets
        self.node_embedding = nn.Embedding(self.num_rows, dim)
        # The root's vector is 0. It stands for missing nodes.
        self.fallback = nn.Embedding(trie.num_levels + 1, dim, padding_idx=0)
        for table in (self.code_embedding, self.node_embedding, self.fallback):
            nn.init.normal_(table.weight, std=0.02)
        for table in (self.code_embedding, self.fallback):
            nn.init.zeros_(table.weight[0])
        # These buffers are derived from the ID table, so they are not in the checkpoint.
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
        """Numbers of the nodes that have a row in the table of node embeddings, ascending."""
        return (self.node_rows != NO_ROW).nonzero().squeeze(-1)

    @property
    def fit_at_once(self) -> bool:
        """Whether the vectors of all nodes are computed at once for ranking."""
        num_values = len(self.node_levels) * self.fallback.embedding_dim
        return self.num_buckets is None or (not self.num_buckets and num_values <= MAX_AT_ONCE)

    def _rows_of_codes(self, codes: npt.NDArray[np.int32]) -> Tensor:
        """Return the code embedding row of each level of each ID, int32 ``[N, L]``.

        Shapes: N items, L levels of an ID.
        """
        starts = [0 if start is None else start for start in self.code_starts]
        meaning = [start is not None for start in self.code_starts]
        rows = (torch.from_numpy(codes) + torch.tensor(starts)) * torch.tensor(meaning)
        return rows.int()

    def _rows_of_nodes(self, trie: Trie, lone_items: Tensor) -> Tensor:
        """Return the row of the code that leads to each node, int32 ``[V]``; 0 if there is none.

        Nodes below the first single-item node of a path have no row, because that node's vector
        already contains all remaining codes.
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
        """Return the rows whose sum is the vector of each node.

        Shapes: U given nodes, R shared rows per node.

        Args:
            nodes: Node numbers, int32 ``[U]``.
            dropped: Whether the fallback replaces each row of the node embeddings, bool, from
                `draw_dropped`. None replaces no row.

        Returns:
            Rows of the node embeddings, int32 ``[U]``, or `NO_ROW` for a node without one; and rows
            of `shared`, int32 ``[U, R]``, with 0 for unused entries.
        """
        own = self.node_rows[nodes]
        if dropped is not None and self.num_rows:
            own = own.where(~dropped[own.clamp_min(0)], NO_ROW)
        levels = self.node_levels[nodes]
        fallback = levels.where(own == NO_ROW, 0)
        # All remaining codes of a single-item node.
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
        """Return the table of fallbacks and code embeddings, whose row 0 is zero.

        Its shape is ``[number of rows, D]``.

        Shapes: D model dimensions.
        """
        return torch.cat([self.fallback.weight, self.code_embedding.weight])

    def of(self, nodes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Return the vectors ``[U, D]`` of nodes ``[U]``, with gradients.

        Shapes: U given nodes, D model dimensions.

        Args:
            nodes: Node numbers, int32 ``[U]``.
            dropped: Whether the fallback replaces each row of the node embeddings. None replaces no
                row.
        """
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
        """Set the node embeddings so that nodes have the vectors that they have in a trained model.

        The shared rows must have been copied before. A node without an own embedding in the trained
        model starts with the fallback that it used. If items were added or removed below a node,
        its vector may contain other codes than in the trained model. Its own embedding compensates
        for them.

        Args:
            source: Trained node vectors of the same sizes, in eval mode.
            places: Number of each node in the trained model's trie ``[V]``.
        """
        if self.num_buckets is not None:  # Bucket rows depend on the path only.
            self.node_embedding.weight.copy_(source.node_embedding.weight)
            return
        for nodes in self.own_nodes.split(NODES_AT_ONCE):
            rows, shared = self.rows(nodes)
            others = F.embedding_bag(shared, self.shared(), mode="sum", padding_idx=0)
            self.node_embedding.weight[rows] = source.of(places[nodes]) - others

    def forward(self, dropped: Tensor | None = None) -> Tensor:
        """Return the vectors of all nodes, ``[V, D]``.

        Shapes: V nodes, D model dimensions.
        """
        return self.of(torch.arange(len(self.node_levels), device=self.node_levels.device), dropped)

    def table(self) -> NodeTable:
        """Return the node vectors for ranking, with the current weights."""
        if self.fit_at_once:
            vectors: Tensor = self()
            return vectors
        return JoinedVectors(torch.cat([self.shared(), self.node_embedding.weight]), self)

    def vectors_of_codes(self, level: int) -> Tensor:
        """Return, for each code of a level, the vector of a node without an embedding of its own.

        Shapes: D model dimensions.

        Args:
            level: Level of the codes.

        Returns:
            Vectors ``[K, D]`` for K codes, or ``[0, D]`` at a level without code embeddings.
        """
        fallback: Tensor = self.fallback.weight[level + 1]
        start = self.code_starts[level] if level < self.num_tree_levels else None
        if start is None:
            return fallback.new_empty(0, len(fallback))
        return fallback + self.code_embedding.weight[start : start + self.codebook_sizes[level]]

    def draw_dropped(self) -> Tensor | None:
        """Draw the rows of the node embeddings to drop in one training step.

        Returns:
            Whether each row is dropped, bool; or None outside training or without dropout.
        """
        if not self.training or self.node_dropout == 0.0:
            return None
        weight = self.node_embedding.weight
        draws = torch.rand(len(weight), device=weight.device)
        return draws < self.node_dropout


@dataclass(frozen=True)
class JoinedVectors:
    """Node vectors for ranking that are computed on request, by one sum over rows of one table.

    Args:
        weights: Table of `NodeVectors.shared` followed by the node embeddings. Its rows are vectors
            of length D.
        nodes: Node vectors that the table belongs to.
    """

    weights: Tensor
    nodes: NodeVectors

    def of(self, nodes: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of nodes ``[...]``.

        Shapes: D model dimensions.
        """
        own, shared = self.nodes.rows(nodes.flatten())
        first_own = len(self.weights) - self.nodes.num_rows
        own = torch.where(own == NO_ROW, 0, own + first_own)
        rows = torch.cat([own.unsqueeze(-1), shared], dim=-1)
        sums = F.embedding_bag(rows, self.weights, mode="sum", padding_idx=0)
        return sums.view(*nodes.shape, self.weights.shape[1])


def _code_starts(
    codebook_sizes: tuple[int, ...], disambiguation_level: int | None
) -> tuple[list[int | None], int]:
    """Return the first code embedding row of each level, and the number of rows.

    A disambiguation level has no rows, so its first row is None.
    """
    starts: list[int | None] = []
    num_rows = 1
    for level, size in enumerate(codebook_sizes):
        starts.append(None if level == disambiguation_level else num_rows)
        num_rows += 0 if level == disambiguation_level else size
    return starts, num_rows


def _node_levels(trie: Trie) -> Tensor:
    """Return the depth of each node, int32 ``[V]``; the root has depth 0."""
    depths = np.arange(len(trie.level_starts) - 1, dtype=np.int32)
    return torch.from_numpy(np.repeat(depths, np.diff(trie.level_starts)))


def _codes_to_tell_apart(trie: Trie, own_nodes: Tensor) -> list[int]:
    """Return for each level one more than the largest code of a node with an embedding.

    Items added later can have larger codes in the last level, but their nodes have no embedding.
    """
    codes = torch.from_numpy(trie.node_codes).masked_fill(~own_nodes, -1)
    levels = codes.split(np.diff(trie.level_starts).tolist())[1:]
    return [1 + int(level.max()) for level in levels]


def count_below(trie: Trie, items: Tensor) -> Tensor:
    """Return the number of the given items below each node, int64 ``[V]``.

    Shapes: V nodes, N items.

    Args:
        trie: Trie of the whole catalogue.
        items: Whether each item counts, bool ``[N]``.
    """
    upto = F.pad(items[torch.from_numpy(trie.leaf_items)].long().cumsum(0), (1, 0))
    return upto[torch.from_numpy(trie.leaf_ends)] - upto[torch.from_numpy(trie.leaf_starts)]


def find_lone_items(trie: Trie, known_items: Tensor) -> Tensor:
    """Find the first node on each item's path that leads to that item only.

    Items added after the training are ignored beside an item that existed before. Otherwise the
    vectors of existing nodes would change.

    Shapes: N items, V nodes.

    Args:
        trie: Trie of the whole catalogue.
        known_items: Items that the catalogue had in training, bool ``[N]``.

    Returns:
        The item of each such node, int32 ``[V]``, or -1 for all other nodes.
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
    """Choose the nodes that have an embedding of their own, among the nodes that training reaches.

    Items added after the training do not change the choice, so that each embedding stays with its
    node.

    Shapes: N items, V nodes.

    Args:
        trie: Trie of the whole catalogue.
        train_items: Items that occur in training histories, bool ``[N]``.
        known_items: Items that the catalogue had in training, bool ``[N]``.
        size: Nodes to choose: all that training reaches (``catalogue``), those of them above
            several items (``prefixes``), or none (``constant``).

    Returns:
        Whether each node has its own embedding, bool ``[V]``.
    """
    own = torch.zeros(trie.num_nodes, dtype=torch.bool)
    if size != "constant":
        own[torch.from_numpy(trie.paths)[train_items].flatten()] = True
    if size == "prefixes":
        own &= count_below(trie, known_items) > 1
    return own
