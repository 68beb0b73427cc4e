"""Vectors of item and user attributes, which the history encoder reads.

Shapes: B users, N items or users, C values of one item or user, R rows of the embedding table, D
model dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.data.attributes import Attributes


class AttributeVectors(nn.Module):
    """Vectors of items or users: the sum, over columns, of the mean embedding of their values.

    Embeddings of unknown values start at 0, so a column without unknown values in training adds
    nothing for them later.

    Args:
        attributes: Attributes of the whole catalogue, or of all users.
        dim: Number of model dimensions D.
    """

    codes: Tensor
    weights: Tensor

    def __init__(self, attributes: Attributes, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(attributes.num_rows, dim, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.02)
        with torch.no_grad():
            self.table.weight[[0, *attributes.unknown_rows]] = 0.0
        # The codes belong to the catalogue, so they are not in the checkpoint.
        codes = torch.from_numpy(attributes.codes)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("weights", torch.from_numpy(attributes.weights), persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of items, or users, ``[...]``.

        Shapes: D model dimensions.
        """
        codes, weights = self.codes[items].flatten(0, -2), self.weights[items].flatten(0, -2)
        sums = F.embedding_bag(
            codes, self.table.weight, per_sample_weights=weights, mode="sum", padding_idx=0
        )
        return sums.view(*items.shape, -1)


class UserToken(nn.Module):
    """A module that computes the user token from a user's attributes.

    The token is a vector that the history encoder reads before the first item of the history.

    Args:
        attributes: Attributes of all users, with those of an unknown user in the last row.
        dim: Number of model dimensions D.
        dropout: Share of the users of a training step that are treated as unknown, so that the
            model can serve unknown users.
    """

    def __init__(self, attributes: Attributes, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.base = nn.Parameter(0.02 * torch.randn(dim))
        self.vectors = AttributeVectors(attributes, dim)

    def forward(self, users: Tensor | None, num_users: int) -> Tensor:
        """Return the tokens ``[B, D]`` of users.

        Shapes: D model dimensions.

        Args:
            users: ``user_idx`` of each user, int64 ``[B]``, which is the user's row in
                ``attributes``. -1, the last row, and numbers beyond it mean an unknown user. None
                means that all users are unknown.
            num_users: Number of users B.
        """
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
