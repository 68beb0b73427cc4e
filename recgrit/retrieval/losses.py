"""What a model tells the training loop of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TrainingLoss:
    """Loss of one batch.

    Args:
        value: Scalar, mean of -log P(target) over the supervised positions.
        level_accuracy: ``[L]``, share of positions whose right child scored best, given the right
            prefix; one level for a model that chooses among all items at once.
    """

    value: Tensor
    level_accuracy: Tensor


class SequenceModel(Protocol):
    """What the loop asks of a model, beside being a module."""

    def loss(self, histories: Tensor, targets: Tensor, supervised: Tensor) -> TrainingLoss:
        """Loss of the items that follow each supervised position of histories ``[B, T]``."""
