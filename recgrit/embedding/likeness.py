"""How alike items are: by the words of their texts, else by their features."""

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
    """What tells which items are alike.

    Args:
        features: float32 ``[N, F]``.
        words: float32 ``[N, W]``, of `recgrit.embedding.words`; None where items came as vectors.
    """

    features: Vectors
    words: csr_array | None

    def find(
        self, items: npt.NDArray[np.int64], among: npt.NDArray[np.int64], num_kept: int
    ) -> csr_array:
        """The largest cosines of some items with others, ``[n, N]``, none below 0.

        Args:
            items: int64 ``[n]``.
            among: int64, the others; an item is not like itself.
            num_kept: Most cosines of an item.
        """
        from scipy.sparse import csr_array

        if self.words is not None:
            return find_same_words(self.words, items, among, num_kept)
        shape = (len(items), len(self.features))
        if not len(among):
            none = np.empty(0, np.int64)
            return csr_array((np.empty(0, np.float32), (none, none)), shape=shape)
        # One more than is kept, for the item itself may be among them.
        found = find_alike(self.features, items, among, num_kept + 1)
        cosines = np.where(found.items == items[:, None], 0, found.cosines.clip(0))
        rows = np.repeat(np.arange(len(items)), cosines.shape[1])
        table = csr_array((cosines.ravel(), (rows, found.items.ravel())), shape=shape)
        return keep_largest(table, num_kept)
