"""The gradient of a step, whose targets lie in several parts and on several processes.

It is that of the mean over all targets of the step, wherever they are. On several processes
DistributedDataParallel adds it up, beginning while the backward pass still runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recgrit import distributed
from recgrit.ranking import Batch, KeepsInStep, Plan, PlansSteps, SequenceModel, TrainingLoss


class GradientSum:
    """Adds gradients of parts to a model's parameters; with the last one those of all processes.

    Args:
        model: A `SequenceModel`, on its device.
        precision: Of the forward pass.
    """

    def __init__(self, model: nn.Module, precision: torch.dtype) -> None:
        self.precision = precision
        self.device = next(model.parameters()).device
        self._model = cast(SequenceModel, model)
        self._parallel: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            self._parallel = DistributedDataParallel(
                _LossAsForward(model),
                # A level at which every target of a part is an only child scores nothing.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
            # Tables of the trie: large, and what process 0 sent just now is what they stay.
            self._parallel.broadcast_buffers = False

    def add(self, part: Batch, num_targets: int, *, last: bool) -> TrainingLoss:
        """Add the gradient of one part; returns its loss.

        Args:
            part: Some of this process's windows.
            num_targets: Supervised positions of the step, of all parts on all processes.
            last: Whether no other part of this step follows on this process.
        """
        # Gradients are averaged over processes, where their sum is wanted.
        weight = distributed.world_size() * (part.num_targets / num_targets)
        sent = plan_step(self._model, part).to(self.device)
        waiting = nullcontext() if self._parallel is None or last else self._parallel.no_sync()
        with waiting:
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ):
                if self._parallel is None:
                    loss = self._model.loss(sent)
                else:
                    loss = TrainingLoss(*self._parallel(sent))
            (loss.value * weight).backward()
        return loss

    def add_nothing(self) -> None:
        """Take part in a step of which this process has no windows, as one of several may."""
        assert self._parallel is not None
        self._parallel(None)[0].backward()


class _LossAsForward(nn.Module):
    """A model's loss as a forward pass, which DistributedDataParallel accompanies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, part: Plan | None) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a part; a loss of nothing for None."""
        if part is None:
            if isinstance(self.model, KeepsInStep):
                self.model.stand_idle()
            nothing = 0 * next(self.model.parameters()).sum()
            return nothing, nothing.detach()
        model = cast(SequenceModel, self.model)
        loss = model.loss(part)
        return loss.value, loss.level_accuracy


def plan_step(model: SequenceModel, batch: Batch) -> Plan:
    """What the model's loss needs of a batch, on the host."""
    return model.plan(batch) if isinstance(model, PlansSteps) else batch
