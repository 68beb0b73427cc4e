"""The base class of models that are torch modules, which share training, saving and loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from recgrit import distributed
from recgrit.embedding.likeness import Likeness
from recgrit.errors import DataError
from recgrit.models.model import CatalogueInputs, FitSummary, Fitted, Model
from recgrit.ranking import CPU, Ranker
from recgrit.retrieval.neighbours import ItemNeighbours
from recgrit.retrieval.strengths import fit_strengths
from recgrit.training.loop import (
    TrainingEpoch,
    choose_device,
    choose_precision,
    train_model,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from recgrit.data.splits import SequenceSplit

WEIGHTS_NAME = "weights.safetensors"

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class NetworkModel(Model, Generic[NetworkT]):
    """A model that ranks with a torch module and saves its weights as safetensors.

    Args:
        network: The torch module, which has the methods of `SequenceModel`.
        items: The catalogue whose items the model ranks.
        settings: Settings of the model.
        precision: Number format of the forward pass, ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(
        self,
        network: NetworkT,
        items: CatalogueInputs,
        settings: Any,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.network = network
        self.items = items
        self.settings = settings
        self.precision = precision

    # Name of the setting that holds the beam width of the validation. None for a model that scores
    # all items.
    valid_beam_width: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def build(cls, items: CatalogueInputs, settings: Any) -> NetworkT:
        """Return an untrained network for the items of a catalogue."""

    @classmethod
    def count(cls, network: NetworkT, items: CatalogueInputs, split: SequenceSplit) -> None:
        """Fill the network's buffers with counts of training histories, such as neighbours.

        The base class counts nothing.

        Args:
            network: The network whose buffers are filled.
            items: The items of the catalogue.
            split: Sequences whose training histories are counted.
        """

    @classmethod
    def start_from(cls, network: NetworkT, start: Any) -> None:
        """Copy the weights of a trained network, for models that can start from another model.

        Args:
            network: The untrained network that gets the weights.
            start: The trained network, in the form that the subclass defines.

        Raises:
            NotImplementedError: The model cannot start from another model.
        """
        raise NotImplementedError(f"{cls.__name__} is trained from scratch")

    @classmethod
    def count_parameters(cls, network: NetworkT) -> dict[str, int]:
        """Return the number of trained parameters of each part of the network, by name."""
        return {
            name: sum(p.numel() for p in part.parameters())
            for name, part in network.named_children()
        }

    @classmethod
    def fit(
        cls,
        items: CatalogueInputs,
        split: SequenceSplit,
        settings: Any,
        *,
        seed: int,
        on_epoch: Callable[[TrainingEpoch], None] | None = None,
        checkpoint: Path | None = None,
        start: Any = None,
    ) -> Fitted[Self]:
        """Train a network until validation NDCG@10 no longer rises, and fit neighbour weights.

        The arguments are those of `Model.fit`, with one addition. The training is described at
        `recgrit.training.loop.train_model`.

        Args:
            items: The items of the catalogue.
            split: Sequences of the users.
            settings: Settings of the model, an instance of ``settings_class``.
            seed: Seed of all random numbers.
            on_epoch: Function that is called with the results of each epoch. None calls nothing.
            checkpoint: File that an interrupted fit is resumed from. None saves no checkpoint.
            start: Trained weights that `start_from` copies before the training. None trains from
                scratch.
        """
        beam_width = getattr(settings, cls.valid_beam_width) if cls.valid_beam_width else None

        def build() -> NetworkT:
            network = cls.build(items, settings)
            cls.count(network, items, split)
            if start is not None:
                cls.start_from(network, start)
            return network

        trained = train_model(
            build,
            lambda network, precision: cls(network, items, settings, precision).valid_ranker(
                beam_width
            ),
            split,
            settings,
            history_length=settings.history_length,
            seed=seed,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
        model = cls(trained.model, items, settings, trained.precision)
        neighbours = getattr(trained.model, "neighbours", None)
        if neighbours is not None:
            ranker = model.ranker(beam_width=beam_width)
            fit_strengths(neighbours, ranker, split, seed=seed)
        summary = FitSummary(
            num_parameters=cls.count_parameters(trained.model),
            history=trained.history,
            best_epoch=trained.best_epoch,
            precision=str(trained.precision).removeprefix("torch."),
            strengths={} if neighbours is None else asdict(neighbours.strengths),
        )
        return Fitted(model, summary)

    def save(self, directory: Path) -> None:
        """Write the weights to ``weights.safetensors``, with the training's precision as metadata.

        Args:
            directory: An existing folder.
        """
        from safetensors.torch import save_file

        state = {n: value.cpu().contiguous() for n, value in self.network.state_dict().items()}
        metadata = {"precision": str(self.precision).removeprefix("torch.")}
        save_file(state, directory / WEIGHTS_NAME, metadata)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: Any) -> Self:
        """Load a model from the file that `save` wrote.

        The model ranks in the precision in which it was trained.

        Raises:
            DataError: A weight is not finite.
        """
        from safetensors import safe_open

        network = cls.build(items, settings)
        with safe_open(directory / WEIGHTS_NAME, framework="pt") as file:
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
            precision = (file.metadata() or {}).get("precision", "float32")
        require_finite(state)
        cls.put_state(network, state, items)
        return cls(network.eval(), items, settings, choose_precision(precision, CPU))

    @classmethod
    def put_state(
        cls, network: NetworkT, state: dict[str, torch.Tensor], items: CatalogueInputs
    ) -> None:
        """Load saved weights into a network.

        Args:
            network: A network that `build` returned.
            state: Saved weights by name.
            items: The catalogue, which a subclass may need for appended items.
        """
        network.load_state_dict(state)

    def neighbour_table(self) -> csr_array | None:
        """Return the table of the network's first kind of neighbour; see `Model.neighbour_table`.

        The result is None if the network has no neighbours.
        """
        neighbours: ItemNeighbours | None = getattr(self.network, "neighbours", None)
        return None if neighbours is None else neighbours.nearest_table()

    def to_device(self, device: str) -> Self:
        """Move the network to a device and return this model; see `Model.to_device`."""
        self.network.to(choose_device(device))
        return self

    def valid_ranker(self, beam_width: int | None) -> Ranker:
        """Return the ranker with which each training epoch is validated.

        Args:
            beam_width: Beam width of the search. None for a model that scores every item.
        """
        return self.ranker(beam_width=beam_width)

    @abstractmethod
    def ranker(self, *, beam_width: int | None = None, allowed: Tensor | None = None) -> Ranker:
        """Return a ranker that lists items by the network's scores; see `Model.ranker`."""


def require_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Check that all weights are finite numbers.

    Args:
        state: Weights by name.

    Raises:
        DataError: A weight is NaN or infinite. The message names its tensor.
    """
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise DataError(f"The weights {name} hold NaN or infinite values.")


def count_neighbours(
    neighbours: ItemNeighbours | None,
    split: SequenceSplit,
    likeness: Likeness | None,
) -> None:
    """Count the neighbours in the first process, and copy the counts to all processes.

    Args:
        neighbours: Neighbours to fill. None does nothing.
        split: Sequences whose training histories are counted.
        likeness: Similarity of the items by text or features. With None, items without interactions
            get no neighbours, and no item gets ``alike`` neighbours.
    """
    if neighbours is None:
        return
    if distributed.is_first():
        neighbours.count(split, likeness)
    distributed.take_from_first_(neighbours.buffers())
