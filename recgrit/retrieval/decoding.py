"""Beam search down the trie, and exact scores of every item: for any model that walks the trie.

Both walk the trie of the whole catalogue, so an ID that does not exist cannot come out, and no item
comes out twice. A score is log P(item | history) as the model has it. Counted neighbours change it
to the log of a mixture, plus an additive bonus. A prefix has the mixture of its two probabilities
and the largest bonus below it: no item below a prefix scores more than the prefix. A filter removes
items and never renormalises what is left: prefixes without an allowed leaf are dropped on the way
down.

What neighbours and filters change is looked up from the few nodes above their items, not from the
many candidates. Where shapes are fixed, the search never waits for what was computed: no number is
read back before the lists are.

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
    """A model on its way down the trie after some histories.

    What a beam carries of the codes chosen so far is its entry of a tensor ``[B, W, ...]``, in the
    methods below ``chosen``; None stands for no code yet.
    """

    @property
    def num_users(self) -> int:
        """B."""

    def expand(self, chosen: Tensor | None, frontier: Frontier, level: int) -> Tensor:
        """Log-probabilities of the children given their node, ``[B, W, C]``; -inf for none."""

    def extend(self, chosen: Tensor | None, nodes: Tensor, level: int) -> Tensor:
        """What beams carry on that choose nodes ``[B, W]`` of a level, ``[B, W, ...]``."""


@dataclass(frozen=True)
class LeafFilter:
    """Which leaves may come out.

    Args:
        excluded: Leaves to keep out, one set per user; of those that are allowed.
        allowed_before: ``[N + 1]``, allowed leaves among the first ones; None if all are allowed.
    """

    excluded: LeafSets | None
    allowed_before: Tensor | None

    @classmethod
    def build(
        cls, trie: TrieTensors, *, excluded: Histories | None, allowed: Tensor | None
    ) -> LeafFilter | None:
        """A filter from items, or None if it would let everything through.

        Args:
            trie: Whose leaves it is for.
            excluded: Items to keep out, one row per user.
            allowed: bool ``[N]``, items that may come out at all.
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
        """Whether any leaf from ``starts`` to ``ends`` ``[B, C]`` may come out, bool ``[B, C]``."""
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
    """The best items by beam search.

    With ``beam_width`` ≥ ``top_k``, min(top_k, allowed items) items always come back: each kept
    prefix has at least one allowed leaf.

    Args:
        trie: Of the whole catalogue.
        walk: A model after the histories.
        beam_width: W, prefixes kept at each level.
        top_k: K, items wanted; at most W.
        neighbours: Probabilities to mix in; None for none.
        leaf_filter: Which items may come out; None for all.

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
        # At first all are at the root.
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
        # Where fewer prefixes are left than beams, the spare beams end at a leaf: no children. So
        # do those of NaN, which weights that are too large give; whoever lists items refuses them.
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
    missing = max(0, top_k - items.shape[1])  # A small trie has fewer candidates than asked for.
    return Ranked(
        items=F.pad(items[:, :top_k], (0, missing), value=NO_ITEM),
        scores=F.pad(best.values[:, :top_k], (0, missing), value=NEVER),
    )


@torch.inference_mode()
def score_all_items(
    trie: TrieTensors, walk: Walk, *, neighbours: LeafWeights | None = None
) -> Tensor:
    """The score of every item, ``[B, N]``: one pass over the trie's levels.

    Costs one query per user and inner node: for small catalogues, and as the check on the beam.
    Arguments as for `beam_search`.
    """
    scores = torch.zeros(walk.num_users, 1, device=trie.device)
    nodes = torch.zeros(walk.num_users, 1, dtype=torch.long, device=trie.device)
    chosen: Tensor | None = None
    for level in range(trie.num_levels):
        frontier = Frontier.build(trie.child_starts, nodes, shared=True)
        log_probs = walk.expand(chosen, frontier, level)
        filled = frontier.present[0]
        # Breadth-first order: what is kept is the next level, in order.
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
    """What candidates are given: all the weights below each, and the largest bonus.

    Returns:
        ``columns`` int64 ``[B, E]``, the candidate above each leaf, -1 for none; and weights and
        bonuses ``[B, E]``, all that a candidate has at one of its entries.
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
    """Candidates ``[B, W * C]`` with -inf for prefixes below which nothing may come out."""
    if leaf_filter.allowed_before is not None:
        below = frontier.children.flatten(1)
        passes = leaf_filter.passes(trie.leaf_starts[below], trie.leaf_ends[below])
        return candidates.masked_fill(~passes, NEVER)
    assert leaf_filter.excluded is not None
    above = trie.nodes_above(leaf_filter.excluded.leaves, level)
    dropped = ~leaf_filter.passes(trie.leaf_starts[above], trie.leaf_ends[above])
    found = frontier.find(above)
    # The smaller of a candidate and infinity is the candidate.
    limits = candidates.new_full(found.shape, -NEVER).masked_fill_(dropped & (found >= 0), NEVER)
    return candidates.scatter_reduce(1, found.clamp_min(0), limits, "amin")
