"""The gradient of a step, whose targets lie in several parts and on several ranks.

It is that of the mean over all targets of the step, wherever they are. On several ranks
DistributedDataParallel adds it up, beginning while the backward pass still runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recgrit import ranks
from recgrit.retrieval.batching import Batch
from recgrit.retrieval.losses import SequenceModel, TrainingLoss


class _LossAsForward(nn.Module):
    """A model's loss as a forward pass, which DistributedDataParallel accompanies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, part: Batch | None) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a part; a loss of nothing for None."""
        if part is None:
            nothing = 0 * next(self.model.parameters()).sum()
            return nothing, nothing.detach()
        model = cast(SequenceModel, self.model)
        loss = model.loss(part.histories, part.targets, part.supervised)
        return loss.value, loss.level_accuracy


class GradientSum:
    """Adds gradients of parts to a model's parameters; with the last one those of all ranks.

    Args:
        model: A `SequenceModel`, on its device.
        precision: Of the forward pass.
    """

    def __init__(self, model: nn.Module, precision: torch.dtype) -> None:
        self.precision = precision
        self.device = next(model.parameters()).device
        self._loss = _LossAsForward(model)
        self._parallel: DistributedDataParallel | None = None
        if ranks.num_ranks() > 1:
            self._parallel = DistributedDataParallel(
                self._loss,
                # A level at which every target of a part is an only child scores nothing.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
            # Tables of the trie: large, and what rank 0 sent just now is what they stay.
            self._parallel.broadcast_buffers = False

    def add(self, part: Batch, num_targets: int, *, last: bool) -> TrainingLoss:
        """Add the gradient of one part, and tell its loss.

        Args:
            part: Some of this rank's windows.
            num_targets: Supervised positions of the step, of all parts on all ranks.
            last: Whether no other part of this step follows on this rank.
        """
        # Ranks are averaged, where their sum is wanted.
        weight = ranks.num_ranks() * (part.num_targets / num_targets)
        waiting = nullcontext() if self._parallel is None or last else self._parallel.no_sync()
        with waiting:
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ):
                value, accuracy = self._forward(part.to(self.device))
            (value * weight).backward()
        return TrainingLoss(value, accuracy)

    def add_nothing(self) -> None:
        """Take part in a step of which this rank has no windows."""
        self._forward(None)[0].backward()

    def _forward(self, part: Batch | None) -> tuple[Tensor, Tensor]:
        forward = self._loss if self._parallel is None else self._parallel
        result: tuple[Tensor, Tensor] = forward(part)
        return result
