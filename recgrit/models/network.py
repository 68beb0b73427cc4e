"""Models that are torch modules: trained by the one loop, kept as safetensors."""

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
    """A model whose weights are those of a torch module.

    Args:
        network: The module, a `SequenceModel`.
        items: The catalogue it ranks.
        settings: Its settings.
        precision: Of the forward pass.
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

    # The setting that names the beam width of validation; None for a model that scores all items.
    valid_beam_width: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def build(cls, items: CatalogueInputs, settings: Any) -> NetworkT:
        """An untrained network."""

    @classmethod
    def count(cls, network: NetworkT, items: CatalogueInputs, split: SequenceSplit) -> None:
        """Put what is counted and not trained into the network's buffers."""

    @classmethod
    def start_from(cls, network: NetworkT, start: Any) -> None:
        """Begin with the weights of another, for models that can be trained on."""
        raise NotImplementedError(f"{cls.__name__} is trained from scratch")

    @classmethod
    def count_parameters(cls, network: NetworkT) -> dict[str, int]:
        """Trained parameters of each part."""
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
        """Train until validation NDCG@10 no longer rises; see `train_model`.

        ``start`` is what the model's `start_from` begins with; None for a training from scratch.
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
        """Write ``weights.safetensors``, and into its header the precision of the training."""
        from safetensors.torch import save_file

        state = {n: value.cpu().contiguous() for n, value in self.network.state_dict().items()}
        metadata = {"precision": str(self.precision).removeprefix("torch.")}
        save_file(state, directory / WEIGHTS_NAME, metadata)

    @classmethod
    def load(cls, directory: Path, items: CatalogueInputs, settings: Any) -> Self:
        """Read what `save` wrote; it ranks in the precision that it was trained in.

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
        """Put saved weights into a network."""
        network.load_state_dict(state)

    def neighbour_table(self) -> csr_array | None:
        """See `Model.neighbour_table`."""
        neighbours: ItemNeighbours | None = getattr(self.network, "neighbours", None)
        return None if neighbours is None else neighbours.nearest_table()

    def to_device(self, device: str) -> Self:
        """Move the network."""
        self.network.to(choose_device(device))
        return self

    def valid_ranker(self, beam_width: int | None) -> Ranker:
        """What chooses the epoch while training."""
        return self.ranker(beam_width=beam_width)

    @abstractmethod
    def ranker(self, *, beam_width: int | None = None, allowed: Tensor | None = None) -> Ranker:
        """See `Model.ranker`."""


def require_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that no training that went well leaves.

    Raises:
        DataError: One is NaN or infinite; names its tensor.
    """
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise DataError(f"The weights {name} hold NaN or infinite values.")


def count_neighbours(
    neighbours: ItemNeighbours | None,
    split: SequenceSplit,
    likeness: Likeness | None,
) -> None:
    """Count in the first process, and have its counts in all of them."""
    if neighbours is None:
        return
    if distributed.is_first():
        neighbours.count(split, likeness)
    distributed.take_from_first_(neighbours.buffers())
