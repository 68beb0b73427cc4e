"""The retriever as a ranker: encode each history once, then walk the trie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recgrit.errors import DataError
from recgrit.retrieval.decoding import LeafFilter, beam_search, score_all_items
from recgrit.retrieval.leaves import LeafWeights, NodeSets
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.ranking import Histories, Ranked, rank_scores

# Users decoded at once: bounds the memory of one beam step.
BATCH_USERS = 128
# Likewise for exact scoring, which asks one query per user and inner node of the trie.
EXACT_QUERIES = 131_072


@dataclass(frozen=True)
class ReadHistories:
    """All that the walk down the trie needs of some histories.

    Args:
        states: float32 ``[B, D]``, the last state of each.
        seen: What each holds all of, by level.
        neighbours: What the neighbours of its items add; None for nothing.
    """

    states: Tensor
    seen: list[NodeSets]
    neighbours: LeafWeights | None


class TrieRanker:
    """Ranks items by log P(item | history), and what neighbours that boost scores add to it.

    Args:
        model: A trained retriever; put in eval mode.
        beam_width: Prefixes kept at each level, at least as many as items are asked for; None
            scores every item.
        allowed: bool ``[N]``, items that may be listed; None for all.
        precision: bfloat16 runs the history encoder under autocast; scores stay float32.

    Raises:
        DataError: No item is allowed.
    """

    def __init__(
        self,
        model: TrieRetriever,
        *,
        beam_width: int | None,
        allowed: Tensor | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        if allowed is not None and not allowed.any():
            raise DataError("No item of the catalogue may be recommended: all are filtered out.")
        self.model = model.eval()
        self.beam_width = beam_width
        self.precision = precision
        self.allowed = None if allowed is None else allowed.to(self.device)
        with torch.inference_mode():
            self.node_vectors = model.nodes.table()

    @property
    def history_length(self) -> int:
        """Items of a history that are read."""
        return self.model.encoder.history_length

    @property
    def batch_users(self) -> int:
        """Users ranked at once."""
        if self.beam_width is None:
            return min(BATCH_USERS, max(1, EXACT_QUERIES // self.model.first_leaf))
        return BATCH_USERS

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.paths.device

    @torch.inference_mode()
    def read(self, histories: Histories) -> ReadHistories:
        """Encode histories and look up what they change."""
        model = self.model
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            states = model.encode(histories.items, self.node_vectors)
        return ReadHistories(
            states=histories.take_last(states).float(),
            seen=model.find_seen(histories.items, histories.present),
            neighbours=model.weigh_neighbours(histories),
        )

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        model, read = self.model, self.read(histories)
        if self.beam_width is None:
            scores = score_all_items(
                model,
                read.states,
                self.node_vectors,
                seen=read.seen,
                neighbours=read.neighbours,
            )
            return rank_scores(scores, top_k=top_k, excluded=excluded, allowed=self.allowed)
        return beam_search(
            model,
            read.states,
            self.node_vectors,
            beam_width=self.beam_width,
            top_k=top_k,
            seen=read.seen,
            neighbours=read.neighbours,
            leaf_filter=LeafFilter.build(model, excluded=excluded, allowed=self.allowed),
        )
