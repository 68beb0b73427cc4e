"""The trie model's walk down the trie: queries from states, scores of children, and softmax.

Shapes: B users, W beams, C children, V nodes, D model dimensions.
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
    """The walk of a trie model after the histories of B users.

    A beam's ``chosen`` entry is the sum of the vectors of its nodes.

    Shapes: V nodes, D model dimensions.

    Args:
        model: Retriever in eval mode.
        node_vectors: Node vectors from ``model.nodes.table()``, or all vectors ``[V, D]`` from
            ``model.nodes()``.
        states: Last state of each history, float32 ``[B, D]``.
        seen: Nodes of each level whose items are all in a history, from ``model.find_seen``.
    """

    model: TrieRetriever
    node_vectors: NodeTable
    states: Tensor
    seen: list[NodeSets]

    @property
    def num_users(self) -> int:
        """Number of users B."""
        return len(self.states)

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Return the log-probability of each child given its parent node.

        A child without siblings has probability 1, and most nodes of the last levels are such
        children. If shapes may depend on the data, such a child is not scored.

        Shapes: B users, W beams per user, D model dimensions, C children per beam.

        Args:
            chosen: Sums of the vectors of the chosen nodes ``[B, W, D]``. None at the root.
            frontier: Nodes of the beams and their children.
            level: Level of the children.

        Returns:
            Log-probabilities ``[B, W, C]``, with -inf for missing children.
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
            # Repeated nodes count once. A node that is no candidate adds 0 to candidate 0.
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
        """Add the vectors of newly chosen nodes to the sums of chosen node vectors.

        Shapes: B users, W beams per user, D model dimensions.

        Args:
            chosen: Sums of the vectors of the nodes chosen before ``[B, W, D]``. None at the root.
            nodes: Node that each beam has chosen ``[B, W]``.
            level: Level of the nodes.

        Returns:
            Sums ``[B, W, D]``.
        """
        vectors = self.model.input_scale * look_up(self.node_vectors, nodes)
        return vectors if chosen is None else vectors + chosen
