"""The training loop of all trained models: AdamW, warm-up and early stopping.

All trained models use this loop, so that a comparison of models varies the model alone. The
training keeps the epoch with the best validation NDCG@10 and never reads the test targets. After
each epoch it saves a checkpoint. An interrupted training that is resumed from the checkpoint gives
the same losses as an uninterrupted one.

With several processes (`recgrit.distributed`), each computes the gradient of its windows of every
batch and validates its part of the users. The gradient of a step is that of the whole batch.
Process 0 writes and logs, and its clock decides when the time limit is reached.
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

# Largest norm of a step's gradient. A larger gradient is scaled down to it.
MAX_GRAD_NORM = 1.0


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainingEpoch:
    """The results of one training epoch.

    Args:
        epoch: Number of the epoch, counted from 1.
        train_loss: Mean of -log P(target) over the training targets, in nats. It includes label
            smoothing if the setting ``label_smoothing`` is not 0.
        level_accuracy: Fraction of training targets whose child is scored best at each level, given
            the right prefix. A model that scores all items at once has one level.
        valid_recall_at_10: Mean Recall@10 over the validation users, with seen items allowed.
        valid_ndcg_at_10: Mean NDCG@10 over the validation users, with seen items allowed.
        seconds: Duration of training and validation in seconds.
        targets_per_second: Number of training targets per second, without the validation.
    """

    epoch: int
    train_loss: float
    level_accuracy: tuple[float, ...]
    valid_recall_at_10: float
    valid_ndcg_at_10: float
    seconds: float
    targets_per_second: float

    def metrics(self) -> dict[str, float]:
        """Return the results as a flat dictionary of names and numbers, for a tracker."""
        values: dict[str, Any] = asdict(self)
        del values["epoch"], values["level_accuracy"]
        return {
            **values,
            **{f"train_accuracy_level_{i}": a for i, a in enumerate(self.level_accuracy)},
        }


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A trained model with the weights of its best epoch.

    Args:
        model: The model in eval mode, on the device of the training.
        history: Results of all epochs, in order.
        best_epoch: Number of the epoch whose weights are kept, counted from 1.
        precision: Number format of the training, ``torch.float32`` or ``torch.bfloat16``.
    """

    model: M
    history: list[TrainingEpoch]
    best_epoch: int
    precision: torch.dtype


