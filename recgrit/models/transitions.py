"""Neighbours alone: what can be had without training, and what a trained model adds to it.

Items are ranked by what stands near the history's items in other histories, what comes next there,
and what is alike by its text (`recgrit.retrieval.neighbours`), beside a model that finds all items
equally likely. How much each kind counts is fitted on validation targets.

After the public finding that an untrained graph of transitions with texts matches many generative
models (GraphRec, arXiv 2605.07125).

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

# Where the fit begins: with nothing else to go by, neighbours have most of the probability.
START = Strengths(mixture=0.9)


class Transitions(Model):
    """Ranks by neighbours, computed from training parts and texts.

    Args:
        neighbours: Of all items.
        history_length: Items of a history that are read.
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
        """Count the neighbours, and fit how much each kind counts."""
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
        """Write ``weights.safetensors``."""
        from safetensors.torch import save_file

        save_file(self.neighbours.state_dict(), directory / WEIGHTS_NAME)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: TransitionsConfig) -> Self:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        neighbours = ItemNeighbours(items.num_items, settings.neighbours)
        state = load_file(directory / WEIGHTS_NAME)
        require_finite(state)
        neighbours.load_state_dict(state)
        return cls(neighbours, history_length=settings.history_length)

    def neighbour_table(self) -> csr_array | None:
        """See `Model.neighbour_table`."""
        return self.neighbours.nearest_table()

    @torch.inference_mode()
    def score(self, histories: Histories) -> Tensor:
        """Scores float32 ``[B, N]``."""
        num_items = self.neighbours.num_items
        items = torch.arange(num_items)
        seen = LeafSets.build(histories.items, histories.present, num_items)
        found = self.neighbours.weigh(histories, items, seen)
        alone = torch.full((len(histories.items), num_items), -math.log(num_items))
        return found.mix(alone, found.leaves, found.weights, found.bonuses)

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> ScoreRanker:
        """See `Model.ranker`; every item is scored."""
        return ScoreRanker(
            self.score,
            num_items=self.neighbours.num_items,
            history_length=self.history_length,
            allowed=allowed,
        )
