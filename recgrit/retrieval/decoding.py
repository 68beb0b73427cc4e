"""From a state to ranked items: beam search down the trie, and exact scores of every item.

Both walk the trie of the whole catalogue, so an ID that does not exist cannot come out, and no
item twice. A score is log P(item | history) under that trie, mixed with what the neighbours say
where there are any: a prefix has the mixture of its two probabilities, so the search keeps the most
probable prefixes still. A filter removes items and never renormalises what is left: prefixes
without an allowed leaf are dropped while descending.

What a step costs. The children of a node are a range of node numbers, so their vectors lie side by
side: nodes at which many beams stand are one matrix product each, all others together one sampled
product (the dot products of a sparse pattern), which reads each vector once and copies none. What
histories, neighbours and filters change is looked up from the few nodes above their items, not from
the many candidates.

Shapes: B users, W beams, C children, L levels, V nodes, N items, E entries, D model dimensions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM
from recgrit.retrieval.leaves import LeafSets, LeafWeights, NodeSets, merge_runs
from recgrit.retrieval.model import TrieRetriever, ragged_index
from recgrit.retrieval.node_vectors import NodeLookup, NodeTable, look_up
from recgrit.retrieval.ranking import NEVER, Histories, Ranked

# With so many scores a node, a matrix product of its own beats a share in the sampled one.
MIN_SCORES_OF_A_NODE = 1024


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


@dataclass(frozen=True)
class Frontier:
    """The nodes that beams stand at; their children, side by side, are the candidates.

    Candidate ``beam * width + i`` of a user is child i of the node of that beam; those behind a
    node's last child are none.

    Args:
        firsts: ``[B, W]``, the first child of each node.
        counts: ``[B, W]``, how many children it has.
        width: C, the most children of any node here.
    """

    firsts: Tensor
    counts: Tensor
    width: int

    @classmethod
    def build(cls, child_starts: Tensor, nodes: Tensor) -> Frontier:
        """The children of nodes ``[B, W]`` of a trie with these ``child_starts``."""
        firsts = child_starts[nodes]
        counts = child_starts[nodes + 1] - firsts
        return cls(firsts, counts, max(1, int(counts.max())))

    @property
    def present(self) -> Tensor:
        """Bool ``[B, W, C]``, which candidates there are."""
        columns = torch.arange(self.width, device=self.counts.device)
        return columns < self.counts.unsqueeze(-1)

    @property
    def children(self) -> Tensor:
        """The nodes that all candidates are, ``[B, W, C]``; the root where there is none."""
        columns = torch.arange(self.width, device=self.counts.device)
        return (self.firsts.unsqueeze(-1) + columns).masked_fill_(~self.present, 0)

    def find(self, nodes: Tensor) -> Tensor:
        """Which candidates nodes ``[B, E]`` are, int64 ``[B, E]``; -1 for those that are none."""
        firsts, beams = self.firsts.contiguous().sort(dim=-1)
        nodes = nodes.to(firsts.dtype)
        place = (torch.searchsorted(firsts, nodes, right=True) - 1).clamp_min_(0)
        children = nodes - firsts.gather(1, place)
        beams = beams.gather(1, place)
        inside = (children >= 0) & (children < self.counts.gather(1, beams))
        return torch.where(inside, beams * self.width + children, -1)

    def nodes_of(self, candidates: Tensor) -> Tensor:
        """The nodes that candidates ``[B, K]`` are."""
        beams = candidates // self.width
        return self.firsts.gather(1, beams) + candidates % self.width


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
        frontier = Frontier.build(model.child_starts, nodes)
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
    """The log P(item | history) of every item, ``[B, N]``: one pass over the trie's levels.

    Costs one query per user and inner node: for small catalogues, and as the check on the beam.
    Arguments as for `beam_search`.
    """
    num_users = len(states)
    scores = torch.zeros(num_users, 1, device=states.device)
    nodes = torch.zeros(num_users, 1, dtype=torch.long, device=states.device)
    chosen: Tensor | None = None
    for level in range(model.num_levels):
        frontier = Frontier.build(model.child_starts, nodes)
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

    An only child is certain: it is neither asked for nor scored, and most nodes of the last levels
    are.
    """
    counts = frontier.counts.flatten()
    is_open = counts > int(model.trie_softmax)
    scores = states.new_full((len(counts), frontier.width), NEVER, dtype=torch.float32)
    scores[:, 0].masked_fill_(~is_open, 0.0)
    open_ = is_open.nonzero().squeeze(-1)
    others: Tensor | None = None
    if len(open_):
        queries = model.decoder(
            states[open_ // nodes.shape[1]],
            None if chosen is None else chosen.flatten(0, 1)[open_],
            level,
        )
        firsts = frontier.firsts.flatten()[open_]
        scores[open_] = score_children(queries, firsts, counts[open_], node_vectors, frontier.width)
        if not model.trie_softmax:
            others = model.score_other_codes(queries, firsts, counts[open_], level)
    if seen:
        rows, entries = ((found := frontier.find(seen[level].nodes)) >= 0).nonzero(as_tuple=True)
        known = scores.view(len(nodes), -1)
        # An item that a history holds twice is known once: set, not added to.
        columns = found[rows, entries]
        known[rows, columns] = known[rows, columns] + model.seen_score(level)
    if others is not None:
        together = torch.cat([scores[open_], others], dim=-1).log_softmax(dim=-1)
        scores[open_] = together[:, : frontier.width]
    else:
        scores = scores.log_softmax(dim=-1)
    scores[:, 0].masked_fill_(counts == 0, NEVER)
    return scores.view(*nodes.shape, -1)


def score_children(
    queries: Tensor, firsts: Tensor, counts: Tensor, node_vectors: NodeTable, width: int
) -> Tensor:
    """Scores of ranges of nodes by queries ``[R, D]``, ``[R, C]``; -inf behind a range's end."""
    if not isinstance(node_vectors, Tensor):
        firsts, node_vectors = gather_ranges(firsts, counts, node_vectors)
    scores = queries.new_full((len(queries), width), NEVER, dtype=torch.float32)
    ordered, order = firsts.sort(stable=True)
    different, sizes = ordered.unique_consecutive(return_counts=True)
    if int(counts.sum()) >= MIN_SCORES_OF_A_NODE * len(different):
        asked, done = queries[order], 0
        ends = counts[order][sizes.cumsum(0) - 1] + different
        for first, end, size in zip(different.tolist(), ends.tolist(), sizes.tolist(), strict=True):
            rows = slice(done, done + size)
            scores[rows, : end - first] = asked[rows] @ node_vectors[first:end].T
            done += size
        return torch.empty_like(scores).index_copy_(0, order, scores)
    owners, columns, flat = ragged_index(firsts, counts)
    if queries.device.type == "cpu":
        values = sampled_products(queries, node_vectors, counts, flat)
    else:
        values = (F.embedding(flat, node_vectors) * queries[owners]).sum(dim=-1)
    return scores.index_put_((owners, columns), values)


def gather_ranges(
    firsts: Tensor, counts: Tensor, node_vectors: NodeLookup
) -> tuple[Tensor, Tensor]:
    """The vectors of ranges of nodes, equal ranges once, and where each range starts among them."""
    different, which = firsts.unique(return_inverse=True)
    sizes = torch.zeros_like(different).scatter_(0, which, counts)
    _, _, nodes = ragged_index(different, sizes)
    return (sizes.cumsum(0) - sizes)[which], node_vectors.of(nodes)


def sampled_products(
    queries: Tensor, node_vectors: Tensor, counts: Tensor, nodes: Tensor
) -> Tensor:
    """Products of queries ``[R, D]`` with nodes of their own, ``counts`` ``[R]`` of them each."""
    ends = F.pad(counts.long().cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            ends,
            nodes,
            queries.new_zeros(len(nodes)),
            size=(len(queries), len(node_vectors)),
            check_invariants=False,
        )
        found: Tensor = torch.sparse.sampled_addmm(pattern, queries, node_vectors.T, beta=0.0)
    return found.values()


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
    rows, entries = (dropped & (found >= 0)).nonzero(as_tuple=True)
    return candidates.index_put((rows, found[rows, entries]), candidates.new_tensor(NEVER))
