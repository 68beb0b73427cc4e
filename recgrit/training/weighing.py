"""The cross-entropy loss of targets that may have different weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Compute the weighted cross-entropy of M targets among C candidates, divided by M.

    Args:
        scores: Scores of the candidates for each target, float32 ``[M, C]``.
        targets: Column of the right candidate in each row, int64 ``[M]``.
        weights: Weight of each target, float32 ``[M]``. None weighs all targets equally.
    """
    if weights is None:
        return F.cross_entropy(scores, targets)
    return (weights * F.cross_entropy(scores, targets, reduction="none")).mean()
