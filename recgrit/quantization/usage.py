"""The usage loss, which is high if a level uses its codes unevenly.

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
    """Return 1 minus the normalised entropy of the mean soft assignment, averaged over the levels.

    A soft assignment is a softmax over the negative squared distances of a vector to all codes of a
    level. The distances are divided by the mean squared distance to the nearest code of the level,
    so that the softness does not depend on the scale of the data. The loss is 0 if all codes are
    used equally often.

    Args:
        residuals: Input of each level, L tensors ``[B, C]``.
        codebooks: Codes of each level, L tensors ``[K, C]``.
        weights: Weight of each vector at each level, ``[B, L]``: 1 for a vector that counts and 0
            for a vector that does not.
        all_processes: Whether to take the mean assignment over the vectors of all processes. The
            gradient covers the vectors of this process only, as for a mean over a batch; the caller
            weighs it by the number of vectors.
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
