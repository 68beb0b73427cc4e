"""The trie of existing semantic IDs, as flat arrays.

Nodes are numbered level by level in the order of their prefixes: the root is 0, the children of one
node follow one another, and so do the leaves below any node. That makes three things a slice: a
node's children, its items, and the count of its items that a filter excludes.

Shapes: N items, L levels, V nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Trie:
    """Transition tables of all prefixes of a set of IDs.

    Args:
        level_starts: int64 ``[L + 2]``; nodes of depth d are ``level_starts[d]`` to
            ``level_starts[d + 1]``, the root being depth 0 and leaves depth L.
        node_codes: int64 ``[V]``, the code that leads to each node; 0 for the root.
        child_starts: int64 ``[V + 1]``; node v's children are ``children[child_starts[v] :
            child_starts[v + 1]]``.
        children: int64, node numbers.
        leaf_starts: int64 ``[V]``, the first leaf below each node, leaves counted from 0.
        leaf_ends: int64 ``[V]``, one past the last leaf below each node.
        leaf_items: int64 ``[N]``, item_idx of each leaf.
        paths: int64 ``[N, L]``, the nodes of each item's ID, root excluded.
    """

    level_starts: npt.NDArray[np.int64]
    node_codes: npt.NDArray[np.int64]
    child_starts: npt.NDArray[np.int64]
    children: npt.NDArray[np.int64]
    leaf_starts: npt.NDArray[np.int64]
    leaf_ends: npt.NDArray[np.int64]
    leaf_items: npt.NDArray[np.int64]
    paths: npt.NDArray[np.int64]

    @property
    def num_levels(self) -> int:
        """L."""
        return int(self.paths.shape[1])

    @property
    def num_nodes(self) -> int:
        """V, the root included."""
        return len(self.node_codes)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.paths)

    @property
    def first_leaf(self) -> int:
        """Node number of the first leaf."""
        return int(self.level_starts[-2])

    def save(self, path: Path) -> None:
        """Write the tables under their names as one safetensors file."""
        from safetensors.numpy import save_file

        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        save_file({name: np.ascontiguousarray(table) for name, table in tables.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Trie:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def restrict(self, items: npt.NDArray[np.bool_]) -> Trie:
        """The same nodes with only those children that lead to one of these items.

        Node numbers stay, so that one table of node vectors serves the whole trie and its part:
        this is the training trie, in which items never trained on are no candidates.

        Args:
            items: bool ``[N]``.
        """
        reachable = np.zeros(self.num_nodes, dtype=bool)
        reachable[self.paths[items].ravel()] = True
        kept = reachable[self.children]
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        return Trie(
            level_starts=self.level_starts,
            node_codes=self.node_codes,
            child_starts=before[self.child_starts],
            children=self.children[kept],
            leaf_starts=self.leaf_starts,
            leaf_ends=self.leaf_ends,
            leaf_items=self.leaf_items,
            paths=self.paths,
        )


def build_trie(codes: npt.NDArray[np.int32]) -> Trie:
    """The trie of unique IDs ``[N, L]``.

    Raises:
        ValueError: Two IDs are equal.

    Example:
        >>> trie = build_trie(np.array([[1, 0], [0, 1], [0, 0]], dtype=np.int32))
        >>> trie.level_starts.tolist(), trie.paths.tolist(), trie.leaf_items.tolist()
        ([0, 1, 3, 6], [[2, 5], [1, 4], [1, 3]], [2, 1, 0])
        >>> trie.children[trie.child_starts[1] : trie.child_starts[2]].tolist()
        [3, 4]
    """
    num_items, num_levels = codes.shape
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order].astype(np.int64)
    # is_new[i, l]: the prefix of length l + 1 of the i-th ID differs from the one before it.
    is_new = np.ones((num_items, num_levels), dtype=bool)
    is_new[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    if not is_new[:, -1].all():
        raise ValueError("A trie needs unique IDs.")
    level_sizes = np.concatenate([[1], is_new.sum(axis=0)]).astype(np.int64)
    level_starts = np.concatenate([[0], np.cumsum(level_sizes)]).astype(np.int64)
    ordered_paths = np.cumsum(is_new, axis=0) - 1 + level_starts[1:-1]
    num_nodes = int(level_starts[-1])

    node_codes = np.zeros(num_nodes, dtype=np.int64)
    parents = np.zeros(num_nodes, dtype=np.int64)
    leaf_starts = np.zeros(num_nodes, dtype=np.int64)
    leaf_ends = np.full(num_nodes, num_items, dtype=np.int64)
    for level in range(num_levels):
        first = np.flatnonzero(is_new[:, level])
        nodes = ordered_paths[first, level]
        node_codes[nodes] = ordered[first, level]
        if level > 0:
            parents[nodes] = ordered_paths[first, level - 1]
        leaf_starts[nodes] = first
        leaf_ends[nodes] = np.append(first[1:], num_items)
    num_children = np.bincount(parents[1:], minlength=num_nodes)
    paths = np.empty_like(ordered_paths)
    paths[order] = ordered_paths
    return Trie(
        level_starts=level_starts,
        node_codes=node_codes,
        child_starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(num_children)]),
        # Breadth-first numbering: all nodes but the root, in order, are the children lists.
        children=np.arange(1, num_nodes, dtype=np.int64),
        leaf_starts=leaf_starts,
        leaf_ends=leaf_ends,
        leaf_items=order.astype(np.int64),
        paths=paths,
    )
