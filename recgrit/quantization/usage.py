"""The usage loss: codes that are used unevenly cost something.

Shapes: B vectors, L levels, K codes, C dimensions of the codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recgrit import distributed


def usage_loss(
    residuals: list[Tensor], codebooks: list[Tensor], weights: Tensor, *, all_processes: bool
) -> Tensor:
    """1 - normalised entropy of the mean soft assignment, averaged over levels.

    The softmax is over squared distances in units of their mean to the nearest code, so that it is
    as soft as the level's own gap is wide.

    Args:
        residuals: L tensors ``[B, C]``.
        codebooks: L tensors ``[K, C]``.
        weights: ``[B, L]``, 1 for what counts and 0 for what does not.
        all_processes: Take the mean over the vectors of all processes, and of the gradient this
            process's part: to be weighted by vectors, as a mean's is.
    """
    losses = []
    for level, (residual, codes) in enumerate(zip(residuals, codebooks, strict=True)):
        weight = weights[:, level]
        distances = torch.cdist(residual, codes).square()
        nearest = distances.detach().amin(dim=-1)
        count = weight.sum().clamp_min(1)
        if all_processes:
            unit = distributed.mean_of_rows(nearest, weight)
        else:
            unit = nearest @ weight / count
        soft = (-distances / unit.clamp_min(1e-12)).softmax(dim=-1)
        share = weight @ soft / count
        if all_processes and distributed.world_size() > 1:
            share = share + (distributed.mean_of_rows(soft, weight) - share.detach())
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        losses.append(1 - entropy / max(math.log(len(codes)), 1e-12))
    return torch.stack(losses).mean()
