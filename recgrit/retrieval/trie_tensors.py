"""The trie of a catalogue as tensors, and what items and leaves are in it.

Shapes: V nodes, N items, L levels, R rows, E entries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recgrit.retrieval.leaves import LeafSets, NodeSets
from recgrit.semantic_ids.trie import Trie


class TrieTensors(nn.Module):
    """The arrays of a trie on the device of the module that holds them.

    They are derived from the ID table and so are not in a checkpoint.

    Args:
        trie: The trie of the whole catalogue.
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
        # Of any node, by the level of the children.
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
        """N."""
        return self.paths.shape[0]

    @property
    def num_nodes(self) -> int:
        """V."""
        return len(self.leaf_ends)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.paths.device

    @property
    def fixed_shapes(self) -> bool:
        """Whether no shape may depend on what was computed.

        An accelerator would have to be waited for to know such a shape, with all that is queued.
        """
        return self.device.type != "cpu"

    @property
    def item_leaves(self) -> Tensor:
        """The leaf of each item, ``[N]``."""
        return self.paths[:, -1] - self.first_leaf

    def find_leaves(self, items: Tensor, present: Tensor) -> LeafSets:
        """The leaves of items ``[R, E]``, of which those ``present`` ``[R, E]`` are meant."""
        return LeafSets.build(self.paths[items, -1] - self.first_leaf, present, self.num_items)

    def nodes_above(self, leaves: Tensor, level: int) -> Tensor:
        """The nodes of a level above leaves ``[R, E]``; above what is no leaf, that of the last."""
        items = self.leaf_items[leaves.clamp_max(self.num_items - 1)]
        return self.paths[items, level]

    def find_covered(self, items: Tensor, present: Tensor) -> list[NodeSets]:
        """The nodes all of whose items are among items ``[R, E]``, for each level.

        Args:
            items: int64 ``[R, E]``.
            present: bool ``[R, E]``, which of them are meant.
        """
        leaves = self.find_leaves(items, present)
        rows = torch.arange(len(items), device=items.device).unsqueeze(-1)
        found = []
        for level in range(self.num_levels):
            nodes = self.paths[items, level]
            starts, ends = self.leaf_starts[nodes], self.leaf_ends[nodes]
            # Few nodes have so few items that a row can hold them all.
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
