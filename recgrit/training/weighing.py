"""Losses of targets that do not count alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy of rows of scores, each times its weight.

    Args:
        scores: float32 ``[M, C]``.
        targets: int64 ``[M]``, the right columns.
        weights: float32 ``[M]``; None where all count alike.
    """
    if weights is None:
        return F.cross_entropy(scores, targets)
    return (weights * F.cross_entropy(scores, targets, reduction="none")).mean()
