"""SASRec: a transformer with one vector per item, trained with cross-entropy over all items.

The model is self-attentive sequential recommendation (Kang and McAuley, arXiv 1808.09781). It is
trained as a strong baseline: every position of a history is a target, as in the paper, and the loss
is the cross-entropy over all training items instead of over one sampled negative. SASRec shares
history encoder, batches and training loop with the retriever. A comparison of the two therefore
differs only in how items are represented: by semantic IDs or by a vector each.

Shapes: B users, T history items, M targets, N items, D model dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recgrit.models.config import SASRecConfig
from recgrit.models.model import CatalogueInputs
from recgrit.models.network import NetworkModel, count_neighbours
from recgrit.ranking import NEVER, Batch, Histories, ScoreRanker, TrainingLoss
from recgrit.retrieval.config import NeighbourKind
from recgrit.retrieval.leaves import LeafSets
from recgrit.retrieval.neighbours import ItemNeighbours
from recgrit.retrieval.transformer import HistoryEncoder
from recgrit.training.weighing import cross_entropy

if TYPE_CHECKING:
    from recgrit.data.splits import SequenceSplit


class SASRec(nn.Module):
    """The network of SASRec: a history encoder, and one vector per item for input and output.

    Args:
        num_items: Number of items in the catalogue, N.
        train_items: bool ``[N]``, true for items that occur in training histories. Only these are
            candidates in the training loss.
        model_dim: Number of dimensions of an item vector, D.
        num_layers: Number of layers of the history encoder.
        num_heads: Number of attention heads of each layer.
        history_length: Number of items of a history that the network reads at most.
        dropout: Dropout rate in the history encoder.
        neighbours: Kinds of item neighbours whose scores are combined with the network's scores.
            Empty uses no neighbours.
    """

    train_items: Tensor

    def __init__(
        self,
        num_items: int,
        *,
        train_items: Tensor,
        model_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        history_length: int = 50,
        dropout: float = 0.5,
        neighbours: Sequence[NeighbourKind] = (),
    ) -> None:
        super().__init__()
        self.input_scale: float = model_dim**0.5
        self.items = nn.Embedding(num_items, model_dim)
        nn.init.normal_(self.items.weight, std=0.02)
        self.encoder = HistoryEncoder(
            model_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            history_length=history_length,
            dropout=dropout,
        )
        self.register_buffer("train_items", train_items, persistent=False)
        self.neighbours = ItemNeighbours(num_items, neighbours) if neighbours else None

    def encode(self, histories: Tensor) -> Tensor:
        """Return the state after each position of histories ``[B, T]``, ``[B, T, D]``."""
        states: Tensor = self.encoder(self.input_scale * self.items(histories))
        return states

    def score(self, states: Tensor) -> Tensor:
        """Return the scores of all items, ``[..., N]``, from states ``[..., D]``."""
        return states @ self.items.weight.T

    def rank_scores(
        self,
        histories: Histories,
        *,
        neighbours: ItemNeighbours | None,
        precision: torch.dtype,
    ) -> Tensor:
        """Return the scores by which all items are ranked for each history, float32 ``[B, N]``.

        Args:
            histories: Histories of the users.
            neighbours: Neighbours whose scores are combined with the network's scores. None uses
                the network alone.
            precision: Number format of the history encoder. With ``torch.bfloat16`` the encoder
                runs under autocast.
        """
        device = self.train_items.device
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            vectors = self.input_scale * self.items(histories.items)
            states = self.encoder.last(vectors, histories.ends)
        scores = self.score(states.float())
        if neighbours is None:
            return scores
        items = torch.arange(scores.shape[1], device=device)
        seen = LeafSets.build(histories.items, histories.present, len(items))
        found = neighbours.weigh(histories, items, seen)
        return found.mix(scores.log_softmax(dim=-1), found.leaves, found.weights, found.bonuses)

    def loss(self, plan: Batch) -> TrainingLoss:
        """Compute the mean cross-entropy of a batch's targets among all training items.

        Args:
            plan: Histories with their target items and weights.
        """
        states = self.encode(plan.histories).flatten(0, 1)[plan.positions]
        scores = self.score(states).float().masked_fill(~self.train_items, NEVER)
        accuracy = (scores.detach().argmax(dim=-1) == plan.targets).float().mean()
        value = cross_entropy(scores, plan.targets, plan.weights)
        return TrainingLoss(value, accuracy.unsqueeze(0))


class SASRecModel(NetworkModel[SASRec]):
    """A model that ranks items with the network `SASRec`."""

    settings_class = SASRecConfig
    needs = ("embed",)

    @torch.inference_mode()
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return the item vectors, float32 ``[N, D]``, with 0 for items outside the training."""
        network = self.network
        vectors = network.items.weight * network.train_items.unsqueeze(-1)
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    @classmethod
    def build(cls, items: CatalogueInputs, settings: SASRecConfig) -> SASRec:
        """Return an untrained SASRec network for the items of a catalogue."""
        return SASRec(
            items.num_items,
            train_items=torch.from_numpy(items.trained),
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            history_length=settings.history_length,
            dropout=settings.dropout,
            neighbours=settings.neighbours,
        )

    @classmethod
    def count(cls, network: SASRec, items: CatalogueInputs, split: SequenceSplit) -> None:
        """Count the item neighbours in the training histories, if the settings name any kind."""
        count_neighbours(network.neighbours, split, items.likeness)

    def ranker(
        self, *, beam_width: int | None = None, allowed: Tensor | None = None
    ) -> ScoreRanker:
        """Return a ranker that scores every item and ignores ``beam_width``; see `Model.ranker`."""
        return self._ranker(self.network.neighbours, allowed)

    def valid_ranker(self, beam_width: int | None) -> ScoreRanker:
        """Return a ranker without neighbours, for the validation after each epoch.

        At the start of the training, neighbours rank better than the network. With neighbours, the
        validation would not show the progress of the network.
        """
        return self._ranker(None, None)

    def _ranker(self, neighbours: ItemNeighbours | None, allowed: Tensor | None) -> ScoreRanker:
        network = self.network.eval()
        return ScoreRanker(
            partial(network.rank_scores, neighbours=neighbours, precision=self.precision),
            num_items=self.items.num_items,
            history_length=self.settings.history_length,
            device=network.train_items.device,
            allowed=allowed,
        )
