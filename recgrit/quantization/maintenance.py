"""Codebook maintenance between training steps: moving averages, running gap, dead-code resets.

It stands outside of gradients: a batch is recorded in the forward pass, and acted upon once the
optimizer has stepped, so that the codes a backward pass refers to never change under it. On several
processes counts and sums are added up, and codes are reset from the vectors of all of them.

Shapes: B vectors, D dimensions, L levels, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgrit import distributed
from recgrit.quantization.codebook import Codebook, CodebookLearning

# A code is dead when it is used less than this fraction of an even use.
DEAD_BELOW = 0.1
# Weight of the past in the running mean of the gap.
GAP_DECAY = 0.99


class CodebookMaintenance:
    """Statistics since the last step, and what is done with them.

    Args:
        learning: How codes are learned.
        ema_decay: Weight of the past in moving averages.
        reset_interval: Steps between resets of dead codes; None for none.
    """

    def __init__(
        self, learning: CodebookLearning, ema_decay: float, reset_interval: int | None
    ) -> None:
        self.learning = learning
        self.ema_decay = ema_decay
        self.reset_interval = reset_interval
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self._gap: Tensor | None = None  # Sum of gaps and number of vectors.
        self._uses: list[Tensor] | None = None  # Per level, since the last reset.
        self._counts: list[Tensor] | None = None  # Per level, since the last step.
        self._sums: list[tuple[Tensor, Tensor]] | None = None
        self._batch: tuple[Tensor, list[Tensor]] | None = None

    @torch.no_grad()
    def record(
        self,
        levels: list[Codebook],
        codes: Tensor,
        residuals: list[Tensor],
        squared_gap: Tensor,
        next_step: int,
    ) -> None:
        """Take note of a batch.

        Args:
            levels: The codebooks.
            codes: ``[B, L]``.
            residuals: L tensors ``[B, D]``.
            squared_gap: ``[B]``.
            next_step: The number of the step that is coming; a batch is kept for a reset.
        """
        gap = torch.stack([squared_gap.sqrt().sum(), squared_gap.new_tensor(len(squared_gap))])
        self._gap = gap if self._gap is None else self._gap + gap
        counts = [
            torch.bincount(codes[:, i], minlength=level.codebook_size).float()
            for i, level in enumerate(levels)
        ]
        self._counts = _add(self._counts, counts)
        if self.learning == "ema":
            sums = [
                level.batch_sums(residual, codes[:, i])
                for i, (level, residual) in enumerate(zip(levels, residuals, strict=True))
            ]
            if self._sums is not None:
                sums = [
                    (old[0] + new[0], old[1] + new[1])
                    for old, new in zip(self._sums, sums, strict=True)
                ]
            self._sums = sums
        if self._is_due(next_step):
            self._batch = codes, residuals

    @torch.no_grad()
    def run(
        self,
        levels: list[Codebook],
        mean_gap: Tensor,
        step: int,
        optimizer: torch.optim.Optimizer | None,
        generator: torch.Generator | None,
    ) -> int:
        """Act upon what was recorded; returns how many codes were reset."""
        assert self._gap is not None
        assert self._counts is not None
        counts, gap, sums = self._counts, self._gap, self._sums
        self._counts = self._gap = self._sums = None
        distributed.sum_([gap, *counts, *(part for pair in sums or [] for part in pair)])
        if gap[1] > 0:
            latest = gap[0] / gap[1]
            mean_gap.copy_(
                torch.where(mean_gap > 0, torch.lerp(latest, mean_gap, GAP_DECAY), latest)
            )
        if sums is not None:
            for level, count, (total, gain) in zip(levels, counts, sums, strict=True):
                level.ema_step_(count, total, gain, self.ema_decay)
        self._uses = _add(self._uses, counts)
        if not self._is_due(step):
            return 0
        uses, self._uses = self._uses, None
        batch, self._batch = self._batch, None
        if batch is None:  # Resets were switched on since.
            return 0
        codes = distributed.gather_rows(batch[0])
        return sum(
            _reset_dead_codes(
                level, codes[:, i], distributed.gather_rows(residual), use, optimizer, generator
            )
            for i, (level, residual, use) in enumerate(zip(levels, batch[1], uses, strict=True))
        )

    def _is_due(self, step: int) -> bool:
        return self.reset_interval is not None and step % self.reset_interval == 0


def _reset_dead_codes(
    level: Codebook,
    codes: Tensor,
    residual: Tensor,
    uses: Tensor,
    optimizer: torch.optim.Optimizer | None,
    generator: torch.Generator | None,
) -> int:
    """Place dead codes on badly quantized vectors of the last batch; returns how many.

    The optimizer's moments of the rows go too, or they would drag the new code towards the old
    place.
    """
    dead = (uses < DEAD_BELOW * uses.mean()).nonzero().squeeze(-1)
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
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            # Whatever has a row per code, such as both moments of Adam or SGD's momentum.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[rows] = 0.0


def _add(old: list[Tensor] | None, new: list[Tensor]) -> list[Tensor]:
    return new if old is None else [a + b for a, b in zip(old, new, strict=True)]
