"""The gradient of a training step whose targets are split into parts and among processes.

The gradient is that of the mean loss over all targets of the step. With several processes,
DistributedDataParallel sums the gradients of the processes while the backward pass still runs.
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
    """An accumulator of the gradient of a step over the step's parts and over all processes.

    The gradients are added to the parameters of the model. The gradients of the other processes are
    added with the last part of a step.

    Args:
        model: A `SequenceModel` on the device of the training.
        precision: Number format of the forward pass, ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(self, model: nn.Module, precision: torch.dtype) -> None:
        self.precision = precision
        self.device = next(model.parameters()).device
        self._model = cast(SequenceModel, model)
        self._parallel: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            self._parallel = DistributedDataParallel(
                _LossAsForward(model),
                # A level at which every target of a part is an only child computes no score, so
                # its parameters are not used.
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
            # The buffers are large tables of the trie. The constructor has just copied those of
            # process 0 to all processes, and they do not change.
            self._parallel.broadcast_buffers = False

    def add(self, part: Batch, num_targets: int, *, last: bool) -> TrainingLoss:
        """Add the gradient of one part of a step to the parameters, and return the part's loss.

        Args:
            part: Batch of some of this process's windows.
            num_targets: Number of targets in the whole step, over all parts and all processes.
            last: Whether this is the last part of the step in this process.
        """
        # DistributedDataParallel averages gradients over processes, so the world size turns the
        # mean into the sum.
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
        """Take part in a step in which this process has no windows.

        The other processes wait for every process to take part in the sum of the gradients.
        """
        assert self._parallel is not None
        self._parallel(None)[0].backward()


class _LossAsForward(nn.Module):
    """A module whose forward pass is the loss of a model, as DistributedDataParallel requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, part: Plan | None) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy per level of a part, or a loss of 0 for None."""
        if part is None:
            if isinstance(self.model, KeepsInStep):
                self.model.stand_idle()
            nothing = 0 * next(self.model.parameters()).sum()
            return nothing, nothing.detach()
        model = cast(SequenceModel, self.model)
        loss = model.loss(part)
        return loss.value, loss.level_accuracy


def plan_step(model: SequenceModel, batch: Batch) -> Plan:
    """Return the plan of a batch: everything that the model's loss reads, prepared on the host.

    The plan is the batch itself for a model without a ``plan`` method.
    """
    return model.plan(batch) if isinstance(model, PlansSteps) else batch
