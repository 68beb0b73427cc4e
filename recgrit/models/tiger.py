"""TIGER (Rajput et al., arXiv 2305.05065): an encoder-decoder over code tokens.

The encoder reads the codes of the history's items as tokens. The decoder predicts the codes of the
next item one after another. Each training sample is one target with the history before it.

Shapes: B rows, T history items, S history tokens (T times L), L levels, W beams, D dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.models.config import TigerConfig
from recgrit.models.model import CatalogueInputs
from recgrit.models.tokens import (
    TokenLayer,
    TokenModel,
    TokenNetwork,
    TokenTables,
    beam_mask,
    codes_of,
)
from recgrit.ranking import Batch, Histories, TrainingLoss
from recgrit.retrieval.dropout import Dropout


class EncoderDecoder(TokenNetwork):
    """The network of TIGER: an encoder of the history's tokens and a decoder of the next item's.

    Args:
        codes: Semantic IDs of all items, int ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        model_dim: Number of dimensions of all token vectors, D.
        num_layers: Number of layers of the encoder, and also of the decoder.
        num_heads: Number of attention heads of each layer.
        head_dim: Number of dimensions of each attention head.
        hidden_dim: Number of hidden units of each feed-forward network.
        history_length: Number of items of a history that the network reads at most.
        dropout: Dropout rate in all parts of the network.
    """

    def __init__(
        self,
        codes: Tensor,
        codebook_sizes: tuple[int, ...],
        *,
        model_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        hidden_dim: int = 1024,
        history_length: int = 20,
        dropout: float = 0.1,
    ) -> None:
        tables = TokenTables(codes, codebook_sizes, model_dim)
        super().__init__(tables, history_length=history_length)
        num_levels = self.tables.num_levels
        self.positions = nn.Parameter(0.02 * torch.randn(history_length * num_levels, model_dim))
        self.levels = nn.Parameter(0.02 * torch.randn(num_levels, model_dim))
        settings = {"num_heads": num_heads, "head_dim": head_dim, "hidden_dim": hidden_dim}
        self.encoder, self.decoder = (
            nn.ModuleList(
                TokenLayer(model_dim, dropout=dropout, crosses=crosses, **settings)
                for _ in range(num_layers)
            )
            for crosses in (False, True)
        )
        self.memory_norm = nn.LayerNorm(model_dim)
        self.norm = nn.LayerNorm(model_dim)
        self.dropout = Dropout(dropout)

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Encode histories, and return the encoder's output and the mask of its padding.

        Returns:
            The output of the encoder ``[B, S, D]``, and bool ``[B, 1, S]``, true for tokens that
            are not padding.
        """
        tokens = self.tables.item_tokens[histories.items].flatten(1)
        mask = histories.present.repeat_interleave(self.tables.num_levels, dim=1).unsqueeze(1)
        x = self.dropout(self.tables.embed(tokens) + self.positions[: tokens.shape[1]])
        for layer in self.encoder:
            x = layer(x, mask)
        return self.memory_norm(x), mask

    def _decode(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """Return the decoder's states after 0, 1, …, l tokens of each beam, ``[B, W, l + 1, D]``.

        Args:
            context: Tensors that `read` returned.
            chosen: The l tokens that each beam has chosen so far, int64 ``[B, W, l]``.
        """
        memory, memory_mask = context
        width, length = chosen.shape[1:]
        x = F.pad(self.tables.embed(chosen), (0, 0, 1, 0)) + self.levels[: length + 1]
        x = self.dropout(x).flatten(1, 2)
        mask = beam_mask(width, length + 1, x.device)
        for layer in self.decoder:
            x = layer(x, mask, memory=memory, memory_mask=memory_mask)
        states: Tensor = self.norm(x).unflatten(1, (width, length + 1))
        return states

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """Return the state of each beam after its last token, which predicts its next code.

        Args:
            context: Tensors that `read` returned.
            chosen: The l tokens that each beam has chosen so far, int64 ``[B, W, l]``.

        Returns:
            States ``[B, W, D]``.
        """
        return self._decode(context, chosen)[:, :, -1]

    def loss(self, plan: Batch) -> TrainingLoss:
        """Compute the loss of a batch, with one sample per target.

        The history of a sample is the items before its target.

        Args:
            plan: Histories with their target items and weights.
        """
        ends, longest = plan.ends, plan.histories.shape[1]
        lengths = (ends + 1).clamp_max(self.history_length)
        places = torch.arange(min(self.history_length, longest), device=ends.device)
        places = (ends + 1 - lengths).unsqueeze(-1) + places
        items = plan.histories[plan.users.unsqueeze(-1), places.clamp_max(longest - 1)]
        context = self.read(Histories(items, lengths))
        chosen = self.tables.item_tokens[plan.targets][:, None, :-1]
        return self.tables.loss(self._decode(context, chosen)[:, 0], plan.targets, plan.weights)


class TigerModel(TokenModel):
    """A model that ranks items with TIGER, `EncoderDecoder`."""

    settings_class = TigerConfig

    @classmethod
    def build(cls, items: CatalogueInputs, settings: TigerConfig) -> EncoderDecoder:
        """Return an untrained network over the semantic IDs of a catalogue."""
        return EncoderDecoder(
            *codes_of(items),
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            head_dim=settings.head_dim,
            hidden_dim=settings.hidden_dim,
            history_length=settings.history_length,
            dropout=settings.dropout,
        )
