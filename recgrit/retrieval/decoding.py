"""Beam search down the trie, and exact scores of every item, for any model that walks the trie.

Both walk the trie of the whole catalogue, so an ID that does not exist is never returned, and no
item is returned twice. A score is the model's log P(item | history). Neighbours change it to the
log of a mixture, plus an additive bonus. A prefix gets the mixture of the model's and the
neighbours' probabilities of all items below it, and the largest bonus below it. No item below a
prefix therefore scores more than the prefix. A filter removes items and does not renormalise the
others: prefixes without an allowed leaf are dropped on the way down.

Neighbours and filters affect few nodes. The search looks these nodes up instead of checking all
candidates. With fixed shapes, the search never waits for a result: no number is read back to the
host before the lists are complete.

Shapes: B users, W beams, C children, E entries, K listed items, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM
from recgrit.ranking import NEVER, Histories, Ranked
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.leaves import LeafSets, LeafWeights, merge_runs
from recgrit.retrieval.trie_tensors import TrieTensors


class Walk(Protocol):
    """A model's walk down the trie after the histories of B users, as a beam search uses it.

    The walk keeps a summary of the codes that each beam has chosen. The summary is the tensor
    ``chosen``, which is ``[B, W, ...]`` for W beams per user, or None at the root.
    """

    @property
    def num_users(self) -> int:
        """Number of users B."""

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Return the log-probability of each child given its parent node.

        Shapes: B users, W beams per user, C children per beam.

        Args:
            chosen: Summary of the codes chosen before, ``[B, W, ...]``. None at the root.
            frontier: Nodes of the beams and their children.
            level: Level of the children.

        Returns:
            Log-probabilities ``[B, W, C]``, with -inf for missing children.
        """

    def extend(self, chosen: Tensor | None, nodes: Tensor, level: int) -> Tensor:
        """Update ``chosen`` after each beam has chosen a node.

        Shapes: B users, W beams per user.

        Args:
            chosen: Summary of the codes chosen before, ``[B, W, ...]``. None at the root.
            nodes: Node that each beam has chosen ``[B, W]``.
            level: Level of the nodes.

        Returns:
            Summary that includes the new nodes, ``[B, W, ...]``.
        """


@dataclass(frozen=True)
class LeafFilter:
    """A filter that selects the leaves that may be recommended. Each leaf of the trie is an item.

    Args:
        excluded: Leaves to filter out, one set per user. They are among the allowed leaves. None
            filters out no leaves.
        allowed_before: Number of allowed leaves before each leaf position ``[N + 1]`` of N leaves.
            None allows all leaves.
    """

    excluded: LeafSets | None
    allowed_before: Tensor | None

    @classmethod
    def build(
        cls, trie: TrieTensors, *, excluded: Histories | None, allowed: Tensor | None
    ) -> LeafFilter | None:
        """Build a filter from items, or return None if there is nothing to filter out.

        Args:
            trie: Trie whose leaves are filtered.
            excluded: Items to filter out, one row per user. None filters out no user's items.
            allowed: Whether each item may be recommended to any user, bool ``[N]``. None allows all
                items.
        """
        if excluded is None and allowed is None:
            return None
        allowed_before, sets = None, None
        if allowed is not None:
            allowed_before = F.pad(allowed[trie.leaf_items].long().cumsum(0), (1, 0))
        if excluded is not None:
            present = excluded.present
            if allowed is not None:
                present = present & allowed[excluded.items]
            sets = trie.find_leaves(excluded.items, present)
        return cls(sets, allowed_before)

    def passes(self, starts: Tensor, ends: Tensor) -> Tensor:
        """Return whether any leaf of each range may be recommended, bool ``[B, C]``.

        Shapes: B users, C ranges per user.

        Args:
            starts: First leaf of each range ``[B, C]``.
            ends: Position after the last leaf of each range ``[B, C]``.
        """
        num_allowed = ends - starts
        if self.allowed_before is not None:
            num_allowed = self.allowed_before[ends] - self.allowed_before[starts]
        if self.excluded is not None:
            users = torch.arange(len(starts), device=starts.device).unsqueeze(-1)
            num_allowed = num_allowed - self.excluded.count(users, starts, ends)
        return num_allowed > 0


