"""Codebook maintenance between training steps: moving averages, running mean gap, dead-code resets.

Maintenance uses no gradients. The forward pass records each batch. The codes change only after the
optimizer's step, so that they never change between a forward pass and its backward pass. On several
processes, counts and sums are added up, and codes are reset to vectors of all processes.

The records are part of the module's state. They are saved, loaded and moved between devices with
the module.

Shapes: B vectors, D dimensions of the codes, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from recgrit import distributed
from recgrit.quantization.codebook import Codebook, WithStatistics
from recgrit.quantization.quantizer import QuantizerError

# Weight of the past in the running mean of the gap.
GAP_DECAY = 0.99
# Number of steps between two checks of the spectrum of W and of whether all vectors were finite.
CHECK_INTERVAL = 50


class CodebookMaintenance(WithStatistics):
    """The statistics that training batches leave, and the maintenance of the codes that uses them.

    The *gap* of a vector is its distance to the sum of its codes.

    Args:
        ema_decay: Weight of the past in moving averages, from 0 to 1.
        reset_interval: Number of steps between dead-code resets. None switches them off.
        dead_below: Threshold of a dead code. A code is dead if it was used less than this fraction
            of the mean use of the codes of its level since the last reset.
    """

    recorded: Tensor
    mean_gap: Tensor

    def __init__(self, ema_decay: float, reset_interval: int | None, dead_below: float) -> None:
        super().__init__()
        self.ema_decay = ema_decay
        self.reset_interval = reset_interval
        self.dead_below = dead_below
        self.num_steps = 0
        self.register_buffer("mean_gap", torch.zeros(()))
        # Sum of the gaps, number of vectors and number of batches since the last step.
        self.record("recorded", torch.zeros(3))
        # Codes ``[B, L]`` and residuals of the batch whose vectors a reset draws from.
        self.batch: tuple[Tensor, list[Tensor]] | None = None

    def get_extra_state(self) -> Tensor:
        """Return the number of steps and the reset interval, where 0 means no resets."""
        return torch.tensor([self.num_steps, self.reset_interval or 0])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps and the reset interval from `get_extra_state`."""
        self.num_steps = int(state[0])
        self.reset_interval = int(state[1]) or None

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.batch is not None:
            codes, residuals = self.batch
            destination[prefix + "batch_codes"] = codes
            destination[prefix + "batch_residuals"] = torch.stack(residuals)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any
    ) -> None:
        codes = state_dict.pop(prefix + "batch_codes", None)
        residuals = state_dict.pop(prefix + "batch_residuals", None)
        device = self.mean_gap.device
        self.batch = None
        if codes is not None and residuals is not None:
            self.batch = codes.to(device), list(residuals.to(device).float().unbind(0))
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.batch is not None:
            codes, residuals = self.batch
            device = self.mean_gap.device
            self.batch = codes.to(device), [residual.to(device) for residual in residuals]
        return self

    def is_due(self, step: int) -> bool:
        """Return whether dead codes are reset at a step, counted from 1."""
        return self.reset_interval is not None and step % self.reset_interval == 0

    @torch.no_grad()
    def record_(
        self,
        levels: list[Codebook],
        codes: Tensor,
        residuals: list[Tensor],
        gap: Tensor,
        weights: Tensor,
        *,
        keep_batch: bool,
    ) -> None:
        """Record a training batch.

        Args:
            levels: The codebooks, one per level.
            codes: Assigned codes, ``[B, L]``.
            residuals: Input of each level, L tensors ``[B, D]``.
            gap: Distance of each vector to the sum of its codes, ``[B]``.
            weights: Weight of each vector at each level, ``[B, L]``: 1 for a vector that counts and
                0 for a vector that does not.
            keep_batch: Whether to keep codes and residuals until the next step, because a dead-code
                reset may place codes on these residuals.
        """
        present = weights[:, 0]
        batch = torch.stack([gap @ present, present.sum(), present.new_ones(())])
        self.recorded += batch
        for i, level in enumerate(levels):
            level.record_(residuals[i], codes[:, i], weights[:, i])
        if keep_batch:
            self.batch = codes.where(weights > 0, -1), residuals

    @torch.no_grad()
    def run(
        self,
        levels: list[Codebook],
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator | None,
    ) -> int:
        """Update the mean gap and the codes from the records, then reset dead codes if this is due.

        Args:
            levels: The codebooks, one per level.
            optimizer: Optimizer of the codes. Its moments of reset codes are set to 0. None if
                there is no optimizer.
            generator: Source of the random numbers that choose the vectors for reset codes. None
                uses the default generator of torch.

        Returns:
            The number of codes that were reset.

        Raises:
            QuantizerError: A recorded vector was not finite. This is checked every `CHECK_INTERVAL`
                steps.
        """
        self.num_steps += 1
        distributed.sum_([self.recorded, *(part for level in levels for part in level.recorded())])
        latest = self.recorded[0] / self.recorded[1].clamp_min(1)
        # A NaN stays in the running mean until a check finds it.
        moved = torch.where(
            self.mean_gap == 0, latest, torch.lerp(latest, self.mean_gap, GAP_DECAY)
        )
        self.mean_gap.copy_(torch.where(self.recorded[1] > 0, moved, self.mean_gap))
        self.recorded.zero_()
        for level in levels:
            level.learn_from_record_(self.ema_decay)
        if self.num_steps % CHECK_INTERVAL == 0:
            if not bool(self.mean_gap.isfinite()):
                raise QuantizerError(
                    f"Vectors of the last {CHECK_INTERVAL} steps held NaN or infinite values: look "
                    "for them in the features, or for a loss that diverged."
                )
            for level in levels:
                level.transform.clip_spectrum_()
        batch, self.batch = self.batch, None
        if not self.is_due(self.num_steps):
            return 0
        num_reset = 0
        if batch is not None:  # None if resets were switched on after the forward pass.
            codes = distributed.gather_rows(batch[0])
            for i, level in enumerate(levels):
                residual = distributed.gather_rows(batch[1][i])
                num_reset += _reset_dead_codes(
                    level, codes[:, i], residual, self.dead_below, optimizer, generator
                )
        for level in levels:
            level.uses.zero_()
        return num_reset

    def forget_(self, levels: list[Codebook]) -> None:
        """Delete the records of all batches since the last step, also those of the codebooks."""
        self.recorded.zero_()
        self.batch = None
        for level in levels:
            level.forget_()


