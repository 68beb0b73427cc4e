"""Recommendations for users of a split: encode each history once, then walk the trie."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError
from recgrit.progress import track
from recgrit.retrieval.batching import last_items
from recgrit.retrieval.decoding import Ranked, beam_search, score_all_items
from recgrit.retrieval.leaves import LeafSets
from recgrit.retrieval.model import TrieRetriever

# Users decoded at once: bounds the memory of one beam step.
BATCH_USERS = 128
# Likewise for exact scoring, which asks one query per user and inner node of the trie.
EXACT_QUERIES = 131_072


@torch.inference_mode()
def recommend_items(
    model: TrieRetriever,
    split: SequenceSplit,
    history: Split | Literal["all"],
    users: npt.NDArray[np.int64],
    *,
    top_k: int,
    beam_width: int | None,
    masked: bool,
    precision: torch.dtype = torch.float32,
) -> Recommendations:
    """The best items of these users.

    Args:
        model: A trained retriever; put in eval mode.
        split: Whose sequences to read.
        history: "valid" and "test" read what comes before that target, "all" everything.
        users: user_idx of each list.
        top_k: Longest list.
        beam_width: Prefixes kept at each level, at least ``top_k``; None scores every item.
        masked: Keep out the items of the history.
        precision: bfloat16 runs the history encoder under autocast; scores stay float32.

    Raises:
        DataError: A user has no history to start from.
    """
    model.eval()
    device = model.paths.device
    ends = split.offsets[1:] if history == "all" else split.target_positions(history)
    starts, ends = np.asarray(split.offsets[:-1][users]), np.asarray(ends[users])
    if np.any(ends <= starts):
        raise DataError(f"{np.sum(ends <= starts)} users have no history to recommend from.")
    node_vectors = model.nodes()
    items = np.full((len(users), top_k), NO_ITEM, dtype=np.int32)
    scores = np.full((len(users), top_k), -np.inf, dtype=np.float32)
    # Users with histories of like length together: little padding.
    order = np.argsort(ends - starts, kind="stable")
    size = BATCH_USERS
    if beam_width is None:
        size = min(size, max(1, EXACT_QUERIES // model.first_leaf))
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    for rows in track(batches, f"recommend {history}", len(batches)):
        histories, lengths = last_items(
            split.items, starts[rows], ends[rows], model.encoder.history_length
        )
        histories, lengths = histories.to(device), lengths.to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            states = model.encode(histories, node_vectors)
        last = states[torch.arange(len(rows), device=device), lengths - 1].float()
        seen = _find_leaves(model, histories, lengths)
        excluded = None
        if masked:
            longest = int((ends - starts)[rows].max())
            excluded = _find_leaves(
                model, *last_items(split.items, starts[rows], ends[rows], longest)
            )
        if beam_width is None:
            ranked = _rank_exactly(model, last, node_vectors, top_k, seen, excluded)
        else:
            ranked = beam_search(
                model,
                last,
                node_vectors,
                beam_width=beam_width,
                top_k=top_k,
                seen=seen,
                excluded=excluded,
            )
        found = ranked.items.shape[1]
        items[rows, :found] = ranked.items.cpu().numpy()
        scores[rows, :found] = ranked.scores.cpu().numpy()
    return Recommendations(users=users, items=items, scores=scores)


def _find_leaves(model: TrieRetriever, histories: Tensor, lengths: Tensor) -> LeafSets:
    """The leaves of histories ``[B, T]``, padded at the end."""
    histories, lengths = histories.to(model.paths.device), lengths.to(model.paths.device)
    positions = torch.arange(histories.shape[1], device=histories.device)
    return model.find_leaves(histories, positions < lengths.unsqueeze(-1))


def _rank_exactly(
    model: TrieRetriever,
    states: Tensor,
    node_vectors: Tensor,
    top_k: int,
    seen: LeafSets,
    excluded: LeafSets | None,
) -> Ranked:
    scores = score_all_items(model, states, node_vectors, seen=seen)
    if excluded is not None:
        users = torch.arange(len(scores), device=scores.device).unsqueeze(-1)
        leaves = model.paths[:, -1] - model.first_leaf
        scores = scores.masked_fill(excluded.count(users, leaves, leaves + 1) > 0, float("-inf"))
    best = scores.topk(min(top_k, scores.shape[1]), dim=-1)
    items = best.indices.masked_fill(best.values == float("-inf"), NO_ITEM)
    return Ranked(items=items, scores=best.values)
