"""A causal transformer over a user's history, with pre-norm layers, GELU and learned positions.

Shapes: B users, T history items, D model dimensions, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.retrieval.dropout import Dropout


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position attends to itself and to earlier positions.

    Histories are padded at their end, so the causal mask alone excludes padding.

    Args:
        dim: Number of model dimensions D.
        num_heads: Number of attention heads H, which divides D.
        dropout: Dropout rate of the attention weights.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended vectors ``[B, T, D]`` of vectors ``[B, T, D]``.

        Shapes: B users, T history items, D model dimensions.
        """
        num_users, length, dim = x.shape
        parts = self.project_in(x).view(num_users, length, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
        if self.training and self.dropout.rate and x.is_cpu:
            attended = self._attend(query, key, value)
        else:
            rate = self.dropout.rate if self.training else 0.0
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=rate
            )
        out: Tensor = self.project_out(attended.transpose(1, 2).reshape(num_users, length, dim))
        return out

    def last(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return the result of `forward` at one position of each user only.

        Shapes: B users, T history items, D model dimensions.

        Args:
            x: Vectors ``[B, T, D]``.
            ends: Position of each user ``[B]``.

        Returns:
            Vectors ``[B, D]``.
        """
        num_users, length, dim = x.shape
        weight, bias = self.project_in.weight, self.project_in.bias
        at = x[torch.arange(num_users, device=x.device), ends]
        query = F.linear(at, weight[:dim], bias[:dim]).view(num_users, self.num_heads, 1, -1)
        parts = F.linear(x, weight[dim:], bias[dim:]).view(num_users, length, 2, self.num_heads, -1)
        key, value = parts.permute(2, 0, 3, 1, 4)
        before = torch.arange(length, device=x.device) <= ends.unsqueeze(-1)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=before[:, None, None]
        )
        out: Tensor = self.project_out(attended.reshape(num_users, dim))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return causal attention with `Dropout` on its weights.

        All tensors are ``[B, H, T, D / H]``.

        Shapes: B users, H heads, T history items, D model dimensions.
        """
        length = query.shape[2]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = query / query.shape[-1] ** 0.5 @ key.transpose(2, 3)
        weights = scores.masked_fill_(later, float("-inf")).softmax(dim=-1)
        attended: Tensor = self.dropout(weights) @ value
        return attended


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer: attention and a feed-forward net, each with a residual path.

    Args:
        dim: Number of model dimensions D.
        num_heads: Number of attention heads H, which divides D.
        hidden_dim: Number of hidden units of the feed-forward net.
        dropout: Dropout rate.
    """

    def __init__(self, dim: int, *, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), Dropout(dropout), nn.Linear(hidden_dim, dim)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output ``[B, T, D]`` for vectors ``[B, T, D]``.

        Shapes: B users, T history items, D model dimensions.
        """
        return self._feed(x + self.dropout(self.attention(self.attention_norm(x))))

    def last(self, x: Tensor, ends: Tensor) -> Tensor:
        """Return the result of `forward` at one position of each user only.

        Shapes: B users, T history items, D model dimensions.

        Args:
            x: Vectors ``[B, T, D]``.
            ends: Position of each user ``[B]``.

        Returns:
            Vectors ``[B, D]``.
        """
        at = x[torch.arange(x.shape[0], device=x.device), ends]
        return self._feed(at + self.attention.last(self.attention_norm(x), ends))

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out


class HistoryEncoder(nn.Module):
    """A transformer that returns one state per position of a history of item vectors.

    Args:
        dim: Number of model dimensions D.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads, which divides D.
        history_length: Maximum number of history items.
        dropout: Dropout rate of all layers and of the input.
    """

    def __init__(
        self, dim: int, *, num_layers: int, num_heads: int, history_length: int, dropout: float
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.positions = nn.Parameter(0.02 * torch.randn(history_length, dim))
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, hidden_dim=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, items: Tensor, first: Tensor | None = None) -> Tensor:
        """Return the states ``[B, T, D]`` of histories.

        Shapes: B users, T history items, D model dimensions.

        Args:
            items: Item vectors ``[B, T, D]``, oldest first.
            first: Token before each history ``[B, D]``. It has no state of its own in the result.
                None uses no token.
        """
        x = self.dropout(self._place(items, first))
        for layer in self.layers:
            x = layer(x)
        states: Tensor = self.norm(x if first is None else x[:, 1:])
        return states

    def _place(self, items: Tensor, first: Tensor | None) -> Tensor:
        x = items + self.positions[: items.shape[1]]
        return x if first is None else torch.cat([first.unsqueeze(1).to(x.dtype), x], dim=1)

    def last(self, items: Tensor, ends: Tensor, first: Tensor | None = None) -> Tensor:
        """Return the state at one position of each history, for ranking.

        The last layer computes no other state.

        Shapes: B users, T history items, D model dimensions.

        Args:
            items: Item vectors ``[B, T, D]``, oldest first.
            ends: Position of each history whose state is returned ``[B]``.
            first: Token before each history ``[B, D]``. None uses no token.

        Returns:
            States ``[B, D]``.
        """
        x = self._place(items, first)
        ends = ends if first is None else ends + 1
        for layer in self.layers[:-1]:
            x = layer(x)
        (layer,) = self.layers[-1:]
        assert isinstance(layer, TransformerLayer)
        states: Tensor = self.norm(layer.last(x, ends))
        return states
