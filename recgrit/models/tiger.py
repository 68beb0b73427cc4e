"""TIGER (Rajput et al., arXiv 2305.05065): an encoder-decoder over code tokens.

The codes of the history's items are the tokens of an encoder, a decoder writes the next item's
codes one by one, and each training sample is one target with the history before it.

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
    """TIGER: encoder over the history's tokens, decoder over the next item's.

    Args:
        codes: int ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        model_dim: D.
        num_layers: Of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Dimensions of each head.
        hidden_dim: Of the feed-forward nets.
        history_length: Longest history, in items.
        dropout: Rate everywhere.
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
        """Memory ``[B, S, D]`` and which of it is no padding ``[B, 1, S]``."""
        tokens = self.tables.item_tokens[histories.items].flatten(1)
        mask = histories.present.repeat_interleave(self.tables.num_levels, dim=1).unsqueeze(1)
        x = self.dropout(self.tables.embed(tokens) + self.positions[: tokens.shape[1]])
        for layer in self.encoder:
            x = layer(x, mask)
        return self.memory_norm(x), mask

    def _decode(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """States ``[B, W, l + 1, D]`` after nothing, one token and so on of ``[B, W, l]``."""
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
        """The state after all tokens of each beam."""
        return self._decode(context, chosen)[:, :, -1]

    def loss(self, plan: Batch) -> TrainingLoss:
        """One sample per supervised position: its target, and the items up to it as history."""
        ends, longest = plan.ends, plan.histories.shape[1]
        lengths = (ends + 1).clamp_max(self.history_length)
        places = torch.arange(min(self.history_length, longest), device=ends.device)
        places = (ends + 1 - lengths).unsqueeze(-1) + places
        items = plan.histories[plan.users.unsqueeze(-1), places.clamp_max(longest - 1)]
        context = self.read(Histories(items, lengths))
        chosen = self.tables.item_tokens[plan.targets][:, None, :-1]
        return self.tables.loss(self._decode(context, chosen)[:, 0], plan.targets, plan.weights)


class TigerModel(TokenModel):
    """TIGER as a plug."""

    settings_class = TigerConfig

    @classmethod
    def build(cls, items: CatalogueInputs, settings: TigerConfig) -> EncoderDecoder:
        """An untrained network over the IDs of a catalogue."""
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
