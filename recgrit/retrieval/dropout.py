"""Dropout with random numbers that are cheap on a CPU.

On a CPU, torch takes 15 to 20 ns for each element of a mask. A transformer of this size then spends
a third of its training time on masks. A generator that fills whole arrays takes 1 ns for 16 random
bits. torch's generator seeds it at every call, so trainings stay reproducible and can be resumed.
The rate is rounded to a multiple of 2**-16.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 2**16


class Dropout(nn.Module):
    """A dropout layer: in training it sets random elements to 0 and scales up the others.

    Args:
        rate: Share of elements that become 0.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with dropout in training, and ``x`` itself otherwise."""
        if not self.training or self.rate == 0.0:
            return x
        if not x.is_cpu or torch.compiler.is_compiling():
            return F.dropout(x, self.rate)
        return x * draw_mask(x.shape, self.rate, x.dtype)

    def extra_repr(self) -> str:
        """Return the rate, which torch shows in the module's representation."""
        return f"rate={self.rate}"


def draw_mask(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """Draw a random dropout mask with mean 1 in main memory.

    Args:
        shape: Shape of the mask.
        rate: Share of elements that are 0. The other elements have one common value.
        dtype: Number format of the mask.
    """
    size = shape.numel()
    seed = int(torch.randint(2**63 - 1, ()))
    # Each number of 64 bits gives four numbers of 16 bits.
    bits = np.random.SFC64(seed).random_raw(-(-size // 4)).view(np.uint16)[:size]
    threshold = round(rate * STEPS)
    kept = torch.from_numpy(bits >= np.uint16(min(threshold, STEPS - 1)))
    return kept.to(dtype).mul_(STEPS / (STEPS - min(threshold, STEPS - 1))).view(shape)
