"""From a state to ranked items: beam search down the trie, and exact scores of every item.

Both walk the trie of the whole catalogue, so an ID that does not exist cannot come out, and no
item twice. A score is log P(item | history) under that trie, mixed with what the neighbours say
where there are any, and boosted by it if the model does. A prefix has the mixture of its two
probabilities and the boost of all that the neighbours say below it: no item below it scores more.
A filter removes items and never renormalises what is left: prefixes without an allowed leaf are
dropped while descending.

What histories, neighbours and filters change is looked up from the few nodes above their items, not
from the many candidates. Where the model asks for fixed shapes, the search never waits for what was
computed: no number is read back before the lists are.

Shapes: B users, W beams, C children, L levels, V nodes, N items, E entries, D model dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM
from recgrit.retrieval.frontier import Frontier, score_children, score_in_fixed_shapes
from recgrit.retrieval.leaves import LeafSets, LeafWeights, NodeSets, merge_runs
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.node_vectors import NodeTable, look_up
from recgrit.retrieval.ranking import NEVER, Histories, Ranked


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
        cls, model: TrieRetriever, *, excluded: Histories | None, allowed: Tensor | None
    ) -> LeafFilter | None:
        """A filter from items, or None if it would let everything through.

        Args:
            model: Whose trie it is for.
            excluded: Items to keep out, one row per user.
            allowed: bool ``[N]``, items that may come out at all.
        """
        if excluded is None and allowed is None:
            return None
        allowed_before, sets = None, None
        if allowed is not None:
            allowed_before = F.pad(allowed[model.leaf_items].long().cumsum(0), (1, 0))
        if excluded is not None:
            present = excluded.present
            if allowed is not None:
                present = present & allowed[excluded.items]
            sets = model.find_leaves(excluded.items, present)
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
    model: TrieRetriever,
    states: Tensor,
    node_vectors: NodeTable,
    *,
    beam_width: int,
    top_k: int,
    seen: list[NodeSets],
    neighbours: LeafWeights | None = None,
    leaf_filter: LeafFilter | None = None,
) -> Ranked:
    """The best items by beam search.

    With ``beam_width`` ≥ ``top_k``, min(top_k, allowed items) items always come back: each kept
    prefix has at least one allowed leaf.

    Args:
        model: In eval mode.
        states: ``[B, D]``, the last state of each history.
        node_vectors: What ``model.nodes.table()`` returned, or ``model.nodes()``, ``[V, D]``.
        beam_width: W, prefixes kept at each level.
        top_k: K, items wanted; at most W.
        seen: What each history holds all of, from ``model.find_seen``.
        neighbours: Probabilities to mix in, from ``model.weigh_neighbours``; None for none.
        leaf_filter: Which items may come out; None for all.

    Raises:
        ValueError: ``top_k`` exceeds ``beam_width``.
    """
    if top_k > beam_width:
        raise ValueError(f"top_k ({top_k}) must not exceed beam_width ({beam_width}).")
    num_users = len(states)
    nodes = torch.zeros(num_users, 1, dtype=torch.long, device=states.device)
    scores = torch.zeros(num_users, 1, device=states.device)
    chosen: Tensor | None = None
    for level in range(model.num_levels):
        width = model.most_children[level] if model.fixed_shapes else None
        # At first all are at the root.
        frontier = Frontier.build(model.child_starts, nodes, width, shared=level == 0)
        log_probs = expand(model, states, chosen, nodes, frontier, node_vectors, seen, level)
        log_probs_of_prefixes = (scores.unsqueeze(-1) + log_probs).flatten(1)
        candidates = log_probs_of_prefixes
        if neighbours is not None:
            above = model.nodes_above(neighbours.leaves, level)
            weights = merge_runs(above, neighbours.weights)
            candidates = neighbours.mix(candidates, frontier.find(above), weights)
        if leaf_filter is not None:
            candidates = _drop_filtered(model, candidates, frontier, leaf_filter, level)
        best = candidates.topk(min(beam_width, candidates.shape[1]), dim=-1)
        scores = log_probs_of_prefixes.gather(1, best.indices)
        # Where fewer prefixes are left than beams, the spare beams end at a leaf: no children.
        nodes = frontier.nodes_of(best.indices)
        nodes = nodes.masked_fill(best.values == NEVER, len(model.leaf_ends) - 1)
        vectors = model.input_scale * look_up(node_vectors, nodes)
        if chosen is not None:
            kept = (best.indices // frontier.width).unsqueeze(-1)
            vectors = vectors + chosen.gather(1, kept.expand(-1, -1, chosen.shape[-1]))
        chosen = vectors
    items = model.leaf_items[nodes - model.first_leaf]
    items = items.masked_fill(best.values == NEVER, NO_ITEM)
    missing = max(0, top_k - items.shape[1])  # A small trie has fewer candidates than asked for.
    return Ranked(
        items=F.pad(items[:, :top_k], (0, missing), value=NO_ITEM),
        scores=F.pad(best.values[:, :top_k], (0, missing), value=NEVER),
    )


@torch.inference_mode()
def score_all_items(
    model: TrieRetriever,
    states: Tensor,
    node_vectors: NodeTable,
    *,
    seen: list[NodeSets],
    neighbours: LeafWeights | None = None,
) -> Tensor:
    """The score of every item, ``[B, N]``: one pass over the trie's levels.

    Costs one query per user and inner node: for small catalogues, and as the check on the beam.
    Arguments as for `beam_search`.
    """
    num_users = len(states)
    scores = torch.zeros(num_users, 1, device=states.device)
    nodes = torch.zeros(num_users, 1, dtype=torch.long, device=states.device)
    chosen: Tensor | None = None
    for level in range(model.num_levels):
        frontier = Frontier.build(model.child_starts, nodes, shared=True)
        log_probs = expand(model, states, chosen, nodes, frontier, node_vectors, seen, level)
        filled = frontier.present[0]
        # Breadth-first order: what is kept is the next level, in order.
        scores = (scores.unsqueeze(-1) + log_probs)[:, filled]
        parents = filled.nonzero()[:, 0]
        nodes = frontier.children[:1, filled].expand(num_users, -1)
        vectors = model.input_scale * look_up(node_vectors, nodes)
        chosen = vectors if chosen is None else vectors + chosen[:, parents]
    if neighbours is not None:
        scores = neighbours.mix(scores, neighbours.leaves.long(), neighbours.weights)
    by_item = torch.empty_like(scores)
    by_item[:, model.leaf_items] = scores
    return by_item


def expand(
    model: TrieRetriever,
    states: Tensor,
    chosen: Tensor | None,
    nodes: Tensor,
    frontier: Frontier,
    node_vectors: NodeTable,
    seen: list[NodeSets],
    level: int,
) -> Tensor:
    """Log-probabilities of the children of nodes ``[B, W]``, ``[B, W, C]``; -inf for none.

    An only child is certain, and most nodes of the last levels are: where shapes may follow the
    data, it is neither asked for nor scored.
    """
    counts = frontier.counts.flatten()
    is_open = counts > int(model.trie_softmax)
    asked = slice(None) if model.fixed_shapes else is_open.nonzero().squeeze(-1)
    queries = model.decoder(
        states.unsqueeze(1).expand(*nodes.shape, -1).flatten(0, 1)[asked],
        None if chosen is None else chosen.flatten(0, 1)[asked],
        level,
    )
    firsts, sizes = frontier.firsts.flatten()[asked], counts[asked]
    if model.fixed_shapes:
        scores = score_in_fixed_shapes(queries, frontier, node_vectors)
    else:
        scores = states.new_full((len(counts), frontier.width), NEVER, dtype=torch.float32)
        scores[asked] = score_children(queries, firsts, sizes, node_vectors, frontier.width)
    scores[:, 0].masked_fill_(~is_open, 0.0)
    if seen:
        found = frontier.find(seen[level].nodes)
        # An item that a history holds twice is known once. What is no candidate adds 0 to one.
        known = (found >= 0) & seen[level].is_first
        added = torch.where(known, model.seen_score(level), 0.0)
        scores.view(len(nodes), -1).scatter_add_(1, found.clamp_min(0), added)
    if model.trie_softmax:
        scores = scores.log_softmax(dim=-1)
    else:
        others = model.score_other_codes(queries, firsts, sizes, level)
        together = torch.cat([scores[asked], others], dim=-1).log_softmax(dim=-1)
        scores[asked] = together[:, : frontier.width]
    scores[:, 0].masked_fill_(counts == 0, NEVER)
    return scores.view(*nodes.shape, -1)


def _drop_filtered(
    model: TrieRetriever,
    candidates: Tensor,
    frontier: Frontier,
    leaf_filter: LeafFilter,
    level: int,
) -> Tensor:
    """Candidates ``[B, W * C]`` with -inf for prefixes below which nothing may come out."""
    if leaf_filter.allowed_before is not None:
        below = frontier.children.flatten(1)
        passes = leaf_filter.passes(model.leaf_starts[below], model.leaf_ends[below])
        return candidates.masked_fill(~passes, NEVER)
    assert leaf_filter.excluded is not None
    above = model.nodes_above(leaf_filter.excluded.leaves, level)
    dropped = ~leaf_filter.passes(model.leaf_starts[above], model.leaf_ends[above])
    found = frontier.find(above)
    # The smaller of a candidate and infinity is the candidate.
    limits = candidates.new_full(found.shape, -NEVER).masked_fill_(dropped & (found >= 0), NEVER)
    return candidates.scatter_reduce(1, found.clamp_min(0), limits, "amin")
