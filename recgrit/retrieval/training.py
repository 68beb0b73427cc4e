"""Training a sequence model: AdamW, warm-up, early stopping on validation NDCG@10.

One loop for the retriever and for the baselines, so that a comparison varies the model alone. The
epoch with the best validation NDCG@10 is kept; test is never looked at here. After each epoch all
that training needs to go on is saved: an interrupted training that is started again gives the
losses that an uninterrupted one would have.

On several ranks (`recgrit.ranks`) each learns from its windows of every batch and validates its
users; the gradient is that of the whole batch. Rank 0 writes and tells, and its clock decides.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recgrit import ranks
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, TrainingError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.progress import ProgressBar, progress_bar
from recgrit.retrieval.averaging import MovingAverage, put_weights, weights_of
from recgrit.retrieval.batching import Windows, build_windows, iterate_steps
from recgrit.retrieval.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from recgrit.retrieval.config import TrainingConfig
from recgrit.retrieval.gradients import GradientSum
from recgrit.retrieval.ranking import Ranker
from recgrit.retrieval.recommend import recommend_items

logger = logging.getLogger(__name__)

# Validation is read at this cut-off while training.
VALID_K = 10
# Gradients are scaled down to this norm.
MAX_GRAD_NORM = 1.0


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TrainingEpoch:
    """What one epoch of training reached.

    Args:
        epoch: From 1.
        train_loss: Mean -log P(target), in nats; smoothed if ``label_smoothing`` is.
        level_accuracy: Share of right children at each level, given the right prefix.
        valid_recall_at_10: Unmasked, over the validation users read while training.
        valid_ndcg_at_10: Likewise.
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

    Of several ranks on a machine each takes the GPU that its launcher counted for it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and ranks.num_ranks() > 1:
        raise ConfigError(
            f"device={name} names one GPU for {ranks.num_ranks()} processes: set device=auto, and "
            "each takes one of its own."
        )
    if name == "cuda" and ranks.num_ranks() > 1:
        place = int(os.environ.get("LOCAL_RANK", ranks.rank()))
        return torch.device("cuda", place % torch.cuda.device_count())
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 where asked for, or on "auto" where the hardware multiplies matrices in it.

    On CPUs that means AMX tiles: AVX-512 alone has bfloat16 instructions too, but ran 1.4 times
    slower with them than in float32. A fixed rule, not a stopwatch: equal seeds give equal runs.
    """
    if name == "auto":
        if device.type == "cuda":
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            supported = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if supported else torch.float32
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
    max_seconds: float | None = None,
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
        max_seconds: End the last epoch, however little of it is done, after so much time; what a
            resumed training took before counts.
        stop_at: End as soon as validation NDCG@10 is at least this.

    Raises:
        TrainingError: There is nothing to train on, the loss is no longer finite, or memory does
            not suffice.

    Of several ranks each is given the same and returns the same; only rank 0 calls ``on_epoch``.
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
    valid_users = _choose_users(split, config.valid_users, seed)
    _require_targets(split, windows, valid_users)
    steps_per_epoch = math.ceil(windows.num_targets / config.batch_targets)
    num_steps = config.epochs * steps_per_epoch
    optimizer = _build_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, num_steps, config.warmup_steps)
    )
    gradient = GradientSum(model, precision)
    state = TrainingState(model, averaged, optimizer, schedule, np.random.default_rng(seed))
    history = _go_on(checkpoint, state, on_epoch)
    best = _best_epoch(history)
    deadline = math.inf
    if max_seconds is not None:
        deadline = time.perf_counter() + max_seconds - sum(epoch.seconds for epoch in history)
    with progress_bar("training", num_steps) as bar:
        bar.advance(len(history) * steps_per_epoch)
        while (
            len(history) < config.epochs
            and len(history) - best < config.patience
            and (not history or ranks.of_first(time.perf_counter() < deadline))
        ):
            started = time.perf_counter()
            # Drawn anew at every epoch: only rank 0's random state is in the checkpoint.
            ranks.seed_apart(seed, epoch=len(history) + 1)
            trained = _train_epoch(
                state, gradient, split, windows, config, bar, len(history) + 1, deadline
            )
            train_seconds = time.perf_counter() - started
            ranker = build_ranker(kept, precision)
            recall, ndcg = validate(ranker, split, valid_users)
            # One history for all ranks, so that they end together.
            latest = ranks.of_first(
                TrainingEpoch(
                    epoch=len(history) + 1,
                    train_loss=trained.loss,
                    level_accuracy=trained.level_accuracy,
                    valid_recall_at_10=recall,
                    valid_ndcg_at_10=ndcg,
                    seconds=time.perf_counter() - started,
                    targets_per_second=trained.num_targets / train_seconds,
                )
            )
            history.append(latest)
            best = _best_epoch(history)
            if best == latest.epoch:
                state.best = {name: value.clone() for name, value in weights_of(kept).items()}
            if ranks.is_first():
                _log(latest)
                if checkpoint is not None:
                    save_checkpoint(checkpoint, state, [asdict(epoch) for epoch in history])
                if on_epoch is not None:
                    on_epoch(latest)
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
    if checkpoint is None or not ranks.of_first(checkpoint.is_file()):
        return []
    history = [read_epoch(values) for values in load_checkpoint(checkpoint, state)]
    ranks.wait()  # Rank 0 is about to replace the file.
    if ranks.is_first():
        logger.info("going on after epoch %d of an interrupted training", len(history))
        if on_epoch is not None:
            for epoch in history:
                on_epoch(epoch)
    return history


def _log(epoch: TrainingEpoch) -> None:
    logger.info(
        "epoch %2d: loss %.3f, valid Recall@10 %.4f, NDCG@10 %.4f (%.0f s)",
        epoch.epoch,
        epoch.train_loss,
        epoch.valid_recall_at_10,
        epoch.valid_ndcg_at_10,
        epoch.seconds,
    )


@dataclass(frozen=True)
class _EpochOfTraining:
    """Mean loss, accuracy by level, and how many targets they are from."""

    loss: float
    level_accuracy: tuple[float, ...]
    num_targets: int


def _train_epoch(
    state: TrainingState,
    gradient: GradientSum,
    split: SequenceSplit,
    windows: Windows,
    config: TrainingConfig,
    bar: ProgressBar,
    epoch: int,
    deadline: float,
) -> _EpochOfTraining:
    """One pass over the targets, or as much of it as there is time for."""
    state.model.train()
    loss_sum, num_targets, num_right = 0.0, 0, torch.zeros(())
    steps = iterate_steps(
        split,
        windows,
        batch_targets=config.batch_targets,
        num_parts=config.accumulation,
        generator=state.generator,
    )
    for number, step in enumerate(steps, start=1):
        state.optimizer.zero_grad(set_to_none=True)
        before = loss_sum
        last = len(step.parts) - 1
        for place, part in enumerate(step.parts):
            try:
                loss = gradient.add(part, step.num_targets, last=place == last)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                _explain_memory(error, config)
                raise
            loss_sum += loss.value.item() * part.num_targets
            num_right = num_right + loss.level_accuracy.cpu() * part.num_targets
            num_targets += part.num_targets
        if not step.parts:
            gradient.add_nothing()
        # Told to all ranks: one that stopped alone would leave the others waiting.
        late = ranks.is_first() and time.perf_counter() >= deadline
        value, is_late = ranks.sum_numbers(loss_sum - before, late)
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss became {value} in epoch {epoch}, step {number}. Lower "
                f"learning_rate (now {config.learning_rate}), or set precision=float32."
            )
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), MAX_GRAD_NORM)
        state.optimizer.step()
        state.schedule.step()
        state.averaged.update(state.model)
        bar.advance(note=f"epoch {epoch}, loss {loss_sum / max(1, num_targets):.3f}")
        if is_late:
            break
    # Rank 0 has a part of every step; a rank that had none of any does not know the levels.
    num_right = num_right.expand(ranks.of_first(num_right.numel())).clone()
    ranks.sum_([num_right])
    loss_sum, all_targets = ranks.sum_numbers(loss_sum, num_targets)
    return _EpochOfTraining(
        loss_sum / all_targets, tuple((num_right / all_targets).tolist()), int(all_targets)
    )


def _explain_memory(error: Exception, config: TrainingConfig) -> None:
    """Raise what helps, if this is for want of memory."""
    # CPU allocators raise RuntimeError with a text of their own.
    lacking = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if lacking:
        raise TrainingError(
            f"Memory does not suffice for {config.batch_targets} targets at a time. Set "
            f"accumulation={2 * config.accumulation} for the same training in smaller parts, or "
            f"batch_targets={max(1, config.batch_targets // 2)}."
        ) from error


def validate(
    ranker: Ranker, split: SequenceSplit, users: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Recall and NDCG at `VALID_K` on the validation targets of these users, unmasked."""
    mine = users[ranks.share(len(users))]
    found = recommend_items(ranker, split, "valid", mine, top_k=VALID_K, masked=False)
    places = ranks_of_targets(found.items, split.targets("valid", mine))
    recall, ndcg = ranks.sum_numbers(
        recall_at_k(places, VALID_K).sum(), ndcg_at_k(places, VALID_K).sum()
    )
    return recall / len(users), ndcg / len(users)


def _best_epoch(history: list[TrainingEpoch]) -> int:
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


def _build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Weight decay on matrices and embeddings, none on norms and biases."""
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


def _learning_rate_factor(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def _choose_users(split: SequenceSplit, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    users = split.target_users("valid")
    if limit is None or limit >= len(users):
        return users
    return np.sort(np.random.default_rng(seed).choice(users, limit, replace=False))
