"""Codebook maintenance between training steps: moving averages, running gap, dead-code resets.

It stands outside of gradients: a batch is recorded in the forward pass, and acted upon once the
optimizer has stepped, so that the codes a backward pass refers to never change under it. On several
processes counts and sums are added up, and codes are reset from the vectors of all of them.

What was recorded are buffers: it moves, and is saved and resumed, with the module.

Shapes: B vectors, D dimensions, L levels, K codes.
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
# Steps between two looks at the spectrum of W, and at whether all vectors were finite.
CHECK_INTERVAL = 50


class CodebookMaintenance(WithStatistics):
    """Statistics since the last step, and what is done with them.

    Args:
        ema_decay: Weight of the past in moving averages.
        reset_interval: Steps between resets of dead codes; None for none.
        dead_below: A code is dead when it is used less than this fraction of an even use.
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
        # Of the gaps since the last step the sum, and how many vectors and batches they are of.
        self.record("recorded", torch.zeros(3))
        # Codes ``[B, L]`` and residuals of the batch that a reset draws from.
        self.batch: tuple[Tensor, list[Tensor]] | None = None

    def get_extra_state(self) -> Tensor:
        """What is counted on the host: steps, and the interval of resets, 0 for none."""
        return torch.tensor([self.num_steps, self.reset_interval or 0])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from where `get_extra_state` was asked."""
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
        """Whether codes are reset at a step."""
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
        """Take note of a batch.

        Args:
            levels: The codebooks.
            codes: ``[B, L]``.
            residuals: L tensors ``[B, D]``.
            gap: ``[B]``.
            weights: ``[B, L]``, 1 for what counts and 0 for what does not.
            keep_batch: Whether a reset may follow, which places codes on vectors of this batch.
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
        """Act upon what was recorded; returns how many codes were reset.

        Raises:
            QuantizerError: Some vector since the last look was not finite.
        """
        self.num_steps += 1
        distributed.sum_([self.recorded, *(part for level in levels for part in level.recorded())])
        latest = self.recorded[0] / self.recorded[1].clamp_min(1)
        # What is not a number stays so until it is found.
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
        if batch is not None:  # None where resets were switched on since the forward pass.
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
        """Forget what was recorded."""
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
    """Place dead codes on badly quantized vectors of the last batch; returns how many.

    The optimizer's moments of the rows go too, or they would drag the new code towards the old
    place.
    """
    residual, codes = residual[codes >= 0], codes[codes >= 0]
    dead = (level.uses < dead_below * level.uses.mean()).nonzero().squeeze(-1)
    dead = dead[: len(residual)]
    if len(dead) == 0:
        return 0
    error = (residual - level.effective()[codes]).square().sum(dim=-1).cpu() + 1e-12
    picks = torch.multinomial(error, len(dead), generator=generator).to(residual.device)
    targets = residual[picks]
    # Processes may draw from generators of their own: the first one's draw holds.
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
            # Whatever has a row per code, such as both moments of Adam or SGD's momentum.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows] = 0.0
