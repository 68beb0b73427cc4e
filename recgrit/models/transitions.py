"""Transitions: a model that ranks by item neighbours alone, without training a network.

The model is a baseline: it shows how much a trained model adds to counted neighbours. An item gets
a higher score if it occurs near the history's items in other histories, if it comes right after
them there, or if its text is similar to theirs (`recgrit.retrieval.neighbours`). These scores are
combined with a uniform probability over all items. The weight of each kind of neighbour is fitted
on validation targets.

The idea follows the published finding that an untrained graph of transitions and texts is as good
as many generative models (GraphRec, arXiv 2605.07125).

Shapes: B users, N items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from recgrit.models.config import TransitionsConfig
from recgrit.models.model import CatalogueInputs, FitSummary, Fitted, Model
from recgrit.models.network import WEIGHTS_NAME, count_neighbours, require_finite
from recgrit.ranking import Histories, ScoreRanker
from recgrit.retrieval.leaves import LeafSets
from recgrit.retrieval.neighbours import ItemNeighbours, Strengths
from recgrit.retrieval.strengths import fit_strengths

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.data.splits import SequenceSplit

# The weights that the fit starts from. The other part of the mixture is uniform over the items, so
# neighbours get most of the probability.
START = Strengths(mixture=0.9)


class Transitions(Model):
    """A model that ranks items by neighbours, which come from the training histories and the texts.

    Args:
        neighbours: Neighbours of all items, with the weights of their kinds.
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
    """

    settings_class = TransitionsConfig
    needs = ("embed",)

    def __init__(self, neighbours: ItemNeighbours, *, history_length: int) -> None:
        self.neighbours = neighbours
        self.history_length = history_length

    @classmethod
    def fit(
        cls,
        items: CatalogueInputs,
        split: SequenceSplit,
        settings: TransitionsConfig,
        *,
        seed: int,
        on_epoch: Callable[[Any], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted[Self]:
        """Count the neighbours and fit the weight of each kind; see `Model.fit`."""
        neighbours = ItemNeighbours(items.num_items, settings.neighbours, strengths=START)
        count_neighbours(neighbours, split, items.likeness)
        model = cls(neighbours, history_length=settings.history_length)
        fit_strengths(neighbours, model.ranker(), split, seed=seed)
        counted = {
            f"{kind} neighbours": int((getattr(neighbours, f"{kind}_values") > 0).sum())
            for kind in neighbours.kinds
        }
        return Fitted(model, FitSummary(counted, strengths=asdict(neighbours.strengths)))

    def save(self, directory: Path) -> None:
        """Write the neighbours to ``weights.safetensors`` in an existing folder."""
        from safetensors.torch import save_file

        save_file(self.neighbours.state_dict(), directory / WEIGHTS_NAME)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: TransitionsConfig) -> Self:
        """Load a model from the file that `save` wrote.

        Raises:
            DataError: A value is not finite.
        """
        from safetensors.torch import load_file

        neighbours = ItemNeighbours(items.num_items, settings.neighbours)
        state = load_file(directory / WEIGHTS_NAME)
        require_finite(state)
        neighbours.load_state_dict(state)
        return cls(neighbours, history_length=settings.history_length)

    def neighbour_table(self) -> csr_array | None:
        """Return the table of the model's first kind of neighbour; see `Model.neighbour_table`.

        The first kind in the order ``near``, ``next``, ``alike`` is used.
        """
        return self.neighbours.nearest_table()

    @torch.inference_mode()
    def score(self, histories: Histories) -> Tensor:
        """Return the scores of all items for each history, float32 ``[B, N]``."""
        num_items = self.neighbours.num_items
        items = torch.arange(num_items)
        seen = LeafSets.build(histories.items, histories.present, num_items)
        found = self.neighbours.weigh(histories, items, seen)
        alone = torch.full((len(histories.items), num_items), -math.log(num_items))
        return found.mix(alone, found.leaves, found.weights, found.bonuses)

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> ScoreRanker:
        """Return a ranker that scores every item and ignores ``beam_width``; see `Model.ranker`."""
        return ScoreRanker(
            self.score,
            num_items=self.neighbours.num_items,
            history_length=self.history_length,
            allowed=allowed,
        )
