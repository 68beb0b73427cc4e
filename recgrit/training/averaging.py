"""A moving average of weights, kept while they are trained.

Only parameters are averaged: the tables of a trie and of neighbours, which training leaves alone,
are shared with the model. `torch.optim.swa_utils.AveragedModel` copies them at every step, 51 ms of
a million items' step of 1,024 targets, and holds them twice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """A copy of a model whose parameters follow it.

    Args:
        model: What is trained.
        decay: Weight of the past; 0 for a copy of what was trained last.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model, {id(buffer): buffer for buffer in model.buffers()})
        self.decay = decay
        self.num_steps = 0

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Follow a step of training."""
        # A plain mean over the first steps: the initial weights get no more than an equal part.
        past = min(self.decay, self.num_steps / (self.num_steps + 1))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - past)
        self.num_steps += 1


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name: what training changes of it, not to be written to."""
    return {name: value.detach() for name, value in model.named_parameters()}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back what `weights_of` returned.

    Raises:
        ValueError: They are of another model.
    """
    parameters = dict(model.named_parameters())
    if {name: value.shape for name, value in parameters.items()} != {
        name: value.shape for name, value in weights.items()
    }:
        raise ValueError("its parameters have other names or shapes")
    for name, value in weights.items():
        parameters[name].copy_(value)
