"""A causal transformer over a user's history: pre-norm, GELU, learned positions.

Shapes: B users, T history items, D model dimensions, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and what came before.

    Histories are padded at their end, so that the causal mask alone keeps padding out.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``."""
        num_users, length, dim = x.shape
        parts = self.project_in(x).view(num_users, length, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        out: Tensor = self.project_out(attended.transpose(1, 2).reshape(num_users, length, dim))
        return out


class TransformerLayer(nn.Module):
    """Attention and a feed-forward net, each behind a norm and beside a residual path."""

    def __init__(self, dim: int, *, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out


class HistoryEncoder(nn.Module):
    """One state per position of a history of item vectors.

    Args:
        dim: D.
        num_layers: Transformer layers.
        num_heads: Attention heads; divides D.
        history_length: Longest history, in items.
        dropout: Rate everywhere in the encoder, its input included.
    """

    def __init__(
        self, dim: int, *, num_layers: int, num_heads: int, history_length: int, dropout: float
    ) -> None:
        super().__init__()
        self.history_length = history_length
        self.positions = nn.Parameter(0.02 * torch.randn(history_length, dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, hidden_dim=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, items: Tensor) -> Tensor:
        """Item vectors ``[B, T, D]`` -> states ``[B, T, D]``."""
        x = self.dropout(items + self.positions[: items.shape[1]])
        for layer in self.layers:
            x = layer(x)
        states: Tensor = self.norm(x)
        return states
