"""The trie retriever as a ranker, which encodes each history once and then walks the trie."""

from __future__ import annotations

import torch
from torch import Tensor

from recgrit.ranking import Histories, Ranked, rank_scores, require_items
from recgrit.retrieval.config import search_width
from recgrit.retrieval.decoding import LeafFilter, beam_search, score_all_items
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_walk import TrieWalk

# Maximum number of users to decode at once, which limits the memory of one beam step.
BATCH_USERS = 128
# Maximum number of queries at once in exact scoring, which has one query per user and inner node.
EXACT_QUERIES = 131_072


class TrieRanker:
    """A ranker that scores items by the retriever's log P(item | history) and its neighbour terms.

    Args:
        model: Trained retriever, which is put in eval mode.
        beam_width: Number of prefixes to keep at each level. It is raised to at least two per
            requested item. None scores every item.
        allowed: Whether each item may be recommended, bool ``[N]``. None allows all items.
        precision: Precision of the history encoder. bfloat16 uses autocast, and scores stay
            float32.
        neighbours: Whether to add the model's neighbour terms to the scores.

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
        neighbours: bool = True,
    ) -> None:
        require_items(allowed)
        self.model = model.eval()
        self.beam_width = beam_width
        self.precision = precision
        self.neighbours = neighbours
        self.allowed = None if allowed is None else allowed.to(self.device)
        with torch.inference_mode():
            self.node_vectors = model.nodes.table()

    @property
    def history_length(self) -> int:
        """Maximum number of history items to read."""
        return self.model.encoder.history_length

    @property
    def batch_users(self) -> int:
        """Number of users to rank at once."""
        if self.beam_width is None:
            return min(BATCH_USERS, max(1, EXACT_QUERIES // self.model.trie.first_leaf))
        return BATCH_USERS

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.trie.device

    @torch.inference_mode()
    def read(self, histories: Histories) -> TrieWalk:
        """Encode histories and return a walk that starts at the root."""
        model = self.model
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            vectors = model.item_vectors(histories.items, self.node_vectors)
            first = model.read_users(histories.users, len(vectors))
            states = model.encoder.last(vectors, histories.ends, first)
        return TrieWalk(
            model,
            self.node_vectors,
            states.float(),
            model.find_seen(histories.items, histories.present),
        )

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the items with the highest scores after each history.

        Args:
            histories: Histories of the users.
            top_k: Number of items to return per user.
            excluded: Items to filter out for each user. None filters out no items.
        """
        trie, walk = self.model.trie, self.read(histories)
        neighbours = self.model.weigh_neighbours(histories) if self.neighbours else None
        if self.beam_width is None:
            scores = score_all_items(trie, walk, neighbours=neighbours)
            return rank_scores(scores, top_k=top_k, excluded=excluded, allowed=self.allowed)
        return beam_search(
            trie,
            walk,
            beam_width=search_width(self.beam_width, top_k, trie.num_items),
            top_k=top_k,
            neighbours=neighbours,
            leaf_filter=LeafFilter.build(trie, excluded=excluded, allowed=self.allowed),
        )
