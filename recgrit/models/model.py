"""The base class `Model` of all models, and the inputs and results of a fit.

To add your own model, write a subclass of `Model` in any module on the import path and set
``model.kind`` to ``package.module.Class``. The class then works in runs, comparisons, reports and
bundles.
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
    """The data about the items of a catalogue that a model may use.

    Row i of each array describes the item with ``item_idx`` i (N items, F features, W words).

    Args:
        trained: bool ``[N]``, true for items that occur in training histories.
        semantic_ids: Semantic IDs of the items. None if the model does not need the stage
            ``tokenize``.
        features: Feature vectors of the items, float32 ``[N, F]``. None if the model does not need
            the stage ``embed``.
        words: Word weights of the items' texts, sparse float32 ``[N, W]`` with rows of length 1.
            None if the model does not need the stage ``embed``, or if the items came as vectors.
        listed: bool ``[N]``, true for items that may be recommended. The others were removed from
            the catalogue.
        num_known: Number of items that the catalogue had in training. These items come first; later
            rows are items that were appended.
        attributes: Attributes of the items. None if the model's settings name no item attributes.
        user_attributes: Attributes of the training users, and in the last row those of an unknown
            user. None if the model's settings name no user attributes.

    Raises:
        ArtifactError: The parts describe different numbers of items.
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
                f"The catalogue has {self.num_items} items, {self.num_known} of them known in "
                "training, but parts of the model have other numbers of items: "
                f"{', '.join(wrong) or 'too many known'}."
            )

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue, N."""
        return len(self.trained)

    @property
    def likeness(self) -> Likeness | None:
        """Similarity of the items by their texts or features; None if there are no features."""
        return None if self.features is None else Likeness(self.features, self.words)

    def require_ids(self) -> SemanticIdTable:
        """Return the semantic IDs, for a model that needs the stage ``tokenize``."""
        assert self.semantic_ids is not None
        return self.semantic_ids


@dataclass(frozen=True)
class FitSummary:
    """The numbers that are recorded about the fit of a model.

    Args:
        num_parameters: Number of parameters of each part of the model, by the part's name.
        history: Results of the training epochs, in order. Empty for a model that is not trained in
            epochs.
        best_epoch: Number of the epoch whose weights are kept, counted from 1. It is 0 for a model
            that is not trained in epochs.
        precision: Number format of the training, ``float32`` or ``bfloat16``.
        strengths: Fitted weights of the neighbour terms that are added to the model's scores, by
            name. Empty for a model without neighbours.
    """

    num_parameters: dict[str, int] = field(default_factory=dict)
    history: list[TrainingEpoch] = field(default_factory=list)
    best_epoch: int = 0
    precision: str = "float32"
    strengths: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the values that are written into the manifest of the model's artifact."""
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
    """A fitted model together with the summary of its fit."""

    model: ModelT
    summary: FitSummary


class Model(ABC):
    """A recommendation model that ranks items for a user's history.

    Attributes:
        settings_class: Class of the model's settings.
        needs: Stages whose artifacts the model uses in addition to the prepared data: ``embed``,
            ``tokenize``, both or none.
        searches: Whether the model finds items by beam search.
        scores_all: Whether the model can score every item of the catalogue.
        can_append: Whether the model can rank items that are appended to the catalogue after its
            training.
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
        """Fit a model to the training histories of a split.

        Args:
            items: The items of the catalogue.
            split: Sequences of the users. The model learns from the training histories, and the
                validation targets decide when the training stops.
            settings: Settings of the model, an instance of ``settings_class``.
            seed: Seed of all random numbers.
            on_epoch: Function that is called with the results of each epoch. None calls nothing.
            checkpoint: File that an interrupted fit is resumed from, and that is written after each
                epoch. None saves no checkpoint.

        Returns:
            The fitted model and the summary of its fit.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the files of the model into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: Any) -> Self:
        """Load a model from the files that `save` wrote.

        Args:
            directory: Folder of the files.
            items: The catalogue of the training, or the same catalogue with appended items.
            settings: Settings that the model was fitted with.
        """

    @abstractmethod
    def ranker(
        self,
        *,
        beam_width: int | None = None,
        allowed: Tensor | None = None,
    ) -> Ranker:
        """Return a ranker, which lists the best items for histories by this model's scores.

        Args:
            beam_width: Number of prefixes that the beam search keeps at each level, for a model
                that searches. None scores every item.
            allowed: bool ``[N]``, true for items that may be listed. None allows all items.

        Raises:
            DataError: No item is allowed.
        """

    def item_vectors(self) -> npt.NDArray[np.float32] | None:
        """Return the vectors that the model learned for the items, float32 ``[N, D]``.

        An item without a learned vector has a row of zeros. The result is None for a model that
        learns no item vectors.
        """
        return None

    def neighbour_table(self) -> csr_array | None:
        """Return the strength of each pair of neighbouring items, sparse ``[N, N]``.

        Row i holds the neighbours of item i. A larger value means a nearer neighbour. The result is
        None for a model that counts no neighbours.
        """
        return None

    def to_device(self, device: str) -> Self:
        """Return the model on a device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

        A model without weights on a device is returned unchanged.
        """
        return self
