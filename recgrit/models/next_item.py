"""A network that learns item vectors, and codebooks for them, by predicting the next item.

A semantic ID that is fitted to reconstruct item features does not depend on what users interact
with. Here the quantized vectors are learned from sequences: a transformer reads the vectors of a
history, and the training raises the product of its state with the next item's vector. The vector of
an item is the sum of two parts:

- the *encoding* of its features, which new items also have;
- an *offset* of its own, which is learned from training histories.

Seen items get an additional learned score, because item vectors predict badly whether users
interact with the same item again.

With a quantizer, the network represents each item by its quantized vector alone, as input and as
output. Codebooks and item vectors are then trained together through the gradient of the radius
surrogate, and items change their codes as their vectors change.

Shapes: B users, T history items, M targets, N items, C candidates, R rows of scores, D dimensions,
F features.
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

# Number of training items up to which all of them compete in a step. With more, the items of the
# step's histories, its targets and a random sample of this size compete.
MAX_CANDIDATES = 32_768
# Standard deviation of the initial vectors. Scores are products of vectors, so they start small;
# `latents` scales the vectors for the quantizer.
VECTOR_STD = 0.02


class NextItemNetwork(nn.Module):
    """A transformer over item vectors, each the encoding of the item's features plus an offset.

    Args:
        features: Feature vectors of the items, float32 ``[N, F]``.
        train_items: bool ``[N]``, true for items that occur in training histories. These are the
            candidates for the next item.
        model_dim: Number of dimensions of an item vector, D.
        num_layers: Number of layers of the history encoder.
        num_heads: Number of attention heads of each layer.
        history_length: Number of items of a history that the network reads at most.
        dropout: Dropout rate in the history encoder.
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
        # The offsets start small relative to the encodings. An offset grows only as far as the
        # training histories of its item require.
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
        """Return the vectors of items: the encoding of the features, plus the item's offset.

        An item outside the training has no offset.

        Args:
            items: Items by ``item_idx``, int64 ``[C]``. None returns the vectors of all items.

        Returns:
            Vectors ``[C, D]``, or ``[N, D]`` for all items.
        """
        chosen = slice(None) if items is None else items
        offsets = self.offsets.weight if items is None else self.offsets(items)
        known = self.train_items[chosen].unsqueeze(-1)
        encoded: Tensor = self.encode_items(self.features[chosen])
        return encoded + offsets * known

    @torch.no_grad()
    def all_vectors(self) -> Tensor:
        """Return the vectors of all items, ``[N, D]``, computed in chunks to bound memory."""
        items = torch.arange(len(self.features), device=self.features.device)
        return torch.cat([self.vectors(rows) for rows in items.split(ENCODE_CHUNK)])

    def latents(self, vectors: Tensor) -> Tensor:
        """Return the latents of item vectors: the vectors minus the center, divided by the scale.

        The scale gives latents about unit size, as the quantizer expects.
        """
        return (vectors - self.center) / self.scale

    @torch.no_grad()
    def start_quantizing(self, quantizer: Quantizer, *, center: Tensor, scale: Tensor) -> None:
        """Represent every item by its quantized vector from now on.

        Args:
            quantizer: Quantizer of the item latents (see `latents`).
            center: Mean that is subtracted from the item vectors, ``[D]``.
            scale: Scalar that the centred item vectors are divided by.
        """
        self.center.copy_(center)
        self.scale.copy_(scale)
        self.quantizer = quantizer

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize vectors, and return the quantized vectors and the loss of the quantizer.

        Without a quantizer the vectors are returned unchanged with a loss of 0.

        Args:
            vectors: Item vectors, ``[C, D]``.
        """
        if self.quantizer is None:
            return vectors, vectors.new_zeros(())
        # The codebook maintenance of the last step runs here, so that codes never change between
        # a forward pass and its backward pass.
        if self.training:
            self.quantizer.after_step()
        result = self.quantizer(self.latents(vectors))
        return result.quantized * self.scale + self.center, result.loss

    def loss(self, plan: Batch) -> TrainingLoss:
        """Compute the mean cross-entropy of a batch's targets, plus the quantizer's loss.

        Args:
            plan: Histories with their target items and weights.
        """
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
        """Add the learned score of seen items to scores ``[R, C]``.

        Args:
            scores: Scores of the candidates after each history, ``[R, C]``.
            columns: Columns of the histories' items in ``scores``, int64 ``[R, T]``.
            present: bool ``[R, T]``, true for items that belong to the history. The first item of
                each row always does.
        """
        columns = columns.where(present, columns[:, :1])
        added = scores.gather(1, columns) + self.input_scale * self.seen_score
        return scores.scatter(1, columns, added)

    def stand_idle(self) -> None:
        """Run the quantizer on an empty batch, in a process that has no windows in a step.

        The quantizer exchanges statistics between processes in each forward pass, so every process
        has to run the same number of passes.
        """
        self.quantize(self.center.new_empty(0, len(self.center)))

    def _draw_items(self, histories: Tensor, wanted: Tensor) -> tuple[Tensor | None, Tensor]:
        """Choose the items that compete in a step, and the log-weights of their scores.

        If there are at most `MAX_CANDIDATES` training items, all items compete. Otherwise the items
        of the histories, the targets and a random sample of the candidates compete. A sampled item
        stands for several items that are left out. The log-weight is the logarithm of that number,
        so that the sum over all candidates is estimated without bias.

        Args:
            histories: Items of the histories, int64 ``[B, T]``.
            wanted: Target items, int64 ``[M]``.

        Returns:
            The items in ascending order, int64 ``[C]``, or None for all items; and the log-weight
            of each, float32 ``[C]`` or ``[N]``. It is -inf for an item that is not a candidate.
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
        """Return the vectors that items are scored by, ``[N, D]``.

        They are the quantized item vectors if there is a quantizer, and else the item vectors.
        """
        vectors = self.all_vectors()
        if self.quantizer is None:
            return vectors
        codes = self.quantizer.encode(self.latents(vectors))
        return self.quantizer.decode(codes) * self.scale + self.center

    def rank_scores(self, histories: Histories, *, vectors: Tensor) -> Tensor:
        """Return the scores of all items for each history, ``[B, N]``.

        Args:
            histories: Histories of the users.
            vectors: Vectors of all items, ``[N, D]``, as `ranked_vectors` returns them.
        """
        given = self.input_scale * F.embedding(histories.items, vectors)
        scores = self.encoder.last(given, histories.ends).float() @ vectors.T
        return self._score_seen(scores, histories.items, histories.present)
