"""Item-kNN: items taken by the same users as those of the history, the recent ones counting more.

Cosine similarity of the items' columns in the table of training interactions (Sarwar et al., WWW
2001), shrunk towards 0 where it rests on few users; the score of an item is the sum of its
similarities with the last items of the history, discounted by their age.

Shapes: B users, T history items, N items.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from recgrit.data.splits import SequenceSplit
from recgrit.retrieval.ranking import Histories, Ranked, rank_scores


class ItemKNN:
    """A ranker by similarity of items, computed from training parts only.

    Args:
        split: The sequences.
        num_neighbours: Most similar items kept of each item.
        shrinkage: Users that are added to the norm: small counts are trusted less.
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
        shrinkage: float = 10.0,
        discount: float = 0.8,
        history_length: int = 50,
    ) -> None:
        self.discount = discount
        self.history_length = history_length
        self.similarities = _similarities(split, num_neighbours, shrinkage)

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


def _similarities(split: SequenceSplit, num_neighbours: int, shrinkage: float) -> sparse.csr_array:
    """The largest similarities of each item (row) with others, float64 ``[N, N]``."""
    users = [split.train_sequence(user) for user in range(split.num_users)]
    rows = np.repeat(np.arange(split.num_users), [len(items) for items in users])
    taken = sparse.csr_array(
        (np.ones(len(rows)), (rows, np.concatenate(users))), (split.num_users, split.num_items)
    )
    taken.data[:] = 1.0  # Taken or not; repeats have been added up.
    together = (taken.T @ taken).tocsr()
    counts = together.diagonal()
    together.setdiag(0)
    together.eliminate_zeros()
    for item in range(split.num_items):
        entries = slice(together.indptr[item], together.indptr[item + 1])
        others = together.indices[entries]
        values = together.data[entries] / (np.sqrt(counts[item] * counts[others]) + shrinkage)
        if len(values) > num_neighbours:
            values[np.argpartition(values, -num_neighbours)[:-num_neighbours]] = 0
        together.data[entries] = values
    together.eliminate_zeros()
    return together
