"""Training the retriever: AdamW, warm-up, early stopping on validation NDCG@10.

The epoch with the best validation NDCG@10 is kept; test is never looked at here.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from recgrit.data.splits import SequenceSplit
from recgrit.errors import TrainingError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.progress import progress_bar
from recgrit.retrieval.batching import Windows, build_windows, iterate_batches
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.recommend import recommend_items
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.semantic_ids.trie import build_trie

logger = logging.getLogger(__name__)

# Validation is read at this cut-off while training.
VALID_K = 10
# Gradients are scaled down to this norm.
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class RetrieverEpoch:
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
class FittedRetriever:
    """A retriever at its best epoch.

    Args:
        model: On the device it was trained on, in eval mode.
        history: One entry per epoch.
        best_epoch: The epoch kept, from 1.
        precision: Of the history encoder: float32 or bfloat16.
    """

    model: TrieRetriever
    history: list[RetrieverEpoch]
    best_epoch: int
    precision: torch.dtype


def build_retriever(
    table: SemanticIdTable,
    split: SequenceSplit,
    features: npt.NDArray[np.float32] | None,
    config: RetrieverConfig,
) -> TrieRetriever:
    """An untrained retriever over an ID table.

    Args:
        table: The IDs.
        split: Tells which items training sees.
        features: float32 ``[N, F]`` item features; used if ``config.content``.
        config: Sizes and rates.
    """
    return TrieRetriever(
        build_trie(table.codes),
        table.codebook_sizes,
        disambiguation_level=table.disambiguation_level,
        train_items=torch.from_numpy(split.train_item_counts() > 0),
        content=(
            torch.from_numpy(np.array(features, dtype=np.float32))
            if config.content and features is not None
            else None
        ),
        model_dim=config.model_dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        history_length=config.history_length,
        dropout=config.dropout,
        node_dropout=config.node_dropout,
        label_smoothing=config.label_smoothing,
        seen_scores=config.seen_scores,
    )


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


def fit_retriever(
    table: SemanticIdTable,
    split: SequenceSplit,
    features: npt.NDArray[np.float32] | None,
    config: RetrieverConfig,
    *,
    seed: int,
    on_epoch: Callable[[RetrieverEpoch], None] | None = None,
) -> FittedRetriever:
    """Train a retriever until validation NDCG@10 no longer rises.

    Args:
        table: The IDs to generate.
        split: Sequences; training parts to learn from, validation targets to stop by.
        features: float32 ``[N, F]`` item features, or None.
        config: Sizes, rates and limits.
        seed: Fixes initial weights, order of batches and dropout.
        on_epoch: Called after each epoch, for tracking.

    Raises:
        TrainingError: There is nothing to train on, or the loss is no longer finite.
    """
    torch.manual_seed(seed)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    model = build_retriever(table, split, features, config).to(device)
    windows = build_windows(split, config.history_length)
    valid_users = _choose_users(split, config.valid_users, seed)
    _require_targets(split, windows, valid_users)
    num_steps = config.epochs * math.ceil(windows.num_targets / config.batch_targets)
    optimizer = _build_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, num_steps, config.warmup_steps)
    )
    averaged = _average_weights(model, config.average_decay)
    kept = cast(TrieRetriever, averaged.module)
    generator = np.random.default_rng(seed)
    history: list[RetrieverEpoch] = []
    best = 0  # Index into history.
    best_state: dict[str, Tensor] = {}
    with progress_bar("retriever", num_steps) as bar:
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            model.train()
            loss_sum, num_targets = 0.0, 0
            num_right = torch.zeros(model.num_levels)
            for batch in iterate_batches(
                split, windows, batch_targets=config.batch_targets, generator=generator
            ):
                moved = batch.to(device)
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    loss = model.loss(moved.histories, moved.targets, moved.supervised)
                value = loss.value.item()
                if not math.isfinite(value):
                    raise TrainingError(
                        f"The loss became {value} in epoch {epoch}. Lower "
                        f"retriever.learning_rate (now {config.learning_rate}), or set "
                        "retriever.precision=float32."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                averaged.update_parameters(model)
                loss_sum += value * loss.num_targets
                num_right += loss.level_accuracy.cpu() * loss.num_targets
                num_targets += loss.num_targets
                bar.advance(note=f"epoch {epoch}, loss {loss_sum / num_targets:.3f}")
            train_seconds = time.perf_counter() - started
            recall, ndcg = _validate(kept, split, valid_users, config, precision)
            latest = RetrieverEpoch(
                epoch=epoch,
                train_loss=loss_sum / num_targets,
                level_accuracy=tuple((num_right / num_targets).tolist()),
                valid_recall_at_10=recall,
                valid_ndcg_at_10=ndcg,
                seconds=time.perf_counter() - started,
                targets_per_second=num_targets / train_seconds,
            )
            history.append(latest)
            logger.info(
                "epoch %2d: loss %.3f, valid Recall@10 %.4f, NDCG@10 %.4f (%.0f s)",
                epoch,
                latest.train_loss,
                recall,
                ndcg,
                latest.seconds,
            )
            if on_epoch is not None:
                on_epoch(latest)
            if not best_state or ndcg > history[best].valid_ndcg_at_10:
                best, best_state = epoch - 1, copy.deepcopy(kept.state_dict())
            elif epoch - 1 - best >= config.patience:
                break
    kept.load_state_dict(best_state)
    kept.eval()
    return FittedRetriever(kept, history, best_epoch=best + 1, precision=precision)


def _average_weights(model: TrieRetriever, decay: float) -> AveragedModel:
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


def _validate(
    model: TrieRetriever,
    split: SequenceSplit,
    users: npt.NDArray[np.int64],
    config: RetrieverConfig,
    precision: torch.dtype,
) -> tuple[float, float]:
    """Recall and NDCG at `VALID_K` on the validation targets of these users, unmasked."""
    found = recommend_items(
        model,
        split,
        "valid",
        users,
        top_k=VALID_K,
        beam_width=config.valid_beam_width,
        masked=False,
        precision=precision,
    )
    ranks = ranks_of_targets(found.items, split.targets("valid", users))
    return float(recall_at_k(ranks, VALID_K).mean()), float(ndcg_at_k(ranks, VALID_K).mean())


def _build_optimizer(model: TrieRetriever, config: RetrieverConfig) -> torch.optim.AdamW:
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
