"""The trie model's walk down the trie: queries from states, scores of children, softmax.

Shapes: B users, W beams, C children, D model dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recgrit.ranking import NEVER
from recgrit.retrieval.frontier import Frontier, score_children, score_in_fixed_shapes
from recgrit.retrieval.leaves import NodeSets
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.node_vectors import NodeTable, look_up


@dataclass(frozen=True)
class TrieWalk:
    """A trie model after some histories; what a beam carries is the sum of its node vectors.

    Args:
        model: In eval mode.
        node_vectors: What ``model.nodes.table()`` returned, or ``model.nodes()``, ``[V, D]``.
        states: float32 ``[B, D]``, the last state of each history.
        seen: What each history holds all of, from ``model.find_seen``.
    """

    model: TrieRetriever
    node_vectors: NodeTable
    states: Tensor
    seen: list[NodeSets]

    @property
    def num_users(self) -> int:
        """B."""
        return len(self.states)

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Log-probabilities of the children given their node, ``[B, W, C]``; -inf for none.

        An only child is certain, and most nodes of the last levels are: where shapes may follow
        the data, it is neither asked for nor scored.
        """
        model, fixed_shapes = self.model, self.model.trie.fixed_shapes
        shape, counts = frontier.counts.shape, frontier.counts.flatten()
        is_open = counts > int(model.trie_softmax)
        asked = slice(None) if fixed_shapes else is_open.nonzero().squeeze(-1)
        queries = model.decoder(
            self.states.unsqueeze(1).expand(*shape, -1).flatten(0, 1)[asked],
            None if chosen is None else chosen.flatten(0, 1)[asked],
            level,
        )
        firsts, sizes = frontier.firsts.flatten()[asked], counts[asked]
        if fixed_shapes:
            scores = score_in_fixed_shapes(queries, frontier, self.node_vectors)
        else:
            scores = queries.new_full((len(counts), frontier.width), NEVER, dtype=torch.float32)
            scores[asked] = score_children(
                queries, firsts, sizes, self.node_vectors, frontier.width
            )
        scores[:, 0].masked_fill_(~is_open, 0.0)
        if self.seen:
            found = frontier.find(self.seen[level].nodes)
            # An item that a history holds twice counts once. What is no candidate adds 0 to one.
            known = (found >= 0) & self.seen[level].is_first
            added = torch.where(known, model.seen_score(level), 0.0)
            scores.view(self.num_users, -1).scatter_add_(1, found.clamp_min(0), added)
        if model.trie_softmax:
            scores = scores.log_softmax(dim=-1)
        else:
            others = model.score_other_codes(queries, firsts, sizes, level)
            together = torch.cat([scores[asked], others], dim=-1).log_softmax(dim=-1)
            scores[asked] = together[:, : frontier.width]
        scores[:, 0].masked_fill_(counts == 0, NEVER)
        return scores.view(*shape, -1)

    def extend(self, chosen: Tensor | None, nodes: Tensor, level: int) -> Tensor:
        """The sums ``[B, W, D]`` with the vectors of nodes ``[B, W]`` in them."""
        vectors = self.model.input_scale * look_up(self.node_vectors, nodes)
        return vectors if chosen is None else vectors + chosen
