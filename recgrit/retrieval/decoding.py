"""From a state to ranked items: beam search down the trie, and exact scores of every item.

Both walk the trie of the whole catalogue, so an ID that does not exist cannot come out, and no
item twice. A score is log P(item | history) under that trie, mixed with what the neighbours say
where there are any: a prefix has the mixture of its two probabilities, so the search keeps the most
probable prefixes still. A filter removes items and never renormalises what is left. While
descending, prefixes without an allowed leaf are dropped: the leaves below a node are a range, how
many of them are excluded is two binary searches, and how many are allowed at all a difference of
two sums.

Shapes: B users, W beams, C children, L levels, V nodes, N items, D model dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM
from recgrit.retrieval.leaves import LeafSets, LeafWeights, NodeSets
from recgrit.retrieval.model import TrieRetriever, ragged_index
from recgrit.retrieval.ranking import NEVER, Histories, Ranked

# With this many rows a node, one product per node beats gathering every child's vector.
MIN_GROUP = 8


@dataclass(frozen=True)
class LeafFilter:
    """Which leaves may come out.

    Args:
        excluded: Leaves to keep out, one set per user; of those that are allowed.
        allowed_before: int64 ``[N + 1]``, allowed leaves among the first ones.
    """

    excluded: LeafSets | None
    allowed_before: Tensor

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
        if allowed is None:
            allowed_before = torch.arange(model.num_items + 1, device=model.leaf_items.device)
        else:
            allowed_before = F.pad(allowed[model.leaf_items].long().cumsum(0), (1, 0))
        sets = None
        if excluded is not None:
            present = excluded.present
            if allowed is not None:
                present = present & allowed[excluded.items]
            sets = model.find_leaves(excluded.items, present)
        return cls(sets, allowed_before)

    @classmethod
    def from_leaves(cls, leaves: Tensor, present: Tensor, num_leaves: int) -> LeafFilter:
        """A filter that keeps out leaves ``[B, E]``, of which those ``present`` are meant."""
        everything = torch.arange(num_leaves + 1, device=leaves.device)
        return cls(LeafSets.build(leaves, present, num_leaves), everything)

    def passes(self, starts: Tensor, ends: Tensor) -> Tensor:
        """Whether any leaf from ``starts`` to ``ends`` ``[B, C]`` may come out, bool ``[B, C]``."""
        num_allowed = self.allowed_before[ends] - self.allowed_before[starts]
        if self.excluded is not None:
            users = torch.arange(len(starts), device=starts.device).unsqueeze(-1)
            num_allowed = num_allowed - self.excluded.count(users, starts, ends)
        return num_allowed > 0


@torch.inference_mode()
def beam_search(
    model: TrieRetriever,
    states: Tensor,
    node_vectors: Tensor,
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
        node_vectors: ``[V, D]``, what ``model.nodes()`` returned.
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
        children, log_probs = _expand(model, states, chosen, nodes, node_vectors, seen, level)
        log_probs_of_prefixes = (scores.unsqueeze(-1) + log_probs).flatten(1)
        candidates = log_probs_of_prefixes
        children = children.flatten(1)
        if neighbours is not None or leaf_filter is not None:
            below = children.clamp_min(0)  # What is no child has no score to lose.
            starts, ends = model.leaf_starts[below], model.leaf_ends[below]
            if neighbours is not None:
                candidates = neighbours.mix(candidates, starts, ends)
            if leaf_filter is not None:
                candidates = candidates.masked_fill(~leaf_filter.passes(starts, ends), NEVER)
        best = candidates.topk(min(beam_width, candidates.shape[1]), dim=-1)
        scores = log_probs_of_prefixes.gather(1, best.indices)
        # Where fewer prefixes are left than beams, the spare beams end at a leaf: no children.
        nodes = children.gather(1, best.indices)
        nodes = nodes.masked_fill(best.values == NEVER, len(model.leaf_ends) - 1)
        kept_prefix = best.indices // log_probs.shape[-1]
        vectors = model.input_scale * F.embedding(nodes, node_vectors)
        if chosen is not None:
            index = kept_prefix.unsqueeze(-1).expand(-1, -1, chosen.shape[-1])
            vectors = vectors + chosen.gather(1, index)
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
    node_vectors: Tensor,
    *,
    seen: list[NodeSets],
    neighbours: LeafWeights | None = None,
) -> Tensor:
    """The log P(item | history) of every item, ``[B, N]``: one pass over the trie's levels.

    Costs one query per user and inner node: for small catalogues, and as the check on the beam.
    Arguments as for `beam_search`.
    """
    num_users = len(states)
    scores = torch.zeros(num_users, 1, device=states.device)
    nodes = torch.zeros(1, dtype=torch.long, device=states.device)
    chosen: Tensor | None = None
    for level in range(model.num_levels):
        children, log_probs = _expand(
            model, states, chosen, nodes.expand(num_users, -1), node_vectors, seen, level
        )
        filled = children[0] >= 0  # Breadth-first order: kept entries are the next level, in order.
        scores = (scores.unsqueeze(-1) + log_probs)[:, filled]
        parents = filled.nonzero()[:, 0]
        nodes = children[0][filled]
        vectors = model.input_scale * F.embedding(nodes, node_vectors).expand(num_users, -1, -1)
        chosen = vectors if chosen is None else vectors + chosen[:, parents]
    if neighbours is not None:
        leaves = torch.arange(model.num_items, device=scores.device).expand_as(scores)
        scores = neighbours.mix(scores, leaves, leaves + 1)
    by_item = torch.empty_like(scores)
    by_item[:, model.leaf_items] = scores
    return by_item


def _expand(
    model: TrieRetriever,
    states: Tensor,
    chosen: Tensor | None,
    nodes: Tensor,
    node_vectors: Tensor,
    seen: list[NodeSets],
    level: int,
) -> tuple[Tensor, Tensor]:
    """Children of nodes ``[B, W]`` and their log-probabilities, both ``[B, W, C]``.

    C is the largest number of children here; the rest is filled with node -1 and -inf. An only
    child is certain: it is neither asked for nor scored, and most nodes of the last levels are.
    """
    starts = model.child_starts[nodes].flatten()
    counts = model.child_starts[nodes + 1].flatten() - starts
    size = (len(counts), max(1, int(counts.max())))
    children = starts.new_full(size, -1)
    log_probs = states.new_full(size, NEVER, dtype=torch.float32)
    open_ = (counts > int(model.trie_softmax)).nonzero().squeeze(-1)
    if model.trie_softmax:
        certain = (counts == 1).nonzero().squeeze(-1)
        children[certain, 0] = model.child_nodes[starts[certain]]
        log_probs[certain, 0] = 0.0
    if len(open_):
        users = open_ // nodes.shape[1]
        queries = model.decoder(
            states[users], None if chosen is None else chosen.flatten(0, 1)[open_], level
        )
        below, scores = _score_children(
            model, queries, nodes.flatten()[open_], node_vectors, size[1]
        )
        if seen:
            scores += model.score_seen(below.clamp_min(0), users.unsqueeze(-1), seen[level], level)
        candidates = scores
        if not model.trie_softmax:
            candidates = model.add_other_codes(scores, queries, nodes.flatten()[open_], level)
        children[open_] = below
        log_probs[open_] = candidates.log_softmax(dim=-1)[:, : size[1]]
    return children.view(*nodes.shape, -1), log_probs.view(*nodes.shape, -1)


def _score_children(
    model: TrieRetriever, queries: Tensor, nodes: Tensor, node_vectors: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Children of nodes ``[R]`` and their scores by queries ``[R, D]``, both ``[R, C]``."""
    starts = model.child_starts[nodes]
    counts = model.child_starts[nodes + 1] - starts
    scores = queries.new_full((len(nodes), width), NEVER, dtype=torch.float32)
    children = nodes.new_full((len(nodes), width), -1)
    standing_at, row_order, group_sizes = _group(nodes)
    if len(standing_at) * MIN_GROUP <= len(queries):
        # Rows that stand at one node share its children: one matrix product a node.
        for node, group in zip(standing_at, row_order.split(group_sizes), strict=True):
            below = model.child_nodes[model.child_starts[node] : model.child_starts[node + 1]]
            scores[group, : len(below)] = queries[group] @ F.embedding(below, node_vectors).T
            children[group, : len(below)] = below
    else:
        owners, columns, flat = ragged_index(starts, counts)
        below = model.child_nodes[flat]
        flat_scores = (F.embedding(below, node_vectors) * queries[owners]).sum(dim=-1)
        scores.index_put_((owners, columns), flat_scores)
        children.index_put_((owners, columns), below)
    return children, scores


def _group(nodes: Tensor) -> tuple[list[int], Tensor, list[int]]:
    """Different nodes, the rows sorted by node, and how many rows stand at each node."""
    ordered, rows = nodes.sort(stable=True)
    different, counts = ordered.unique_consecutive(return_counts=True)
    return different.tolist(), rows, counts.tolist()