def _reset_dead_codes(
    level: Codebook,
    codes: Tensor,
    residual: Tensor,
    dead_below: float,
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
) -> int:
    """Move dead codes of one level to badly quantized vectors of the last batch.

    A vector is drawn with a probability proportional to its squared error. The optimizer's moments
    of the moved codes are set to 0, because they would move the new code towards its old place.

    Returns:
        The number of codes that were moved.
    """
    residual, codes = residual[codes >= 0], codes[codes >= 0]
    dead = (level.uses < dead_below * level.uses.mean()).nonzero().squeeze(-1)
    dead = dead[: len(residual)]
    if len(dead) == 0:
        return 0
    error = (residual - level.effective()[codes]).square().sum(dim=-1).cpu() + 1e-12
    picks = torch.multinomial(error, len(dead), generator=generator).to(residual.device)
    targets = residual[picks]
    # Each process may have its own generator, so all processes use the draw of the first.
    distributed.take_from_first_([targets])
    level.place_(dead, targets)
    if optimizer is not None:
        _forget_moments(optimizer, level, dead)
    return len(dead)


def _forget_moments(optimizer: torch.optim.Optimizer, level: Codebook, rows: Tensor) -> None:
    mixing = level.transform.mixing
    parameters: list[nn.Parameter] = [level.embedding]
    if mixing is not None:
        parameters.append(mixing.per_code)
    states: Mapping[Any, Mapping[str, Any]] = optimizer.state
    for parameter in parameters:
        for value in states.get(parameter, {}).values():
            # Moments have the shape of the parameter, such as both of Adam or the one of SGD.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows] = 0.0
