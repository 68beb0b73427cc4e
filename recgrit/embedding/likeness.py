"""Similarity of items, by the words of their texts or, without texts, by their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recgrit.embedding.features import find_alike
from recgrit.embedding.transforms import Vectors
from recgrit.embedding.words import find_same_words, keep_largest

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class Likeness:
    """The data that item similarity is computed from: words if there are any, else features.

    Shapes: N items, F dimensions of the features, W terms.

    Args:
        features: Item features, float32 ``[N, F]``.
        words: TF-IDF vectors of the item texts, float32 ``[N, W]``, from `recgrit.embedding.words`.
            None if the items have ready-made vectors instead of texts.
    """

    features: Vectors
    words: csr_array | None

    def find(
        self, items: npt.NDArray[np.int64], among: npt.NDArray[np.int64], num_kept: int
    ) -> csr_array:
        """Return the largest cosine similarities between some items and candidate items.

        Shapes: n selected items, N items of the catalogue.

        Args:
            items: Items to find similar items for, int64 ``[n]``.
            among: Candidate items, int64. An item is never its own candidate.
            num_kept: Maximum number of similarities to keep per item.

        Returns:
            Cosine similarities ``[n, N]``, at least 0; all but the largest ``num_kept`` of each row
            are 0.
        """
        from scipy.sparse import csr_array

        if self.words is not None:
            return find_same_words(self.words, items, among, num_kept)
        shape = (len(items), len(self.features))
        if not len(among):
            none = np.empty(0, np.int64)
            return csr_array((np.empty(0, np.float32), (none, none)), shape=shape)
        # One more than is kept, because the item itself may be a candidate.
        found = find_alike(self.features, items, among, num_kept + 1)
        cosines = np.where(found.items == items[:, None], 0, found.cosines.clip(0))
        rows = np.repeat(np.arange(len(items)), cosines.shape[1])
        table = csr_array((cosines.ravel(), (rows, found.items.ravel())), shape=shape)
        return keep_largest(table, num_kept)
