"""Training a sequence model: AdamW, warm-up, early stopping on validation NDCG@10.

One loop for the retriever and for the baselines, so that a comparison varies the model alone. The
epoch with the best validation NDCG@10 is kept; test is never looked at here. After each epoch all
that training needs to go on is saved: an interrupted training that is started again gives the
losses that an uninterrupted one would have.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from recgrit.data.splits import SequenceSplit
from recgrit.errors import TrainingError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.progress import ProgressBar, progress_bar
from recgrit.retrieval.batching import Batch, Windows, build_windows, iterate_batches
from recgrit.retrieval.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from recgrit.retrieval.config import TrainingConfig
from recgrit.retrieval.losses import SequenceModel, TrainingLoss
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
    """The device of this name; "auto" is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    """
    torch.manual_seed(seed)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    model = build().to(device)
    averaged = _average_weights(model, config.average_decay)
    kept = cast(M, averaged.module)
    windows = build_windows(split, history_length)
    valid_users = _choose_users(split, config.valid_users, seed)
    _require_targets(split, windows, valid_users)
    steps_per_epoch = math.ceil(windows.num_targets / config.batch_targets)
    num_steps = config.epochs * steps_per_epoch
    optimizer = _build_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, num_steps, config.warmup_steps)
    )
    state = TrainingState(model, averaged, optimizer, schedule, np.random.default_rng(seed))
    history: list[TrainingEpoch] = []
    if checkpoint is not None and checkpoint.is_file():
        history = [_read_epoch(values) for values in load_checkpoint(checkpoint, state)]
        logger.info("going on after epoch %d of an interrupted training", len(history))
        if on_epoch is not None:
            for epoch in history:
                on_epoch(epoch)
    best = _best_epoch(history)
    deadline = math.inf
    if max_seconds is not None:
        deadline = time.perf_counter() + max_seconds - sum(epoch.seconds for epoch in history)
    with progress_bar("training", num_steps) as bar:
        bar.advance(len(history) * steps_per_epoch)
        while (
            len(history) < config.epochs
            and len(history) - best < config.patience
            and (not history or time.perf_counter() < deadline)
        ):
            started = time.perf_counter()
            trained = _train_epoch(
                state, split, windows, config, precision, bar, len(history) + 1, deadline
            )
            train_seconds = time.perf_counter() - started
            ranker = build_ranker(kept, precision)
            recall, ndcg = validate(ranker, split, valid_users)
            latest = TrainingEpoch(
                epoch=len(history) + 1,
                train_loss=trained.loss,
                level_accuracy=trained.level_accuracy,
                valid_recall_at_10=recall,
                valid_ndcg_at_10=ndcg,
                seconds=time.perf_counter() - started,
                targets_per_second=trained.num_targets / train_seconds,
            )
            history.append(latest)
            logger.info(
                "epoch %2d: loss %.3f, valid Recall@10 %.4f, NDCG@10 %.4f (%.0f s)",
                latest.epoch,
                latest.train_loss,
                recall,
                ndcg,
                latest.seconds,
            )
            best = _best_epoch(history)
            if best == latest.epoch:
                state.best = copy.deepcopy(kept.state_dict())
            if checkpoint is not None:
                save_checkpoint(checkpoint, state, [asdict(epoch) for epoch in history])
            if on_epoch is not None:
                on_epoch(latest)
            if stop_at is not None and ndcg >= stop_at:
                break
    kept.load_state_dict(state.best)
    kept.eval()
    return Trained(kept, history, best_epoch=best, precision=precision)


@dataclass(frozen=True)
class _EpochOfTraining:
    """Mean loss, accuracy by level, and how many targets they are from."""

    loss: float
    level_accuracy: tuple[float, ...]
    num_targets: int


def _train_epoch(
    state: TrainingState,
    split: SequenceSplit,
    windows: Windows,
    config: TrainingConfig,
    precision: torch.dtype,
    bar: ProgressBar,
    epoch: int,
    deadline: float,
) -> _EpochOfTraining:
    """One pass over the targets, or as much of it as there is time for."""
    state.model.train()
    loss_sum, num_targets, num_right = 0.0, 0, torch.zeros(())
    batches = iterate_batches(
        split,
        windows,
        batch_targets=config.batch_targets,
        num_parts=config.accumulation,
        generator=state.generator,
    )
    for step, parts in enumerate(batches, start=1):
        state.optimizer.zero_grad(set_to_none=True)
        batch_targets = sum(part.num_targets for part in parts)
        for part in parts:
            try:
                loss = _backward(state.model, part, batch_targets, precision)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                _explain_memory(error, config)
                raise
            value = loss.value.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss became {value} in epoch {epoch}, step {step}. Lower "
                    f"learning_rate (now {config.learning_rate}), or set precision=float32."
                )
            loss_sum += value * part.num_targets
            num_right = num_right + loss.level_accuracy.cpu() * part.num_targets
        num_targets += batch_targets
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), MAX_GRAD_NORM)
        state.optimizer.step()
        state.schedule.step()
        state.averaged.update_parameters(state.model)
        bar.advance(note=f"epoch {epoch}, loss {loss_sum / num_targets:.3f}")
        if time.perf_counter() >= deadline:
            break
    return _EpochOfTraining(
        loss_sum / num_targets, tuple((num_right / num_targets).tolist()), num_targets
    )


def _backward(
    model: nn.Module, part: Batch, batch_targets: int, precision: torch.dtype
) -> TrainingLoss:
    """Add the gradient of one part of a batch."""
    device = next(model.parameters()).device
    moved = part.to(device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        loss = cast(SequenceModel, model).loss(moved.histories, moved.targets, moved.supervised)
    (loss.value * (part.num_targets / batch_targets)).backward()
    return loss


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
    found = recommend_items(ranker, split, "valid", users, top_k=VALID_K, masked=False)
    ranks = ranks_of_targets(found.items, split.targets("valid", users))
    return float(recall_at_k(ranks, VALID_K).mean()), float(ndcg_at_k(ranks, VALID_K).mean())


def _best_epoch(history: list[TrainingEpoch]) -> int:
    """From 1; the first of equals; 0 if there is none."""
    if not history:
        return 0
    return max(history, key=lambda epoch: (epoch.valid_ndcg_at_10, -epoch.epoch)).epoch


def _read_epoch(values: dict[str, Any]) -> TrainingEpoch:
    return TrainingEpoch(**{**values, "level_accuracy": tuple(values["level_accuracy"])})


def _average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it, by a moving average if ``decay`` is not 0."""

    def average(kept: Tensor, latest: Tensor, steps: Tensor | int) -> Tensor:
        # A plain mean over the first steps: the initial weights get no more than their share.
        return torch.lerp(latest, kept, min(decay, float(steps) / (float(steps) + 1)))

    return AveragedModel(model, avg_fn=average)


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
