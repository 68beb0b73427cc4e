"""What attributes of items and users are to the history encoder.

Shapes: N items or users, C values of one, R rows of the table, D model dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.attributes import Attributes


class AttributeVectors(nn.Module):
    """Sums over columns of the mean embedding of an item's, or user's, values.

    Unknown values begin at 0, so that where training has none they add nothing.

    Args:
        attributes: Of the whole catalogue, or of all users.
        dim: D.
    """

    codes: Tensor
    weights: Tensor

    def __init__(self, attributes: Attributes, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(attributes.num_rows, dim, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.02)
        with torch.no_grad():
            self.table.weight[[0, *attributes.unknown_rows]] = 0.0
        # Of the catalogue, so not in the checkpoint.
        codes = torch.from_numpy(attributes.codes)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("weights", torch.from_numpy(attributes.weights), persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of items ``[...]``."""
        codes, weights = self.codes[items].flatten(0, -2), self.weights[items].flatten(0, -2)
        sums = F.embedding_bag(
            codes, self.table.weight, per_sample_weights=weights, mode="sum", padding_idx=0
        )
        return sums.view(*items.shape, -1)


class UserToken(nn.Module):
    """What stands before a history, made of its user's attributes.

    Args:
        attributes: The attributes of all users, and in the last row those of an unknown user.
        dim: D.
        dropout: Share of the users of a training step that are taken for unknown, so that unknown
            ones can be served.
    """

    def __init__(self, attributes: Attributes, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.base = nn.Parameter(0.02 * torch.randn(dim))
        self.vectors = AttributeVectors(attributes, dim)

    def forward(self, users: Tensor | None, num_users: int) -> Tensor:
        """Vectors ``[B, D]`` of users int64 ``[B]``; None, -1 and what is not known is unknown."""
        unknown = len(self.vectors.codes) - 1
        if users is None:
            rows = torch.full((num_users,), unknown, device=self.base.device)
        else:
            rows = users.where((users >= 0) & (users < unknown), unknown)
        if self.training and self.dropout > 0:
            drawn = torch.rand(num_users, device=rows.device) < self.dropout
            rows = rows.masked_fill(drawn, unknown)
        token: Tensor = self.base + self.vectors(rows)
        return token
