"""Items that stand near those of a history in other histories: counted, not generalised.

A transformer trained with much dropout generalises well and remembers rare pairs of items badly;
counts are the reverse. Language models gain from the same: Khandelwal et al. (ICLR 2020) mix the
model's distribution with one over the nearest neighbours of its state in the training data. Here
the neighbours are those of a history's last items, which needs one small table instead of a state
for every training target.

Items without interactions have no counts. They get neighbours by their features: the items most
like them, and the counted neighbours of those.

Shapes: B users, T history items, N items, J neighbours, E entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recgrit.data.splits import SequenceSplit
from recgrit.embedding.cooccurrence import count_pairs
from recgrit.embedding.features import Vectors, find_alike
from recgrit.ranking import Histories
from recgrit.retrieval.leaves import LeafSets, LeafWeights, merge_runs

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Chosen on validation of Beauty and MovieLens-100K alike.
NUM_NEIGHBOURS = 50
WINDOW = 20
SHRINKAGE = 10.0
# Items of a history that are asked for their neighbours, each this much less than the one after it.
MAX_ASKED = 10
DISCOUNT = 0.8
# Similarities are sums over few users: squares keep the many small ones from outweighing the large.
SHARPNESS = 2
# Fraction of all neighbours' weight from which on `ItemNeighbours.boost` counts.
BOOSTED_FROM = 1e-5
# Items that stand for one without interactions: those most like it.
NUM_ALIKE = 5


def find_similar(
    split: SequenceSplit, *, num_neighbours: int, window: int, shrinkage: float
) -> csr_array:
    """The largest similarities of each item (row) with others, float64 ``[N, N]``.

    The similarity is the cosine of how often two items stand near each other in training parts,
    shrunk towards 0 where it rests on little (Sarwar et al., WWW 2001).

    Args:
        split: The sequences.
        num_neighbours: Most similar items kept of each item.
        window: How many positions apart two items of a user may stand to count as a pair.
        shrinkage: Added to the norm: small counts are trusted less.
    """
    together = count_pairs(split, window)
    counts = split.train_item_counts()
    for item in range(split.num_items):
        entries = slice(together.indptr[item], together.indptr[item + 1])
        others = together.indices[entries]
        together.data[entries] /= np.sqrt(counts[item] * counts[others]) + shrinkage
    return _keep_largest(together, num_neighbours)


def _keep_largest(similar: csr_array, num_kept: int) -> csr_array:
    """Drop all but so many entries of each row; changes what it is given."""
    for start, end in zip(similar.indptr[:-1], similar.indptr[1:], strict=True):
        values = similar.data[start:end]
        if len(values) > num_kept:
            values[np.argpartition(values, -num_kept)[:-num_kept]] = 0
    similar.eliminate_zeros()
    return similar


class ItemNeighbours(nn.Module):
    """Each item's most similar items, and what they add to scores after a history.

    Part of the retriever's weights, so that a trained retriever needs no sequences to recommend.

    Args:
        num_items: N; without neighbours until `count` or a checkpoint brings them.
        weight: Mixture weight of the neighbours in the probability of an item.
        boost: Scale of their additive bonus. An item with the fraction s of the neighbours' weight
            scores ``boost * log(1 + s / BOOSTED_FROM)`` more than its log probability. What both
            the model and the counts find likely then comes first, as in a product of experts
            (Hinton, Neural Computation 2002); a mixture asks for one of them.
    """

    items: Tensor
    similarities: Tensor

    def __init__(self, num_items: int, *, weight: float, boost: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.boost = boost
        self.register_buffer("items", torch.zeros(num_items, NUM_NEIGHBOURS, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(num_items, NUM_NEIGHBOURS))

    def count(self, split: SequenceSplit, features: Vectors | None = None) -> None:
        """Count the neighbours in the training parts of these sequences.

        Args:
            split: The sequences.
            features: float32 ``[N, F]``, for items without interactions; None gives those no
                neighbours.
        """
        similar = find_similar(
            split, num_neighbours=NUM_NEIGHBOURS, window=WINDOW, shrinkage=SHRINKAGE
        )
        self._put(similar)
        if features is not None:
            has_counts = split.train_item_counts() > 0
            self.add_by_features(features, has_counts, ~has_counts)

    def add_by_features(
        self,
        features: Vectors,
        has_counts: npt.NDArray[np.bool_],
        added: npt.NDArray[np.bool_],
    ) -> None:
        """Give items without counts the neighbours that their features suggest.

        Such an item is as near to those most like it as an item's nearest typically is, times
        their cosine, and as near to any other as those are in the mean, weighted by cosines. An
        item with counts gets no more than `NUM_ALIKE` of them for neighbours, however many are like
        it: they stand beside what was counted and do not take its place.

        Args:
            features: float32 ``[N, F]``.
            has_counts: bool ``[N]``, the items that have interactions.
            added: bool ``[N]``, the items to give neighbours to; none that has counts.
        """
        from scipy.sparse import csr_array, diags_array

        new, known = np.flatnonzero(added), np.flatnonzero(has_counts)
        nearest = self.similarities.amax(dim=1)
        if not len(new) or not nearest.any():
            return
        typical = float(nearest[nearest > 0].mean())
        found = find_alike(features, new, known, NUM_ALIKE)
        num_items, width = self.items.shape
        cosines = found.cosines.clip(0).astype(np.float64)
        alike = csr_array(
            (cosines.ravel(), (np.repeat(new, cosines.shape[1]), found.items.ravel())),
            shape=(num_items, num_items),
        )
        normalized = diags_array(1 / np.maximum(alike.sum(axis=1), 1e-12)) @ alike
        similarities = self.similarities.numpy().astype(np.float64)
        counted = csr_array(
            (similarities.ravel(), self.items.numpy().ravel(), width * np.arange(num_items + 1)),
            shape=(num_items, num_items),
        )
        suggested = csr_array(typical * alike + normalized @ counted)
        of_known = _keep_largest(csr_array(suggested.T), NUM_ALIKE)
        self._put(_keep_largest(csr_array(counted + suggested + of_known), width))

    def _put(self, similar: csr_array) -> None:
        """Replace all neighbours by rows of at most J entries."""
        rows = np.repeat(np.arange(len(self.items)), np.diff(similar.indptr))
        columns = np.arange(similar.nnz) - similar.indptr[rows]
        self.items.zero_()
        self.similarities.zero_()
        self.items[rows, columns] = torch.from_numpy(similar.indices.astype(np.int32))
        self.similarities[rows, columns] = torch.from_numpy(similar.data.astype(np.float32))

    def weigh(self, histories: Histories, leaf_of: Tensor, seen: LeafSets) -> LeafWeights:
        """The neighbours' part of the probability of each leaf after each history.

        The parts of one history sum to ``weight``, or to 0 where nothing is near its items. Items
        of the history itself get none: whether people come back for them is for the model to know.

        Args:
            histories: ``[B, T]``.
            leaf_of: ``[N]``, the leaf of each item.
            seen: The leaves of each history.
        """
        device = leaf_of.device
        steps = torch.arange(MAX_ASKED, device=device)
        positions = histories.lengths.unsqueeze(-1) - 1 - steps  # The last item first.
        asked = histories.items.gather(1, positions.clamp_min(0))
        trust = torch.where(positions >= 0, DISCOUNT**steps, 0.0).unsqueeze(-1)
        leaves, order = leaf_of[self.items[asked]].flatten(1).sort(dim=-1)
        similarities = (self.similarities[asked] * trust).double().flatten(1)
        sums = merge_runs(leaves, similarities.gather(1, order))
        rows = torch.arange(len(leaves), device=device).unsqueeze(-1)
        weights = sums**SHARPNESS * (seen.count(rows, leaves, leaves + 1) == 0)
        totals = weights.sum(dim=-1, keepdim=True)
        parts = self.weight * weights / totals.clamp_min(torch.finfo(totals.dtype).tiny)
        return LeafWeights(leaves, parts, self.boost, self.weight * BOOSTED_FROM)
