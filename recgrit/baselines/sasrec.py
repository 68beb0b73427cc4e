"""SASRec with full-softmax cross-entropy: one vector per item, the same trunk as the retriever.

Self-attentive sequential recommendation (Kang and McAuley, arXiv 1808.09781), trained as it has to
be to be strong: every position of a history is a target, and the loss is the cross-entropy over all
training items instead of one sampled negative. It shares history encoder, batches and training loop
with the retriever, so that a comparison varies what is compared: items as codes or as rows.

Shapes: B users, T history items, M targets, N items, D model dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.splits import SequenceSplit
from recgrit.retrieval.config import TransformerConfig
from recgrit.retrieval.leaves import LeafSets
from recgrit.retrieval.losses import TrainingLoss
from recgrit.retrieval.neighbours import ItemNeighbours
from recgrit.retrieval.ranking import NEVER, Histories, Ranked, rank_scores
from recgrit.retrieval.transformer import HistoryEncoder

# Users ranked at once: bounds the table of their scores of all items.
BATCH_USERS = 256


class SASRec(nn.Module):
    """History encoder and one vector per item, for input and output alike.

    Args:
        num_items: N.
        train_items: bool ``[N]``, the items that stand in training histories: the candidates.
        model_dim: D.
        num_layers: Layers of the history encoder.
        num_heads: Attention heads.
        history_length: Longest history, in items.
        dropout: Rate in the encoder.
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

    def encode(self, histories: Tensor) -> Tensor:
        """States ``[B, T, D]`` of histories ``[B, T]``."""
        states: Tensor = self.encoder(self.input_scale * self.items(histories))
        return states

    def score(self, states: Tensor) -> Tensor:
        """Scores of all items, ``[..., N]``."""
        return states @ self.items.weight.T

    def loss(self, histories: Tensor, targets: Tensor, supervised: Tensor) -> TrainingLoss:
        """Cross-entropy of the next item at every supervised position."""
        scores = self.score(self.encode(histories)[supervised]).float()
        scores = scores.masked_fill(~self.train_items, NEVER)
        wanted = targets[supervised]
        accuracy = (scores.detach().argmax(dim=-1) == wanted).float().mean()
        return TrainingLoss(F.cross_entropy(scores, wanted), accuracy.unsqueeze(0))


class SASRecRanker:
    """Ranks items by their scores.

    Args:
        model: A trained model; put in eval mode.
        neighbours: Mixed into the probabilities as the retriever's are; None for none.
        precision: bfloat16 runs the history encoder under autocast.
    """

    batch_users = BATCH_USERS

    def __init__(
        self,
        model: SASRec,
        *,
        neighbours: ItemNeighbours | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.model = model.eval()
        self.neighbours = neighbours
        self.precision = precision

    @property
    def history_length(self) -> int:
        """Items of a history that are read."""
        return self.model.encoder.history_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.train_items.device

    @torch.inference_mode()
    def rank(self, histories: Histories, *, top_k: int, excluded: Histories | None) -> Ranked:
        """The best items after these histories."""
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            states = self.model.encode(histories.items)
        scores = self.model.score(histories.take_last(states).float())
        if self.neighbours is not None:
            items = torch.arange(scores.shape[1], device=self.device)
            seen = LeafSets.build(histories.items, histories.present, len(items))
            found = self.neighbours.weigh(histories, items, seen)
            scores = found.mix(scores.log_softmax(dim=-1), found.leaves, found.weights)
        return rank_scores(scores, top_k=top_k, excluded=excluded)


def build_sasrec(split: SequenceSplit, config: TransformerConfig) -> SASRec:
    """An untrained SASRec for the items of a split."""
    return SASRec(
        split.num_items,
        train_items=torch.from_numpy(split.train_item_counts() > 0),
        model_dim=config.model_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        history_length=config.history_length,
        dropout=config.dropout,
    )
