"""Item-kNN: items taken near those of the history, the recent ones counting more.

The score of an item is the sum of its similarities (`recgrit.retrieval.neighbours.find_similar`)
with the last items of the history, discounted by their age.

Shapes: B users, T history items, N items.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from recgrit.data.splits import SequenceSplit
from recgrit.retrieval.neighbours import find_similar
from recgrit.retrieval.ranking import Histories, Ranked, rank_scores


class ItemKNN:
    """A ranker by similarity of items, computed from training parts only.

    Args:
        split: The sequences.
        num_neighbours: Most similar items kept of each item.
        window: How many positions apart two items of a user may stand to count as a pair.
        shrinkage: Added to the norm: small counts are trusted less.
        discount: Weight of an item relative to the one after it.
        history_length: Items of a history that are read.
    """

    batch_users = 256
    device = torch.device("cpu")

    def __init__(
        self,
        split: SequenceSplit,
        *,
        num_neighbours: int = 100,
        window: int = 20,
        shrinkage: float = 10.0,
        discount: float = 0.8,
        history_length: int = 50,
    ) -> None:
        self.discount = discount
        self.history_length = history_length
        self.similarities = find_similar(
            split, num_neighbours=num_neighbours, window=window, shrinkage=shrinkage
        )

    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        items, lengths = histories.items.numpy(), histories.lengths.numpy()
        rows = np.repeat(np.arange(len(items)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        weights = self.discount ** (lengths[rows] - 1 - positions)
        taken = sparse.csr_array(
            (weights, (rows, items[rows, positions])), (len(items), self.similarities.shape[0])
        )
        scores = torch.from_numpy((taken @ self.similarities).toarray().astype(np.float32))
        return rank_scores(scores, top_k=top_k, excluded=excluded)
