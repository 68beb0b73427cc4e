"""The trie of all existing semantic IDs, stored as flat arrays.

Nodes are numbered level by level in the order of their prefixes. The root is node 0. The children
of a node have consecutive numbers, and so have the leaves below a node. The children of a node, its
items, and the items below it that a filter excludes are therefore ranges. All numbers are int32,
which is enough for two billion nodes and needs half the memory of int64: 60 bytes per item at four
levels.

Shapes: N items, L levels, V nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Codes of up to this many bits are packed into one number, because one number sorts several times
# faster than several columns.
PACKED_BITS = 63


@dataclass(frozen=True)
class Children:
    """Lists of some of the children of every node of a trie.

    Args:
        starts: int32 ``[V + 1]``. The listed children of node v are
            ``nodes[starts[v] : starts[v + 1]]``.
        nodes: Numbers of the children of all nodes, int32.
    """

    starts: npt.NDArray[np.int32]
    nodes: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trie:
    """The trie of a set of semantic IDs, with the children, leaves and items of every node.

    Args:
        level_starts: int64 ``[L + 2]``. The nodes of depth d are ``level_starts[d]`` to
            ``level_starts[d + 1] - 1``. The root has depth 0 and the leaves have depth L.
        node_codes: The code that leads to each node, int32 ``[V]``; 0 for the root.
        child_starts: int32 ``[V + 1]``. The children of node v are the nodes ``child_starts[v]`` to
            ``child_starts[v + 1] - 1``.
        leaf_starts: Number of the first leaf below each node, int32 ``[V]``. Leaves are counted
            from 0.
        leaf_ends: Number of the last leaf below each node plus 1, int32 ``[V]``.
        leaf_items: ``item_idx`` of each leaf, int32 ``[N]``.
        paths: Nodes of each item's ID without the root, int32 ``[N, L]``.
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
        """Number of levels L."""
        return int(self.paths.shape[1])

    @property
    def num_nodes(self) -> int:
        """Number of nodes V, the root included."""
        return len(self.node_codes)

    @property
    def num_items(self) -> int:
        """Number of items N."""
        return len(self.paths)

    @property
    def first_leaf(self) -> int:
        """Node number of the first leaf."""
        return int(self.level_starts[-2])

    def save(self, path: Path) -> None:
        """Write all arrays to one safetensors file.

        Args:
            path: The file to write.
        """
        from safetensors.numpy import save_file

        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        save_file({name: np.ascontiguousarray(table) for name, table in tables.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Trie:
        """Read a trie from a file that `save` wrote."""
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def restrict(self, items: npt.NDArray[np.bool_]) -> Children:
        """Return the children that lead to at least one of some items.

        This gives the training trie, in which items without training interactions are no
        candidates. Nodes keep their numbers, so that both tries use the same table of node vectors.

        Args:
            items: Whether each item is included, bool ``[N]``.
        """
        reachable = np.zeros(self.num_nodes, dtype=bool)
        reachable[self.paths[items].ravel()] = True
        reachable[0] = False  # The root is no node's child.
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(reachable, dtype=np.int32)])
        return Children(before[self.child_starts], np.flatnonzero(reachable).astype(np.int32))


def build_trie(codes: npt.NDArray[np.int32]) -> Trie:
    """Build the trie of unique semantic IDs.

    Args:
        codes: IDs of N items at L levels, int32 ``[N, L]``.

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
    # Whether the current prefix of each sorted ID differs from that of the ID before.
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
    # The leaves of a node end where those of the next node of its level start, or at the last leaf.
    leaf_ends = [np.append(firsts[1:], np.int32(num_items)) for firsts in first_leaves]
    return Trie(
        level_starts=np.array([*level_starts, first_node], dtype=np.int64),
        node_codes=np.concatenate(node_codes),
        # With breadth-first numbers, the lists of children in order are all nodes except the root.
        child_starts=np.concatenate([np.ones(1, np.int32), 1 + np.cumsum(counts, dtype=np.int32)]),
        leaf_starts=np.concatenate(first_leaves),
        leaf_ends=np.concatenate(leaf_ends),
        leaf_items=order.astype(np.int32),
        paths=paths,
    )


def cut_ids(codes: npt.NDArray[np.int32], num_levels: int | None) -> npt.NDArray[np.int32]:
    """Replace all codes after the first levels by one number that tells items of a prefix apart.

    The items of a prefix are numbered in the order of their rows. Items that are appended to a
    catalogue therefore change no number.

    Args:
        codes: Unique IDs, ``[N, L]``.
        num_levels: Number of levels T to keep. None keeps all levels.

    Returns:
        IDs ``[N, T + 1]``, or ``codes`` unchanged if they have no more than T levels.

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
    """Return the rows in the order of their IDs. Rows with equal IDs keep their order."""
    widths = [int(largest).bit_length() for largest in codes.max(axis=0)]
    if sum(widths) > PACKED_BITS:
        return np.lexsort(codes.T[::-1])
    packed = np.zeros(len(codes), dtype=np.int64)
    for level, width in enumerate(widths):
        packed <<= width
        packed |= codes[:, level]
    return np.argsort(packed, kind="stable")
