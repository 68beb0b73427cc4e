"""Checkpoints, from which an interrupted training is resumed.

A checkpoint holds the weights, their moving average, the state of the optimizer and the schedule,
and the random states. It is one safetensors file that is replaced as a whole after each epoch, so a
reader always finds a complete state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recgrit.checksums import digest_json
from recgrit.disk import replacing
from recgrit.errors import TrainingError
from recgrit.training.averaging import MovingAverage, put_weights, weights_of

# Metadata key of the digest, which covers the tensors and all other metadata.
DIGEST = "digest"


@dataclass
class TrainingState:
    """The objects that change during a training and that a checkpoint saves.

    Args:
        model: The model that is trained.
        averaged: Moving average of the model's weights.
        optimizer: Optimizer of the model, whose state is the moments of Adam.
        schedule: Schedule of the learning rate.
        generator: Random generator for the order of the batches. Dropout uses torch's own
            generator.
        best: Averaged weights of the best epoch so far, by name. Empty before the first epoch ends.
    """

    model: nn.Module
    averaged: MovingAverage[Any]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: np.random.Generator
    best: dict[str, Tensor] = field(default_factory=dict)

    def step(self, *, max_grad_norm: float) -> None:
        """Update the weights by the optimizer, then the learning rate and the moving average.

        Args:
            max_grad_norm: Largest norm of the gradient. A larger gradient is scaled down to it.
        """
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update(self.model)


def save_checkpoint(path: Path, state: TrainingState, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint, which replaces an earlier one.

    Args:
        path: File of the checkpoint.
        state: State of the training.
        history: Results of the epochs so far, as JSON values.
    """
    moments = state.optimizer.state_dict()["state"]
    tensors = {
        **{f"model.{name}": value for name, value in weights_of(state.model).items()},
        **{f"averaged.{name}": value for name, value in weights_of(state.averaged.model).items()},
        **{f"best.{name}": value for name, value in state.best.items()},
        **{
            f"optimizer.{index}.{name}": value
            for index, values in moments.items()
            for name, value in values.items()
        },
        "random.cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    metadata = {
        "averaged_steps": json.dumps(state.averaged.num_steps),
        "schedule": json.dumps(state.schedule.state_dict()),
        "generator": json.dumps(state.generator.bit_generator.state),
        "history": json.dumps(history),
    }
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata[DIGEST] = _digest(held, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(held, temporary, metadata=metadata)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a hash of a checkpoint's contents, so that a damaged checkpoint is detected."""
    digest = hashlib.sha256(digest_json({**metadata, DIGEST: ""}).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: Path, state: TrainingState) -> list[dict[str, Any]]:
    """Restore the state of a training from a checkpoint.

    Args:
        path: File of the checkpoint.
        state: State of a new training of the same model. It is overwritten.

    Returns:
        The results of the epochs before the checkpoint, as JSON values.

    Raises:
        TrainingError: The file is damaged, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            parts: dict[str, dict[str, Tensor]] = {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if _digest(tensors, metadata) != metadata[DIGEST]:
            raise ValueError("its digest differs")
        for key, tensor in tensors.items():
            part, name = key.split(".", 1)
            parts.setdefault(part, {})[name] = tensor
        history: list[dict[str, Any]] = json.loads(metadata["history"])
        put_weights(state.model, parts["model"])
        put_weights(state.averaged.model, parts["averaged"])
        state.averaged.num_steps = json.loads(metadata["averaged_steps"])
        state.best = parts["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        state.schedule.load_state_dict(json.loads(metadata["schedule"]))
        for group, rate in zip(
            state.optimizer.param_groups, state.schedule.get_last_lr(), strict=True
        ):
            group["lr"] = rate
        state.generator.bit_generator.state = json.loads(metadata["generator"])
        torch.set_rng_state(parts["random"]["cpu"])
        if "cuda" in parts["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["random"]["cuda"])
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged or belongs to another training ({error}). Delete it "
            "to train from the start."
        ) from error
    return history
