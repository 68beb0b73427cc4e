"""Popularity: a model that recommends the items with the most training interactions to everyone.

If events have types, only the types that are predicted are counted, such as purchases. Popularity
is the baseline that any other model must beat. Memory grows linearly with the lists and the
histories, because no table of users times items is built.

Shapes: B users, T history items, K listed items, N items, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recgrit.config import Config
from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError
from recgrit.models.model import CatalogueInputs, FitSummary, Fitted, Model
from recgrit.ranking import CPU, NEVER, Histories, Ranked, require_items

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit

COUNTS_NAME = "counts.npy"


class Popularity(Model):
    """A model that ranks items by their number of training interactions, ties by ``item_idx``.

    Args:
        counts: Number of training interactions of each item, int64 ``[N]``.
    """

    settings_class = Config

    def __init__(self, counts: npt.NDArray[np.int64]) -> None:
        self.counts = counts

    @classmethod
    def fit(
        cls,
        items: CatalogueInputs,
        split: SequenceSplit,
        settings: Config,
        *,
        seed: int,
        on_epoch: Callable[[Any], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted[Self]:
        """Count the interactions of each item in the training histories; see `Model.fit`."""
        return Fitted(cls(split.train_target_counts()), FitSummary({"counts": split.num_items}))

    def save(self, directory: Path) -> None:
        """Write the counts to ``counts.npy`` in an existing folder."""
        np.save(directory / COUNTS_NAME, self.counts)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: Config) -> Self:
        """Load a model from the file that `save` wrote.

        Raises:
            DataError: The counts have another number of items, another number format, or negative
                values.
        """
        counts = np.load(directory / COUNTS_NAME)
        if counts.shape != (items.num_items,) or counts.dtype != np.int64 or (counts < 0).any():
            raise DataError(
                f"Counts are {counts.dtype} of shape {list(counts.shape)}, expected int64, at "
                f"least 0, of {items.num_items} items."
            )
        return cls(counts)

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> PopularityRanker:
        """Return a ranker that ignores ``beam_width``; see `Model.ranker`."""
        return PopularityRanker(self.counts, allowed=allowed)


class PopularityRanker:
    """A ranker that lists the most popular items that are not filtered out.

    Args:
        counts: Number of training interactions of each item, int64 ``[N]``.
        allowed: bool ``[N]``, true for items that may be listed. None allows all items.

    Raises:
        DataError: No item is allowed.
    """

    history_length = 1
    batch_users = 4096
    device = CPU

    def __init__(self, counts: npt.NDArray[np.int64], *, allowed: Tensor | None = None) -> None:
        require_items(allowed)
        order = torch.from_numpy(np.argsort(-counts, kind="stable"))
        self.order = order if allowed is None else order[allowed[order]]
        # The place of each item in the order. An item that is not allowed has the place after the
        # last one.
        self.places = torch.full((len(counts),), len(self.order))
        self.places[self.order] = torch.arange(len(self.order))
        self.counts = torch.from_numpy(counts)

    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """Return the ``top_k`` most popular items that are not excluded, for each user.

        The arguments are those of `recgrit.ranking.Ranker.rank`.
        """
        # These candidates suffice even if every excluded item is one of the most popular.
        num_excluded = 0 if excluded is None else excluded.items.shape[1]
        candidates = self.order[: top_k + num_excluded]
        dropped = torch.zeros(len(histories.items), len(candidates) + 1, dtype=torch.bool)
        if excluded is not None:
            places = self.places[excluded.items].masked_fill(~excluded.present, len(self.order))
            dropped.scatter_(1, places.clamp_max(len(candidates)), True)
        kept_first = dropped[:, :-1].to(torch.uint8).argsort(dim=1, stable=True)[:, :top_k]
        items = candidates[kept_first]
        gone = dropped.gather(1, kept_first)
        scores = self.counts[items].float()
        return Ranked(items.masked_fill(gone, NO_ITEM), scores.masked_fill(gone, NEVER))
