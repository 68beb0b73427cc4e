"""The trie of a catalogue as tensors, with look-ups from items and leaves to nodes.

Shapes: V nodes, N items, L levels, R rows, E entries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recgrit.retrieval.leaves import LeafSets, NodeSets
from recgrit.semantic_ids.trie import Trie


class TrieTensors(nn.Module):
    """The arrays of a trie as buffers, on the device of the module that contains them.

    The arrays are derived from the ID table, so they are not in a checkpoint.

    Args:
        trie: Trie of the whole catalogue.
    """

    paths: Tensor
    child_starts: Tensor
    leaf_starts: Tensor
    leaf_ends: Tensor
    leaf_items: Tensor
    node_codes: Tensor

    def __init__(self, trie: Trie) -> None:
        super().__init__()
        self.num_levels = trie.num_levels
        self.first_leaf = trie.first_leaf
        # Maximum number of children of a node, by the level of the children.
        self.most_children = [
            int(np.diff(trie.child_starts[first : end + 1]).max())
            for first, end in zip(trie.level_starts[:-2], trie.level_starts[1:-1], strict=True)
        ]
        for name, table in {
            "paths": trie.paths,
            "child_starts": trie.child_starts,
            "leaf_starts": trie.leaf_starts,
            "leaf_ends": trie.leaf_ends,
            "leaf_items": trie.leaf_items,
            "node_codes": trie.node_codes,
        }.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    @property
    def num_items(self) -> int:
        """Number of items N."""
        return self.paths.shape[0]

    @property
    def num_nodes(self) -> int:
        """Number of nodes V."""
        return len(self.leaf_ends)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.paths.device

    @property
    def fixed_shapes(self) -> bool:
        """Whether intermediate tensors must have the same shapes for all histories.

        True on every device except a CPU. On an accelerator, a shape that depends on the data, such
        as the number of children of the kept prefixes, forces a host-device synchronisation. With
        fixed shapes, tensors are padded to the largest possible number instead.
        """
        return self.device.type != "cpu"

    @property
    def item_leaves(self) -> Tensor:
        """Leaf of each item, ``[N]``."""
        return self.paths[:, -1] - self.first_leaf

    def find_leaves(self, items: Tensor, present: Tensor) -> LeafSets:
        """Return the sets of leaves of items, one set per row.

        Shapes: R rows, E entries per row.

        Args:
            items: Items of each row, int64 ``[R, E]``.
            present: Whether each entry counts, bool ``[R, E]``.
        """
        return LeafSets.build(self.paths[items, -1] - self.first_leaf, present, self.num_items)

    def nodes_above(self, leaves: Tensor, level: int) -> Tensor:
        """Return the node of a level above each leaf ``[R, E]``.

        Entries that stand for no leaf get the node above the last leaf.

        Shapes: R rows, E entries per row.
        """
        items = self.leaf_items[leaves.clamp_max(self.num_items - 1)]
        return self.paths[items, level]

    def find_covered(self, items: Tensor, present: Tensor) -> list[NodeSets]:
        """Find, for each level, the nodes whose items are all in a row of items.

        A row is the history of a user, for example.

        Shapes: R rows, E entries per row.

        Args:
            items: Items of each row, int64 ``[R, E]``.
            present: Whether each entry counts, bool ``[R, E]``.

        Returns:
            For each level, the set of such nodes of each row.
        """
        leaves = self.find_leaves(items, present)
        rows = torch.arange(len(items), device=items.device).unsqueeze(-1)
        found = []
        for level in range(self.num_levels):
            nodes = self.paths[items, level]
            starts, ends = self.leaf_starts[nodes], self.leaf_ends[nodes]
            # Only a node with at most as many items as the row can be covered, and there are few.
            possible = present & (ends - starts <= items.shape[1])
            if self.fixed_shapes:
                covered = possible & (leaves.count(rows, starts, ends) == ends - starts)
            else:
                covered = possible.clone()
                covered[possible] = (
                    leaves.count(rows.expand_as(nodes)[possible], starts[possible], ends[possible])
                    == (ends - starts)[possible]
                )
            found.append(NodeSets.build(nodes, covered, self.num_nodes))
        return found
