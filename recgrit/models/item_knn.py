"""Item-kNN: a model that recommends items that are similar to the items of a user's history.

Two items are similar if users interacted with both of them near each other in their histories
(`recgrit.retrieval.neighbours.find_similar`). The score of an item is the sum of its similarities
with the last items of the history, in which older items have smaller weights.

Shapes: B users, T history items, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recgrit.errors import DataError
from recgrit.models.config import ItemKNNConfig
from recgrit.models.model import CatalogueInputs, FitSummary, Fitted, Model
from recgrit.ranking import Histories, ScoreRanker
from recgrit.retrieval.neighbours import find_similar

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit

SIMILARITIES_NAME = "similarities.npz"


class ItemKNN(Model):
    """A model that ranks items by how often they occur near the history's items in training.

    Args:
        similarities: Similarities of the items, sparse float64 ``[N, N]``. Row i holds the items
            most similar to item i.
        discount: Factor by which each step back in the history lowers the weight of an item.
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
    """

    settings_class = ItemKNNConfig

    def __init__(
        self, similarities: sparse.csr_array, *, discount: float, history_length: int
    ) -> None:
        self.similarities = similarities
        self.discount = discount
        self.history_length = history_length

    @classmethod
    def fit(
        cls,
        items: CatalogueInputs,
        split: SequenceSplit,
        settings: ItemKNNConfig,
        *,
        seed: int,
        on_epoch: Callable[[Any], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted[Self]:
        """Compute the similarities from pairs of items in training histories; see `Model.fit`."""
        similarities = find_similar(
            split,
            num_neighbours=settings.num_neighbours,
            window=settings.window,
            shrinkage=settings.shrinkage,
        )
        model = cls(
            similarities, discount=settings.discount, history_length=settings.history_length
        )
        return Fitted(model, FitSummary({"similarities": similarities.nnz}))

    def save(self, directory: Path) -> None:
        """Write the similarities to ``similarities.npz`` in an existing folder."""
        sparse.save_npz(directory / SIMILARITIES_NAME, self.similarities)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: ItemKNNConfig) -> Self:
        """Load a model from the file that `save` wrote.

        Raises:
            DataError: The similarities have another number of items, another number format, or
                values that are not finite.
        """
        similarities = sparse.csr_array(sparse.load_npz(directory / SIMILARITIES_NAME))
        similarities.check_format(full_check=True)
        if similarities.shape != (items.num_items, items.num_items):
            raise DataError(
                f"Similarities have shape {similarities.shape}, expected one row and one column "
                f"for each of {items.num_items} items."
            )
        if similarities.dtype != np.float64 or not np.isfinite(similarities.data).all():
            raise DataError(f"Similarities are {similarities.dtype}, expected finite float64.")
        return cls(similarities, discount=settings.discount, history_length=settings.history_length)

    def neighbour_table(self) -> sparse.csr_array:
        """Return the similarities; see `Model.neighbour_table`."""
        return self.similarities

    def score(self, histories: Histories) -> Tensor:
        """Return the scores of all items for each history, float32 ``[B, N]``."""
        items, lengths = histories.items.numpy(), histories.lengths.numpy()
        rows = np.repeat(np.arange(len(items)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        weights = self.discount ** (lengths[rows] - 1 - positions)
        seen = sparse.csr_array(
            (weights, (rows, items[rows, positions])), (len(items), self.similarities.shape[0])
        )
        return torch.from_numpy((seen @ self.similarities).toarray().astype(np.float32))

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> ScoreRanker:
        """Return a ranker that scores every item and ignores ``beam_width``; see `Model.ranker`."""
        return ScoreRanker(
            self.score,
            num_items=self.similarities.shape[0],
            history_length=self.history_length,
            allowed=allowed,
        )