def choose_device(name: str) -> torch.device:
    """Return the device with this name.

    With several processes on a machine, each gets the GPU whose number is the local number that the
    launcher gave to the process.

    Args:
        name: ``cpu``, ``cuda``, a single GPU such as ``cuda:1``, or ``auto`` for a GPU if there is
            one and the CPU otherwise.

    Raises:
        ConfigError: The name is that of a single GPU, and several processes train.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and distributed.world_size() > 1:
        raise ConfigError(
            f"device={name} names one GPU for {distributed.world_size()} processes: set "
            "device=auto, and each process uses its own GPU."
        )
    if name == "cuda" and distributed.world_size() > 1:
        place = int(os.environ.get("LOCAL_RANK", distributed.process_index()))
        return torch.device("cuda", place % torch.cuda.device_count())
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the number format with this name.

    Args:
        name: ``float32``, ``bfloat16`` or ``auto``. ``auto`` is bfloat16 on a GPU with instructions
            for it. On every CPU it is float32, so that the choice does not depend on the processor.
        device: Device of the training.
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

    If several processes train, each calls this function with the same arguments and gets the same
    result. Only process 0 calls ``on_epoch`` and writes the checkpoint.

    Args:
        build: Function that returns the untrained model, a `SequenceModel`. It is called after the
            seed is set.
        build_ranker: Function that returns a ranker for the model in a number format, for the
            validation.
        split: Sequences of the users. The model learns from the training histories, and the
            validation targets decide when the training stops.
        config: Settings of the training.
        history_length: Largest number of items of a history that the model reads.
        seed: Seed of the initial weights, the order of the batches and dropout.
        on_epoch: Function that is called with the results of each epoch, for tracking. When a
            training is resumed, it is also called for the epochs before the interruption. None
            calls nothing.
        checkpoint: File that the state is saved to after each epoch, and that an interrupted
            training is resumed from. An existing file must come from a training with the same data,
            settings and seed. None saves no checkpoint.
        stop_at: Validation NDCG@10 from which on the training ends. None sets no such limit.

    Raises:
        TrainingError: There is nothing to train on, the loss is not finite, or memory does not
            suffice.
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
            # The checkpoint holds the random state of process 0 only. The other processes get a
            # new one at every epoch, so that a resumed training draws the same numbers.
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
            # All processes use the results of process 0, so that they stop after the same epoch.
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
    """Restore the state from the checkpoint if there is one, and return the finished epochs."""
    if checkpoint is None or not distributed.of_first(checkpoint.is_file()):
        return []
    history = [read_epoch(values) for values in load_checkpoint(checkpoint, state)]
    distributed.wait()  # Every process has to read the file before process 0 replaces it.
    if distributed.is_first():
        logger.info("resuming the interrupted training after epoch %d", len(history))
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
    """Log the last epoch, save the checkpoint and call ``on_epoch``, in process 0 only."""
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
    """Running sums of loss, accuracy and number of targets over the steps of one epoch.

    The means of the epoch are computed from them.
    """

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
        """Mean loss of this process's targets so far in the epoch."""
        return self.loss / max(1, self.num_targets)

    def add(self, loss: TrainingLoss, num_targets: int) -> None:
        """Add the loss and the accuracy of a part of a step to the sums.

        Args:
            loss: Loss and accuracy of the part.
            num_targets: Number of targets of the part.
        """
        # One copy brings loss and accuracy to the host, because each copy makes the host wait.
        numbers = torch.cat([loss.value.detach().reshape(1), loss.level_accuracy]).cpu()
        self.loss += float(numbers[0]) * num_targets
        self.num_right = self.num_right + numbers[1:] * num_targets
        self.num_targets += num_targets

    def end_step(self, config: TrainingConfig, deadline: float) -> bool:
        """Check the loss of a step over all processes, and return whether time is up.

        Args:
            config: Settings of the training.
            deadline: Time at which the training has to end, by ``time.perf_counter``.

        Raises:
            TrainingError: The loss is not finite.
        """
        self.num_steps += 1
        # All processes get the decision of process 0, because a process that stopped alone would
        # leave the others waiting.
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
        """Add up the sums of all processes at the end of the training part of the epoch."""
        # A process without any part of a step does not know the number of levels. Process 0 always
        # has a part.
        self.num_right = self.num_right.expand(distributed.of_first(self.num_right.numel())).clone()
        distributed.sum_([self.num_right])
        self.loss, num_targets = distributed.sum_numbers(self.loss, self.num_targets)
        self.num_targets = int(num_targets)
        self.train_seconds = time.perf_counter() - self.started
        return self

    def validated(self, recall: float, ndcg: float) -> TrainingEpoch:
        """Return the results of the epoch.

        Args:
            recall: Mean validation Recall@10.
            ndcg: Mean validation NDCG@10.
        """
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
    """Return the time at which the training has to end, by ``time.perf_counter``.

    The duration of epochs before an interruption counts towards the time limit.
    """
    if config.max_seconds is None:
        return math.inf
    return time.perf_counter() + config.max_seconds - sum(epoch.seconds for epoch in history)


@contextmanager
def _explaining_memory(config: TrainingConfig) -> Iterator[None]:
    """Turn an out-of-memory error into a message that names the settings to lower.

    Raises:
        TrainingError: Memory does not suffice.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # CPU allocators raise a RuntimeError, which only its text tells from other errors.
        lacking = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not lacking:
            raise
        raise TrainingError(
            f"Not enough memory for {config.batch_targets} targets at a time. Set "
            f"accumulation={2 * config.accumulation} for the same training in smaller parts, or "
            f"batch_targets={max(1, config.batch_targets // 2)}."
        ) from error


def best_epoch_of(history: list[TrainingEpoch]) -> int:
    """Return the number of the epoch with the best validation NDCG@10, counted from 1.

    The first of several equal epochs is returned, and 0 if there are no epochs.
    """
    if not history:
        return 0
    return max(history, key=lambda epoch: (epoch.valid_ndcg_at_10, -epoch.epoch)).epoch


def read_epoch(values: dict[str, Any]) -> TrainingEpoch:
    """Return the epoch whose values were saved as a row of a table or as JSON."""
    return TrainingEpoch(**{**values, "level_accuracy": tuple(values["level_accuracy"])})


def _require_targets(
    split: SequenceSplit, windows: Windows, valid_users: npt.NDArray[np.int64]
) -> None:
    """Check that there are training targets, validation targets and at least two items.

    Raises:
        TrainingError: One of them is missing.
    """
    if windows.num_targets == 0 or len(valid_users) == 0:
        raise TrainingError(
            "Training needs users with at least two items for training and one for validation, "
            f"got {windows.num_targets} training targets and {len(valid_users)} users with a "
            "validation target. Lower the filters of the data section, or use longer histories."
        )
    if np.count_nonzero(split.train_item_counts()) < 2:
        raise TrainingError(
            "All training histories contain only one and the same item, so there is nothing to "
            "learn. Lower the filters of the data section, or use more interactions."
        )
