"""The decoder-only model: one causal transformer over the codes of a history's items.

The codes of all items of a history form one sequence of tokens. The training predicts the codes of
all items of a history at once, each from the tokens before it.

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
    """A causal transformer over the sequence of the codes of a history's items.

    Args:
        codes: Semantic IDs of all items, int ``[N, L]``.
        codebook_sizes: Number of codes of each level.
        model_dim: Number of dimensions of all token vectors, D.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads of each layer.
        history_length: Number of items of a history that the network reads at most.
        dropout: Dropout rate in all parts of the network.
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
        # One position more than the history has items, for the item that is predicted.
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
        """Return the input vectors of the tokens of items ``[B, T]``, ``[B, S, D]``."""
        x = self.tables.embed(self.tables.item_tokens[items]) + self.levels
        inputs: Tensor = self.dropout(x + self.positions[: items.shape[1], None]).flatten(1, 2)
        return inputs

    def read(self, histories: Histories) -> tuple[Tensor, ...]:
        """Encode histories, and return the tensors that `next_states` reads.

        Returns:
            The state after the last token ``[B, D]``; which tokens are not padding, bool
            ``[B, S]``; the lengths of the histories ``[B]``; and the inputs of each layer
            ``[B, S, D]``, to which the tokens of the beams attend.
        """
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
        """Return the state of each beam after its last token, which predicts its next code.

        Args:
            context: Tensors that `read` returned.
            chosen: The l tokens that each beam has chosen so far, int64 ``[B, W, l]``.

        Returns:
            States ``[B, W, D]``.
        """
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
        """Compute the loss of a batch's targets, each the item that follows a history position.

        Args:
            plan: Histories with their target items and weights.
        """
        num_levels = self.tables.num_levels
        # The sequence includes the last target, because its later codes are predicted from its
        # first codes.
        items = F.pad(plan.histories, (0, 1))
        # In a row that ends early, the target takes the place of the padding after the last item.
        items[plan.users, plan.ends + 1] = plan.targets
        x = self._embed(items)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for layer in self.layers:
            x = layer(x, causal.unsqueeze(0))
        # The code of level l of item t + 1 is predicted from the state of the token before it.
        states = self.norm(x)[:, num_levels - 1 : -1].unflatten(1, (-1, num_levels))
        return self.tables.loss(states.flatten(0, 1)[plan.positions], plan.targets, plan.weights)


class DecoderModel(TokenModel):
    """A model that ranks items with the decoder-only network, `DecoderOnly`."""

    settings_class = DecoderConfig

    @classmethod
    def build(cls, items: CatalogueInputs, settings: DecoderConfig) -> DecoderOnly:
        """Return an untrained network over the semantic IDs of a catalogue."""
        return DecoderOnly(
            *codes_of(items),
            model_dim=settings.model_dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            history_length=settings.history_length,
            dropout=settings.dropout,
        )
