"""Training a sequence model: AdamW, warm-up, early stopping on validation NDCG@10.

One loop for all trained models, so that a comparison varies the model alone. The epoch with the
best validation NDCG@10 is kept; test is never looked at here. After each epoch all that training
needs to go on is saved: an interrupted training that is started again gives the losses that an
uninterrupted one would have.

In several processes (`recgrit.distributed`) each learns from its windows of every batch and
validates its users; the gradient is that of the whole batch. Process 0 writes and logs, and its
clock decides.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recgrit import distributed
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, TrainingError
from recgrit.progress import progress_bar
from recgrit.ranking import Ranker, TrainingLoss
from recgrit.training.averaging import MovingAverage, put_weights, weights_of
from recgrit.training.batches import Windows, build_windows, iterate_steps
from recgrit.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from recgrit.training.config import TrainingConfig
from recgrit.training.gradients import GradientSum
from recgrit.training.optimizer import build_optimizer, build_schedule
from recgrit.training.validation import choose_valid_users, validate

logger = logging.getLogger(__name__)

# Gradients are scaled down to this norm.
MAX_GRAD_NORM = 1.0


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainingEpoch:
    """What one epoch of training reached.

    Args:
        epoch: From 1.
        train_loss: Mean -log P(target), in nats; smoothed if ``label_smoothing`` is.
        level_accuracy: Fraction of right children at each level, given the right prefix.
        valid_recall_at_10: Unmasked, over the validation users read while training.
        valid_ndcg_at_10: Unmasked, over the same validation users.
        seconds: Training and validation.
        targets_per_second: Training only.
    """

    epoch: int
    train_loss: float
    level_accuracy: tuple[float, ...]
    valid_recall_at_10: float
    valid_ndcg_at_10: float
    seconds: float
    targets_per_second: float

    def metrics(self) -> dict[str, float]:
        """Flat names and numbers, for tracking."""
        values: dict[str, Any] = asdict(self)
        del values["epoch"], values["level_accuracy"]
        return {
            **values,
            **{f"train_accuracy_level_{i}": a for i, a in enumerate(self.level_accuracy)},
        }


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A model at its best epoch.

    Args:
        model: On the device it was trained on, in eval mode.
        history: One entry per epoch.
        best_epoch: The epoch kept, from 1.
        precision: float32 or bfloat16.
    """

    model: M
    history: list[TrainingEpoch]
    best_epoch: int
    precision: torch.dtype


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one.

    Each of several processes on a machine takes the GPU that its launcher counted for it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and distributed.world_size() > 1:
        raise ConfigError(
            f"device={name} names one GPU for {distributed.world_size()} processes: set "
            "device=auto, and each takes one of its own."
        )
    if name == "cuda" and distributed.world_size() > 1:
        place = int(os.environ.get("LOCAL_RANK", distributed.process_index()))
        return torch.device("cuda", place % torch.cuda.device_count())
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision of this name; "auto" is bfloat16 on a GPU with instructions for it.

    On every CPU "auto" is float32, so that equal seeds give equal runs whatever the CPU.
    """
    if name == "auto":
        is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def train_model(
    build: Callable[[], M],
    build_ranker: Callable[[M, torch.dtype], Ranker],
    split: SequenceSplit,
    config: TrainingConfig,
    *,
    history_length: int,
    seed: int,
    on_epoch: Callable[[TrainingEpoch], None] | None = None,
    checkpoint: Path | None = None,
    stop_at: float | None = None,
) -> Trained[M]:
    """Train a model until validation NDCG@10 no longer rises.

    Args:
        build: Makes the untrained model, a `SequenceModel`; called after the seed is set.
        build_ranker: Makes a model rank, for validation.
        split: Sequences; training parts to learn from, validation targets to stop by.
        config: Rates and limits.
        history_length: Longest history, in items.
        seed: Fixes initial weights, order of batches and dropout.
        on_epoch: Called after each epoch, for tracking; also for epochs of a run that is resumed.
        checkpoint: Where to keep what a later call needs to go on; None for nowhere. A file that is
            there must come from a training with the same data, settings and seed.
        stop_at: End as soon as validation NDCG@10 is at least this.

    Raises:
        TrainingError: There is nothing to train on, the loss is no longer finite, or memory does
            not suffice.

    Each of several processes is given the same and returns the same; process 0 alone calls
    ``on_epoch``.
    """
    torch.manual_seed(seed)
    device = choose_device(config.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    precision = choose_precision(config.precision, device)
    model = build().to(device)
    averaged = MovingAverage(model, config.average_decay)
    kept = averaged.model
    windows = build_windows(split, history_length)
    valid_users = choose_valid_users(split, config.valid_users, seed)
    _require_targets(split, windows, valid_users)
    steps_per_epoch = math.ceil(windows.num_targets / config.batch_targets)
    num_steps = config.epochs * steps_per_epoch
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, num_steps=num_steps, warmup_steps=config.warmup_steps)
    gradient = GradientSum(model, precision)
    state = TrainingState(model, averaged, optimizer, schedule, np.random.default_rng(seed))
    history = _go_on(checkpoint, state, on_epoch)
    best = best_epoch_of(history)
    deadline = _deadline(config, history)
    with progress_bar("training", num_steps) as bar:
        bar.advance(len(history) * steps_per_epoch)
        while (
            len(history) < config.epochs
            and len(history) - best < config.patience
            and (not history or distributed.of_first(time.perf_counter() < deadline))
        ):
            sums = _EpochSums(epoch=len(history) + 1)
            # Drawn anew at every epoch: only process 0's random state is in the checkpoint.
            distributed.seed_apart(seed, epoch=sums.epoch)
            model.train()
            for step in iterate_steps(
                split,
                windows,
                batch_targets=config.batch_targets,
                num_parts=config.accumulation,
                generator=state.generator,
            ):
                optimizer.zero_grad(set_to_none=True)
                for part in step.parts:
                    with _explaining_memory(config):
                        loss = gradient.add(part, step.num_targets, last=part is step.parts[-1])
                    sums.add(loss, part.num_targets)
                if not step.parts:
                    gradient.add_nothing()
                is_late = sums.end_step(config, deadline)
                state.step(max_grad_norm=MAX_GRAD_NORM)
                bar.advance(note=f"epoch {sums.epoch}, loss {sums.mean_loss:.3f}")
                if is_late:
                    break
            trained = sums.close()
            recall, ndcg = validate(build_ranker(kept, precision), split, valid_users)
            # One history for all processes, so that they end together.
            latest = distributed.of_first(trained.validated(recall, ndcg))
            history.append(latest)
            best = best_epoch_of(history)
            if best == latest.epoch:
                state.best = {name: value.clone() for name, value in weights_of(kept).items()}
            _end_epoch(history, state, checkpoint, on_epoch)
            if stop_at is not None and latest.valid_ndcg_at_10 >= stop_at:
                break
    put_weights(kept, state.best)
    kept.eval()
    return Trained(kept, history, best_epoch=best, precision=precision)


def _go_on(
    checkpoint: Path | None,
    state: TrainingState,
    on_epoch: Callable[[TrainingEpoch], None] | None,
) -> list[TrainingEpoch]:
    """Put the state back as it was left, if it was; returns the epochs done."""
    if checkpoint is None or not distributed.of_first(checkpoint.is_file()):
        return []
    history = [read_epoch(values) for values in load_checkpoint(checkpoint, state)]
    distributed.wait()  # Process 0 is about to replace the file.
    if distributed.is_first():
        logger.info("going on after epoch %d of an interrupted training", len(history))
        if on_epoch is not None:
            for epoch in history:
                on_epoch(epoch)
    return history


def _end_epoch(
    history: list[TrainingEpoch],
    state: TrainingState,
    checkpoint: Path | None,
    on_epoch: Callable[[TrainingEpoch], None] | None,
) -> None:
    """Log the last epoch and keep what a later call needs to go on; process 0 does so for all."""
    if not distributed.is_first():
        return
    epoch = history[-1]
    logger.info(
        "epoch %2d: loss %.3f, valid Recall@10 %.4f, NDCG@10 %.4f (%.0f s)",
        epoch.epoch,
        epoch.train_loss,
        epoch.valid_recall_at_10,
        epoch.valid_ndcg_at_10,
        epoch.seconds,
    )
    if checkpoint is not None:
        save_checkpoint(checkpoint, state, [asdict(epoch) for epoch in history])
    if on_epoch is not None:
        on_epoch(epoch)


@dataclass
class _EpochSums:
    """What is summed over the steps of one epoch."""

    epoch: int
    started: float = field(default_factory=time.perf_counter)
    loss: float = 0.0
    num_targets: int = 0
    num_right: Tensor = field(default_factory=lambda: torch.zeros(()))
    loss_before_step: float = 0.0
    num_steps: int = 0
    train_seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Of this process's targets so far."""
        return self.loss / max(1, self.num_targets)

    def add(self, loss: TrainingLoss, num_targets: int) -> None:
        """Count a part of a step."""
        # All that the host has to know of a step, in the one copy that it waits for.
        numbers = torch.cat([loss.value.detach().reshape(1), loss.level_accuracy]).cpu()
        self.loss += float(numbers[0]) * num_targets
        self.num_right = self.num_right + numbers[1:] * num_targets
        self.num_targets += num_targets

    def end_step(self, config: TrainingConfig, deadline: float) -> bool:
        """Check the loss of a step over all processes; whether the time is over.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        self.num_steps += 1
        # Sent to all processes: one that stopped alone would leave the others waiting.
        late = distributed.is_first() and time.perf_counter() >= deadline
        value, is_late = distributed.sum_numbers(self.loss - self.loss_before_step, late)
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss became {value} in epoch {self.epoch}, step {self.num_steps}. Lower "
                f"learning_rate (now {config.learning_rate}), or set precision=float32."
            )
        self.loss_before_step = self.loss
        return bool(is_late)

    def close(self) -> Self:
        """Sum over all processes."""
        # Process 0 has a part of every step; one that had none of any does not know the levels.
        self.num_right = self.num_right.expand(distributed.of_first(self.num_right.numel())).clone()
        distributed.sum_([self.num_right])
        self.loss, num_targets = distributed.sum_numbers(self.loss, self.num_targets)
        self.num_targets = int(num_targets)
        self.train_seconds = time.perf_counter() - self.started
        return self

    def validated(self, recall: float, ndcg: float) -> TrainingEpoch:
        """The epoch, once it is validated."""
        return TrainingEpoch(
            epoch=self.epoch,
            train_loss=self.loss / self.num_targets,
            level_accuracy=tuple((self.num_right / self.num_targets).tolist()),
            valid_recall_at_10=recall,
            valid_ndcg_at_10=ndcg,
            seconds=time.perf_counter() - self.started,
            targets_per_second=self.num_targets / self.train_seconds,
        )


def _deadline(config: TrainingConfig, history: list[TrainingEpoch]) -> float:
    """When training has to end; epochs of a resumed training count."""
    if config.max_seconds is None:
        return math.inf
    return time.perf_counter() + config.max_seconds - sum(epoch.seconds for epoch in history)


@contextmanager
def _explaining_memory(config: TrainingConfig) -> Iterator[None]:
    """Say what helps where memory does not suffice.

    Raises:
        TrainingError: It does not.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # CPU allocators raise RuntimeError with a text of their own.
        lacking = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        raise TrainingError(
            f"Memory does not suffice for {config.batch_targets} targets at a time. Set "
            f"accumulation={2 * config.accumulation} for the same training in smaller parts, or "
            f"batch_targets={max(1, config.batch_targets // 2)}."
        ) from error


def best_epoch_of(history: list[TrainingEpoch]) -> int:
    """From 1; the first of equals; 0 if there is none."""
    if not history:
        return 0
    return max(history, key=lambda epoch: (epoch.valid_ndcg_at_10, -epoch.epoch)).epoch


def read_epoch(values: dict[str, Any]) -> TrainingEpoch:
    """The epoch that was kept as a row of a table, or as JSON."""
    return TrainingEpoch(**{**values, "level_accuracy": tuple(values["level_accuracy"])})


def _require_targets(
    split: SequenceSplit, windows: Windows, valid_users: npt.NDArray[np.int64]
) -> None:
    """Refuse data that leave nothing to learn or nothing to stop by."""
    if windows.num_targets == 0 or len(valid_users) == 0:
        raise TrainingError(
            "Training needs users with at least two items to learn from and one to validate by, "
            f"got {windows.num_targets} training targets and {len(valid_users)} users with a "
            "validation target. Lower the filters of the data section, or bring longer histories."
        )
    if np.count_nonzero(split.train_item_counts()) < 2:
        raise TrainingError(
            "All training histories hold one and the same item, so there is no choice to learn. "
            "Lower the filters of the data section, or bring more interactions."
        )