@torch.inference_mode()
def beam_search(
    trie: TrieTensors,
    walk: Walk,
    *,
    beam_width: int,
    top_k: int,
    neighbours: LeafWeights | None = None,
    leaf_filter: LeafFilter | None = None,
) -> Ranked:
    """Find the items with the highest scores by beam search.

    With ``beam_width`` ≥ ``top_k``, the search always finds min(top_k, allowed items) items,
    because each kept prefix has at least one allowed leaf.

    Args:
        trie: Trie of the whole catalogue.
        walk: Walk of a model after the histories.
        beam_width: Number of prefixes W to keep at each level.
        top_k: Number of items K to return, at most W.
        neighbours: Mixture weights and additive bonuses of leaves. None uses the model alone.
        leaf_filter: Filter of the leaves that may be recommended. None allows all.

    Raises:
        ValueError: ``top_k`` exceeds ``beam_width``.
    """
    if top_k > beam_width:
        raise ValueError(f"top_k ({top_k}) must not exceed beam_width ({beam_width}).")
    nodes = torch.zeros(walk.num_users, 1, dtype=torch.long, device=trie.device)
    scores = torch.zeros(walk.num_users, 1, device=trie.device)
    chosen: Tensor | None = None
    for level in range(trie.num_levels):
        width = trie.most_children[level] if trie.fixed_shapes else None
        # At level 0 all users are at the root.
        frontier = Frontier.build(trie.child_starts, nodes, width, shared=level == 0)
        log_probs = walk.expand(chosen, frontier, level)
        log_probs_of_prefixes = (scores.unsqueeze(-1) + log_probs).flatten(1)
        candidates = log_probs_of_prefixes
        if neighbours is not None:
            given = weigh_candidates(trie, frontier, neighbours, level)
            candidates = neighbours.mix(candidates, *given)
        if leaf_filter is not None:
            candidates = _drop_filtered(trie, candidates, frontier, leaf_filter, level)
        best = candidates.topk(min(beam_width, candidates.shape[1]), dim=-1)
        scores = log_probs_of_prefixes.gather(1, best.indices)
        # If fewer prefixes than beams are left, the spare beams move to a leaf, which has no
        # children. Beams with NaN, which too large weights produce, move there too. The code that
        # lists the items refuses NaN.
        nodes = frontier.nodes_of(best.indices)
        nodes = nodes.masked_fill(~(best.values > NEVER), trie.num_nodes - 1)
        if level + 1 == trie.num_levels:
            break
        if chosen is not None:
            kept = (best.indices // frontier.width).unsqueeze(-1)
            chosen = chosen.gather(1, kept.expand(-1, -1, chosen.shape[-1]))
        chosen = walk.extend(chosen, nodes, level)
    items = trie.leaf_items[nodes - trie.first_leaf]
    items = items.masked_fill(best.values == NEVER, NO_ITEM)
    missing = max(0, top_k - items.shape[1])  # A small trie may have fewer than top_k candidates.
    return Ranked(
        items=F.pad(items[:, :top_k], (0, missing), value=NO_ITEM),
        scores=F.pad(best.values[:, :top_k], (0, missing), value=NEVER),
    )


@torch.inference_mode()
def score_all_items(
    trie: TrieTensors, walk: Walk, *, neighbours: LeafWeights | None = None
) -> Tensor:
    """Return the score of every item ``[B, N]``, computed in one pass over the trie's levels.

    The pass costs one query per user and inner node. It suits small catalogues and checks of the
    beam search.

    Shapes: B users, N items.

    Args:
        trie: Trie of the whole catalogue.
        walk: Walk of a model after the histories.
        neighbours: Mixture weights and additive bonuses of leaves. None uses the model alone.
    """
    scores = torch.zeros(walk.num_users, 1, device=trie.device)
    nodes = torch.zeros(walk.num_users, 1, dtype=torch.long, device=trie.device)
    chosen: Tensor | None = None
    for level in range(trie.num_levels):
        frontier = Frontier.build(trie.child_starts, nodes, shared=True)
        log_probs = walk.expand(chosen, frontier, level)
        filled = frontier.present[0]
        # Nodes are in breadth-first order, so the existing children are the next level, in order.
        scores = (scores.unsqueeze(-1) + log_probs)[:, filled]
        nodes = frontier.children[:1, filled].expand(walk.num_users, -1)
        parents = filled.nonzero()[:, 0]
        chosen = walk.extend(None if chosen is None else chosen[:, parents], nodes, level)
    if neighbours is not None:
        given = neighbours.leaves.long(), neighbours.weights, neighbours.bonuses
        scores = neighbours.mix(scores, *given)
    by_item = torch.empty_like(scores)
    by_item[:, trie.leaf_items] = scores
    return by_item


def weigh_candidates(
    trie: TrieTensors, frontier: Frontier, leaf_weights: LeafWeights, level: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of mixture weights and the largest bonus of the leaves below each candidate.

    Shapes: B users, E entries per user.

    Args:
        trie: Trie of the whole catalogue.
        frontier: Candidates of this level.
        leaf_weights: Mixture weights and additive bonuses of leaves.
        level: Level of the candidates.

    Returns:
        ``columns`` int64 ``[B, E]``, the candidate above each leaf or -1 if there is none; and
        weights and bonuses ``[B, E]``. One entry of each candidate has its whole weight and bonus,
        and its other entries have 0.
    """
    above = trie.nodes_above(leaf_weights.leaves, level)
    weights = merge_runs(above, leaf_weights.weights)
    bonuses = merge_runs(above, leaf_weights.bonuses, by="amax")
    return frontier.find(above), weights, bonuses


def _drop_filtered(
    trie: TrieTensors,
    candidates: Tensor,
    frontier: Frontier,
    leaf_filter: LeafFilter,
    level: int,
) -> Tensor:
    """Return candidates ``[B, W * C]`` with -inf for prefixes without an allowed leaf.

    Shapes: B users, W beams per user, C children per beam.
    """
    if leaf_filter.allowed_before is not None:
        below = frontier.children.flatten(1)
        passes = leaf_filter.passes(trie.leaf_starts[below], trie.leaf_ends[below])
        return candidates.masked_fill(~passes, NEVER)
    assert leaf_filter.excluded is not None
    above = trie.nodes_above(leaf_filter.excluded.leaves, level)
    dropped = ~leaf_filter.passes(trie.leaf_starts[above], trie.leaf_ends[above])
    found = frontier.find(above)
    # The minimum with infinity leaves a candidate unchanged.
    limits = candidates.new_full(found.shape, -NEVER).masked_fill_(dropped & (found >= 0), NEVER)
    return candidates.scatter_reduce(1, found.clamp_min(0), limits, "amin")
