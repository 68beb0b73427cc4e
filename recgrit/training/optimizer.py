"""The optimizer of the training loop and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recgrit.training.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW for a model, with weight decay on matrices and embeddings.

    Norms and biases have no weight decay.
    """
    decayed: list[Tensor] = [p for p in model.parameters() if p.ndim > 1]
    others: list[Tensor] = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a learning rate schedule: a linear warm-up, then a cosine down to a tenth.

    Args:
        optimizer: Optimizer whose learning rate is changed.
        num_steps: Step at which the learning rate reaches a tenth of its largest value.
        warmup_steps: Number of steps in which the learning rate rises to its largest value.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
