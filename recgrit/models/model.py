"""What a model is: how it is fitted, saved and loaded, what it needs, and how it ranks.

A model of your own is a subclass of `Model` in any module on the import path. Name it in
``model.kind`` as ``package.module.Class``: it then works in runs, comparisons, reports and bundles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from recgrit.config import Config
from recgrit.data.attributes import Attributes
from recgrit.embedding.likeness import Likeness
from recgrit.errors import ArtifactError
from recgrit.ranking import Ranker

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.data.splits import SequenceSplit
    from recgrit.semantic_ids.table import SemanticIdTable
    from recgrit.training.loop import TrainingEpoch


@dataclass(frozen=True)
class CatalogueInputs:
    """What a model may use of the items; row i is ``item_idx`` i.

    Args:
        trained: bool ``[N]``, the items of training histories.
        semantic_ids: For models that need the stage ``tokenize``; else None.
        features: float32 ``[N, F]``, for models that need the stage ``embed``; else None.
        words: Those of the items' texts, sparse float32 ``[N, W]`` with rows of length 1; likewise,
            and None where the items came as vectors.
        listed: bool ``[N]``, the items that may be recommended; others left the catalogue.
        num_known: The first items, which the catalogue had in training; later ones were appended.
        attributes: Of the items, for models whose settings name some; else None.
        user_attributes: Likewise, of the users and, behind them, of an unknown one.

    Raises:
        ArtifactError: The parts are not of equally many items.
    """

    trained: npt.NDArray[np.bool_]
    semantic_ids: SemanticIdTable | None
    features: npt.NDArray[np.float32] | None
    words: csr_array | None
    listed: npt.NDArray[np.bool_]
    num_known: int
    attributes: Attributes | None = None
    user_attributes: Attributes | None = None

    def __post_init__(self) -> None:
        rows = {
            "semantic IDs": None if self.semantic_ids is None else len(self.semantic_ids),
            "features": None if self.features is None else len(self.features),
            "words": None if self.words is None else self.words.shape[0],
            "listed": len(self.listed),
            "attributes": None if self.attributes is None else len(self.attributes.codes),
        }
        fitting = (None, self.num_items)
        wrong = [f"{name}: {num}" for name, num in rows.items() if num not in fitting]
        if wrong or not 0 <= self.num_known <= self.num_items:
            raise ArtifactError(
                f"The parts of a catalogue of {self.num_items} items, {self.num_known} of them "
                f"known in training, are of other items: {', '.join(wrong) or 'too many known'}."
            )

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.trained)

    @property
    def likeness(self) -> Likeness | None:
        """What tells which items are alike; None for models that do not need the features."""
        return None if self.features is None else Likeness(self.features, self.words)

    def require_ids(self) -> SemanticIdTable:
        """The ID table of a model that needs the stage ``tokenize``."""
        assert self.semantic_ids is not None
        return self.semantic_ids


@dataclass(frozen=True)
class FitSummary:
    """What a fit reports.

    Args:
        num_parameters: Of each part of the model.
        history: One entry per epoch; empty for a model that is not trained in epochs.
        best_epoch: The epoch kept, from 1; 0 for a model that is not trained in epochs.
        precision: Of the training.
        strengths: How much neighbours of each kind count beside the model, as fitted.
    """

    num_parameters: dict[str, int] = field(default_factory=dict)
    history: list[TrainingEpoch] = field(default_factory=list)
    best_epoch: int = 0
    precision: str = "float32"
    strengths: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What goes into the manifest."""
        values: dict[str, Any] = {"num_parameters": self.num_parameters}
        if self.strengths:
            values["neighbour_strengths"] = self.strengths
        if self.history:
            values |= {
                "best_epoch": self.best_epoch,
                "num_epochs": len(self.history),
                "precision": self.precision,
                "best": self.history[self.best_epoch - 1].metrics(),
                "train_seconds": round(sum(epoch.seconds for epoch in self.history), 2),
            }
        return values


ModelT = TypeVar("ModelT", bound="Model")


@dataclass(frozen=True)
class Fitted(Generic[ModelT]):
    """A fitted model and its summary."""

    model: ModelT
    summary: FitSummary


class Model(ABC):
    """A model that ranks items after histories.

    Attributes:
        settings_class: Its settings.
        searches: Whether it finds items by beam search.
        scores_all: Whether it can score every item.
        needs: Stages whose artifacts it uses beside the prepared data: ``embed``, ``tokenize``.
        can_append: Whether it ranks items that joined the catalogue after its training.
    """

    settings_class: ClassVar[type[Config]] = Config
    needs: ClassVar[tuple[str, ...]] = ()
    searches: ClassVar[bool] = False
    scores_all: ClassVar[bool] = True
    can_append: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(
        cls,
        items: CatalogueInputs,
        split: SequenceSplit,
        settings: Any,
        *,
        seed: int,
        on_epoch: Callable[[TrainingEpoch], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Fitted[Self]:
        """Learn from the training parts of a split.

        Args:
            items: The catalogue.
            split: Training parts to learn from, validation targets to stop by.
            settings: Of ``settings_class``.
            seed: Fixes all that is drawn.
            on_epoch: Called after each epoch.
            checkpoint: Where an interrupted fit is kept; None for nowhere.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the model into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: Any) -> Self:
        """Read what `save` wrote, for the same catalogue or one that items were appended to."""

    @abstractmethod
    def ranker(
        self,
        *,
        beam_width: int | None = None,
        allowed: Tensor | None = None,
    ) -> Ranker:
        """The model, ready to rank.

        Args:
            beam_width: Prefixes kept at each level, for models that search; None scores every item.
            allowed: bool ``[N]``, items that may be listed; None for all.

        Raises:
            DataError: No item is allowed.
        """

    def item_vectors(self) -> npt.NDArray[np.float32] | None:
        """The vectors it learned of items, float32 ``[N, D]``, 0 for those it learned none of.

        None for a model without any.
        """
        return None

    def neighbour_table(self) -> csr_array | None:
        """How near items (columns) stand to others (rows), sparse ``[N, N]``, more being nearer.

        None for a model that counts no neighbours.
        """
        return None

    def to_device(self, device: str) -> Self:
        """The model on a device of this name; "auto" is a GPU if there is one."""
        return self
