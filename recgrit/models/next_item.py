"""Item vectors that say what comes next, and codebooks that learn with them.

A semantic ID that was fitted to reconstruct an item's features never hears of a recommender. Here
the vectors that are quantized are learned from sequences: a transformer reads the vectors of a
history, and the next item's vector has to have the largest product with its state. The vector of an
item is an *encoding* of its features, which new items have too, plus an *offset* of its own that
training histories have to justify. Items that a history holds already get a learned score, for
vectors say badly whether people come back for the same item.

With a quantizer the network sees nothing of an item but the sum of its codes, as input and as
output. Codebooks and item vectors then learn together, by the radius surrogate's gradient, and
items change their codes as their vectors move.

Shapes: B users, T history items, M targets, N items, C candidates, D dimensions, F features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.quantization.autoencoder import FeatureEncoder
from recgrit.quantization.fit import ENCODE_CHUNK
from recgrit.quantization.quantizer import Quantizer
from recgrit.ranking import NEVER, Batch, Histories, TrainingLoss
from recgrit.retrieval.transformer import HistoryEncoder
from recgrit.training.weighing import cross_entropy

# Items that compete in a step: all where they are fewer, else the step's targets and a sample.
MAX_CANDIDATES = 32_768
# Scores ask for small vectors, quantizers for vectors of unit size.
VECTOR_STD = 0.02


class NextItemNetwork(nn.Module):
    """A transformer over item vectors that are encodings of features plus offsets.

    Args:
        features: float32 ``[N, F]``.
        train_items: bool ``[N]``, the items of training histories: the candidates.
        model_dim: D.
        num_layers: Layers of the history encoder.
        num_heads: Attention heads.
        history_length: Longest history, in items.
        dropout: Rate in the history encoder.
    """

    features: Tensor
    train_items: Tensor
    candidates: Tensor
    center: Tensor
    scale: Tensor

    def __init__(
        self,
        features: Tensor,
        *,
        train_items: Tensor,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        history_length: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.input_scale = model_dim**0.5
        self.encode_items = FeatureEncoder(features.shape[1], model_dim, std=VECTOR_STD)
        self.encode_items.fit_scale_(features)
        self.offsets = nn.Embedding(len(features), model_dim)
        # Small beside the encodings: what is not learned of an item is not there.
        nn.init.normal_(self.offsets.weight, std=VECTOR_STD / 4)
        self.encoder = HistoryEncoder(
            model_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            history_length=history_length,
            dropout=dropout,
        )
        self.seen_score = nn.Parameter(torch.zeros(()))
        self.quantizer: Quantizer | None = None
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("train_items", train_items, persistent=False)
        self.register_buffer("candidates", train_items.nonzero().squeeze(-1), persistent=False)
        self.register_buffer("center", torch.zeros(model_dim))
        self.register_buffer("scale", torch.ones(()))

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """Vectors of all items ``[N, D]``, or of some ``[C, D]``; the unseen have no offset."""
        chosen = slice(None) if items is None else items
        offsets = self.offsets.weight if items is None else self.offsets(items)
        known = self.train_items[chosen].unsqueeze(-1)
        encoded: Tensor = self.encode_items(self.features[chosen])
        return encoded + offsets * known

    @torch.no_grad()
    def all_vectors(self) -> Tensor:
        """Vectors ``[N, D]``, a chunk of items at a time."""
        items = torch.arange(len(self.features), device=self.features.device)
        return torch.cat([self.vectors(rows) for rows in items.split(ENCODE_CHUNK)])

    def latents(self, vectors: Tensor) -> Tensor:
        """What the quantizer is given of vectors."""
        return (vectors - self.center) / self.scale

    @torch.no_grad()
    def start_quantizing(self, quantizer: Quantizer, *, center: Tensor, scale: Tensor) -> None:
        """See nothing of an item but the sum of its codes from here on.

        Args:
            quantizer: Of latents, see `latents`.
            center: ``[D]``, of the vectors.
            scale: Of the vectors, a scalar.
        """
        self.center.copy_(center)
        self.scale.copy_(scale)
        self.quantizer = quantizer

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the codes of vectors ``[C, D]``, and the loss of quantizing them."""
        if self.quantizer is None:
            return vectors, vectors.new_zeros(())
        if self.training:  # What the last step calls for: nothing lies between it and its backward.
            self.quantizer.after_step()
        result = self.quantizer(self.latents(vectors))
        return result.quantized * self.scale + self.center, result.loss

    def loss(self, plan: Batch) -> TrainingLoss:
        """Cross-entropy of the next item at every supervised position, and the quantizer's loss."""
        histories, wanted = plan.histories, plan.targets
        items, log_weights = self._draw_items(histories, wanted)
        vectors, quantization = self.quantize(self.vectors(items))
        rows = histories if items is None else torch.searchsorted(items, histories)
        states = self.encoder(self.input_scale * F.embedding(rows, vectors))
        states = states.flatten(0, 1)[plan.positions]
        upto = torch.arange(histories.shape[1], device=histories.device)
        scores = self._score_seen(
            (states @ vectors.T).float() + log_weights,
            rows[plan.users],
            upto <= plan.ends.unsqueeze(-1),
        )
        columns = wanted if items is None else torch.searchsorted(items, wanted)
        accuracy = (scores.detach().argmax(dim=-1) == columns).float().mean()
        value = cross_entropy(scores, columns, plan.weights) + quantization
        return TrainingLoss(value, accuracy.unsqueeze(0))

    def _score_seen(self, scores: Tensor, columns: Tensor, present: Tensor) -> Tensor:
        """Scores ``[R, C]`` with what being in the history adds to them.

        Args:
            scores: Of any items.
            columns: ``[R, T]``, those of the histories' items.
            present: bool ``[R, T]``, which of them are meant; the first always is.
        """
        columns = columns.where(present, columns[:, :1])
        added = scores.gather(1, columns) + self.input_scale * self.seen_score
        return scores.scatter(1, columns, added)

    def stand_idle(self) -> None:
        """Quantize nothing, as this process's part of a step that others learn from."""
        self.quantize(self.center.new_empty(0, len(self.center)))

    def _draw_items(self, histories: Tensor, wanted: Tensor) -> tuple[Tensor | None, Tensor]:
        """The items of a step, ascending ``[C]``, and the logarithms of how many each stands for.

        None for the items stands for all of them. A sample of the candidates stands for those that
        are left out, so that the sum over all is estimated without bias.
        """
        if len(self.candidates) <= MAX_CANDIDATES:
            return None, self._log_mask(self.train_items)
        given = torch.cat([histories.flatten(), wanted])
        places = torch.randint(len(self.candidates), (MAX_CANDIDATES,), device=given.device)
        items = torch.cat([given, self.candidates[places]]).unique()
        drawn = ~torch.isin(items, given)
        num_left = len(self.candidates) - int((~drawn & self.train_items[items]).sum())
        log_weight = math.log(num_left / max(1, int(drawn.sum())))
        return items, self._log_mask(self.train_items[items]) + log_weight * drawn

    @staticmethod
    def _log_mask(present: Tensor) -> Tensor:
        return torch.zeros_like(present, dtype=torch.float32).masked_fill_(~present, NEVER)

    @torch.no_grad()
    def ranked_vectors(self) -> Tensor:
        """The vectors ``[N, D]`` that items are scored by: of their codes, where there are any."""
        vectors = self.all_vectors()
        if self.quantizer is None:
            return vectors
        codes = self.quantizer.encode(self.latents(vectors))
        return self.quantizer.decode(codes) * self.scale + self.center

    def rank_scores(self, histories: Histories, *, vectors: Tensor) -> Tensor:
        """Scores ``[B, N]`` of all items by their vectors ``[N, D]``."""
        given = self.input_scale * F.embedding(histories.items, vectors)
        scores = self.encoder.last(given, histories.ends).float() @ vectors.T
        return self._score_seen(scores, histories.items, histories.present)
