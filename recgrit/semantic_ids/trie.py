"""The trie of existing semantic IDs, as flat arrays.

Nodes are numbered level by level in the order of their prefixes: the root is 0, the children of one
node follow one another, and so do the leaves below any node. That makes three things a range: a
node's children, its items, and those of its items that a filter excludes. All numbers are int32,
which is enough for two billion nodes and half the memory of int64: 60 bytes an item at four levels.

Shapes: N items, L levels, V nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Packed into one number, codes sort several times faster than column by column.
PACKED_BITS = 63


@dataclass(frozen=True)
class Children:
    """Some of the children of every node of a trie.

    Args:
        starts: int32 ``[V + 1]``; those of node v are ``nodes[starts[v] : starts[v + 1]]``.
        nodes: int32, node numbers.
    """

    starts: npt.NDArray[np.int32]
    nodes: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trie:
    """Transition tables of all prefixes of a set of IDs.

    Args:
        level_starts: int64 ``[L + 2]``; nodes of depth d are ``level_starts[d]`` to
            ``level_starts[d + 1]``, the root being depth 0 and leaves depth L.
        node_codes: int32 ``[V]``, the code that leads to each node; 0 for the root.
        child_starts: int32 ``[V + 1]``; node v's children are the nodes from ``child_starts[v]`` to
            before ``child_starts[v + 1]``.
        leaf_starts: int32 ``[V]``, the first leaf below each node, leaves counted from 0.
        leaf_ends: int32 ``[V]``, one past the last leaf below each node.
        leaf_items: int32 ``[N]``, item_idx of each leaf.
        paths: int32 ``[N, L]``, the nodes of each item's ID, root excluded.
    """

    level_starts: npt.NDArray[np.int64]
    node_codes: npt.NDArray[np.int32]
    child_starts: npt.NDArray[np.int32]
    leaf_starts: npt.NDArray[np.int32]
    leaf_ends: npt.NDArray[np.int32]
    leaf_items: npt.NDArray[np.int32]
    paths: npt.NDArray[np.int32]

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

    def restrict(self, items: npt.NDArray[np.bool_]) -> Children:
        """Only those children that lead to one of these items.

        This is the training trie, in which items never trained on are no candidates. Nodes keep
        their numbers, so that one table of node vectors serves both.

        Args:
            items: bool ``[N]``.
        """
        reachable = np.zeros(self.num_nodes, dtype=bool)
        reachable[self.paths[items].ravel()] = True
        reachable[0] = False  # Nobody's child.
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(reachable, dtype=np.int32)])
        return Children(before[self.child_starts], np.flatnonzero(reachable).astype(np.int32))


def build_trie(codes: npt.NDArray[np.int32]) -> Trie:
    """The trie of unique IDs ``[N, L]``.

    Raises:
        ValueError: Two IDs are equal.

    Example:
        >>> trie = build_trie(np.array([[1, 0], [0, 1], [0, 0]], dtype=np.int32))
        >>> trie.level_starts.tolist(), trie.paths.tolist(), trie.leaf_items.tolist()
        ([0, 1, 3, 6], [[2, 5], [1, 4], [1, 3]], [2, 1, 0])
        >>> trie.child_starts.tolist()
        [1, 3, 5, 6, 6, 6, 6]
    """
    num_items, num_levels = codes.shape
    order = _sort_ids(codes)
    ordered = codes[order]
    ordered_paths = np.empty((num_items, num_levels), dtype=np.int32)
    level_starts, first_node = [0], 1
    # Whether the prefix so far of each ID, in order, differs from the one before it.
    is_new = np.zeros(num_items, dtype=bool)
    is_new[0] = True
    first_leaves, node_codes, child_counts = [np.zeros(1, np.int32)], [np.zeros(1, np.int32)], []
    for level in range(num_levels):
        level_starts.append(first_node)
        parents = np.flatnonzero(is_new) if level else np.zeros(1, np.int64)
        is_new[1:] |= ordered[1:, level] != ordered[:-1, level]
        firsts = np.flatnonzero(is_new).astype(np.int32)
        child_counts.append(np.diff(np.searchsorted(firsts, parents), append=len(firsts)))
        first_leaves.append(firsts)
        node_codes.append(ordered[firsts, level].astype(np.int32))
        ordered_paths[:, level] = first_node - 1 + np.cumsum(is_new, dtype=np.int32)
        first_node += len(firsts)
    if not is_new.all():
        raise ValueError("A trie needs unique IDs.")
    assert first_node < 2**31
    paths = np.empty_like(ordered_paths)
    paths[order] = ordered_paths
    counts = np.concatenate([*child_counts, np.zeros(num_items, np.int64)])
    # One past the last leaf of a node is the first of the next, or the end of its level.
    leaf_ends = [np.append(firsts[1:], np.int32(num_items)) for firsts in first_leaves]
    return Trie(
        level_starts=np.array([*level_starts, first_node], dtype=np.int64),
        node_codes=np.concatenate(node_codes),
        # Breadth-first numbering: all nodes but the root, in order, are the lists of children.
        child_starts=np.concatenate([np.ones(1, np.int32), 1 + np.cumsum(counts, dtype=np.int32)]),
        leaf_starts=np.concatenate(first_leaves),
        leaf_ends=np.concatenate(leaf_ends),
        leaf_items=order.astype(np.int32),
        paths=paths,
    )


def cut_ids(codes: npt.NDArray[np.int32], num_levels: int | None) -> npt.NDArray[np.int32]:
    """IDs of which all that follows the first levels is one choice among items.

    Items are numbered in the order of their rows: those added to a catalogue change no number.

    Args:
        codes: ``[N, L]``, unique.
        num_levels: T, the codes kept; None for all.

    Returns:
        ``[N, T + 1]``; ``codes`` themselves where they have no more than T levels.

    Example:
        >>> cut_ids(np.array([[1, 5, 2], [0, 3, 3], [1, 4, 0]], dtype=np.int32), 1).tolist()
        [[1, 0], [0, 0], [1, 1]]
    """
    if num_levels is None or codes.shape[1] <= num_levels:
        return codes
    kept = codes[:, :num_levels]
    order = _sort_ids(kept)
    is_new = np.ones(len(codes), dtype=bool)
    is_new[1:] = (kept[order[1:]] != kept[order[:-1]]).any(axis=1)
    places = np.arange(len(codes), dtype=np.int32)
    numbers = np.empty_like(places)
    numbers[order] = places - np.maximum.accumulate(np.where(is_new, places, 0))
    return np.column_stack([kept, numbers])


def _sort_ids(codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Rows in the order of their IDs; those of equal IDs as they were."""
    widths = [int(largest).bit_length() for largest in codes.max(axis=0)]
    if sum(widths) > PACKED_BITS:
        return np.lexsort(codes.T[::-1])
    packed = np.zeros(len(codes), dtype=np.int64)
    for level, width in enumerate(widths):
        packed <<= width
        packed |= codes[:, level]
    return np.argsort(packed, kind="stable")
