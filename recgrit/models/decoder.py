"""One causal stream of code tokens, read and written by a decoder alone.

The codes of item after item are one sequence, and all its positions are targets at once.

Shapes: B rows, T history items, S history tokens (T times L), L levels, W beams, D dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.models.config import DecoderConfig
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


class DecoderOnly(TokenNetwork):
    """One causal stream of tokens, the codes of item after item.

    Args:
        codes: int ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        model_dim: D.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        history_length: Longest history, in items.
        dropout: Rate everywhere.
    """

    def __init__(
        self,
        codes: Tensor,
        codebook_sizes: tuple[int, ...],
        *,
        model_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        history_length: int = 50,
        dropout: float = 0.3,
    ) -> None:
        tables = TokenTables(codes, codebook_sizes, model_dim)
        super().__init__(tables, history_length=history_length)
        # One item more: the one that is being written.
        self.positions = nn.Parameter(0.02 * torch.randn(history_length + 1, model_dim))
        self.levels = nn.Parameter(0.02 * torch.randn(self.tables.num_levels, model_dim))
        self.layers = nn.ModuleList(
            TokenLayer(
                model_dim,
                num_heads=num_heads,
                head_dim=model_dim // num_heads,
                hidden_dim=4 * model_dim,
                dropout=dropout,
                crosses=False,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(model_dim)
        self.dropout = Dropout(dropout)

    def _embed(self, items: Tensor) -> Tensor:
        """Tokens of items ``[B, T]`` as inputs ``[B, S, D]``."""
        x = self.tables.embed(self.tables.item_tokens[items]) + self.levels
        inputs: Tensor = self.dropout(x + self.positions[: items.shape[1], None]).flatten(1, 2)
        return inputs

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Inputs of every layer ``[B, S, D]``, last states, and which tokens are no padding."""
        x = self._embed(histories.items)
        inputs = []
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            inputs.append(x)
            x = layer(x, causal.unsqueeze(0))
        ends = histories.lengths * self.tables.num_levels - 1
        last = self.norm(x[torch.arange(len(x), device=x.device), ends])
        present = histories.present.repeat_interleave(self.tables.num_levels, dim=1)
        return (last, present, histories.lengths, *inputs)

    def next_states(self, context: tuple[Tensor, ...], chosen: Tensor) -> Tensor:
        """The state after all tokens of each beam."""
        last, present, lengths, *inputs = context
        num_users, width, length = chosen.shape
        if length == 0:
            return last.unsqueeze(1).expand(-1, width, -1)
        x = (
            self.tables.embed(chosen)
            + self.levels[:length]
            + self.positions[lengths][:, None, None]
        )
        x = x.flatten(1, 2)
        own = beam_mask(width, length, x.device).expand(num_users, -1, -1)
        mask = torch.cat([present.unsqueeze(1).expand(-1, own.shape[1], -1), own], dim=-1)
        for layer, before in zip(self.layers, inputs, strict=True):
            x = layer(x, mask, before=before)
        states: Tensor = self.norm(x).unflatten(1, (width, length))[:, :, -1]
        return states

    def loss(self, plan: Batch) -> TrainingLoss:
        """All tokens that follow, of the supervised positions."""
        num_levels = self.tables.num_levels
        # The stream holds the last target too: its first codes are read to tell the later ones.
        items = F.pad(plan.histories, (0, 1))
        # Where a history ends early, what follows its end is its target, not padding.
        items[plan.users, plan.ends + 1] = plan.targets
        x = self._embed(items)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            x = layer(x, causal.unsqueeze(0))
        # The state before each token of item t + 1: shifted by one token.
        states = self.norm(x)[:, num_levels - 1 : -1].unflatten(1, (-1, num_levels))
        return self.tables.loss(states.flatten(0, 1)[plan.positions], plan.targets, plan.weights)


class DecoderModel(TokenModel):
    """The decoder-only model as a plug."""

    settings_class = DecoderConfig

    @classmethod
    def build(cls, items: CatalogueInputs, settings: DecoderConfig) -> DecoderOnly:
        """An untrained network over the IDs of a catalogue."""
        return DecoderOnly(
            *codes_of(items),
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            history_length=settings.history_length,
            dropout=settings.dropout,
        )
