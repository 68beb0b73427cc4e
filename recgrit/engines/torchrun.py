"""The engine for processes that torchrun started.

Process 0 runs the stages, and the other processes help it. Process 0 sends a task to all processes,
all of them run it, and process 0 collects the results. In this way several GPUs share the work
without a cluster: shards are divided among the processes, and training uses their process group. A
task is a function of this package together with its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from recgrit import distributed
from recgrit.engines.config import PROCESSES_PATIENCE, EngineConfig
from recgrit.engines.shards import (
    Report,
    ShardBuilder,
    ShardOutcome,
    Shards,
    ShardWorker,
    require_all,
)
from recgrit.errors import ConfigError, EngineError
from recgrit.launch import Launch
from recgrit.progress import track

Task = Callable[[], Any]
T = TypeVar("T")

# How long the other processes wait for the next task of process 0.
PATIENCE = timedelta(days=30)


class TorchrunEngine:
    """An engine that works in all processes that torchrun started.

    Args:
        config: Settings of the engine.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.is_leader = dist.get_rank() == 0
        # Tasks are sent in a process group of their own, with a long timeout. The group of the
        # training has a shorter timeout, after which it reports a process that hangs.
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        # Whether the other processes wait for a task. They do not after an error in a task.
        self.is_listening = True

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """Write the missing shards, of which every process writes an equal number.

        See `recgrit.engines.engine.Engine.map_shards`.
        """
        pending = shards.find_pending()
        parts = self._do(partial(_work_on_share, build, shards, pending))
        require_all(shards, [outcome for part in parts for outcome in part], pending)

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """Call a function in all processes, and return the result of process 0.

        See `recgrit.engines.engine.Engine.run_on_processes`.
        """
        found: T = self._do(partial(_help, function), own=partial(function, report))[0]
        return found

    def follow(self) -> None:
        """Run the tasks of process 0 until it sends no more tasks."""
        while (task := self._say(None)) is not None:
            self.is_listening = False
            self._hear(task())
            self.is_listening = True

    def _do(self, task: Task, own: Task | None = None) -> list[Any]:
        """Run a task in all processes, and return the result of each process.

        Args:
            task: Task that is sent to the other processes.
            own: Task that this process runs instead. None runs ``task`` here too.
        """
        self.is_listening = False
        self._say(task)
        found = self._hear((own or task)())
        self.is_listening = True
        return found

    def _say(self, task: Task | None) -> Task | None:
        """Send a task from process 0 to all processes, and return it in each of them."""
        said = [task]
        dist.broadcast_object_list(said, src=0, group=self._control)
        return said[0]

    def _hear(self, result: Any) -> list[Any]:
        """Collect the results of all processes in process 0; return an empty list elsewhere."""
        results: list[Any] | None = [None] * dist.get_world_size() if self.is_leader else None
        dist.gather_object(result, results, dst=0, group=self._control)
        return results or []


def _help(function: Callable[[Report], Any]) -> None:
    """Call a function in a process other than process 0, without reports and without a result."""
    function(lambda value: None)


def _work_on_share(build: ShardBuilder, shards: Shards, pending: list[int]) -> list[ShardOutcome]:
    """Write this process's share of the pending shards, and return their outcomes.

    The work ends after a fatal outcome, because the remaining shards would fail too.
    """
    worker = ShardWorker(build, shards)
    share = pending[dist.get_rank() :: dist.get_world_size()]
    outcomes: list[ShardOutcome] = []
    for number in track(share, shards.name, len(share)):
        outcomes.append(worker.work(number))
        if outcomes[-1].is_fatal:
            break
    return outcomes


@contextmanager
def join_processes(config: EngineConfig, launch: Launch) -> Iterator[TorchrunEngine]:
    """Join the processes that torchrun started, and yield their engine.

    Args:
        config: Settings of the engine.
        launch: Numbers of the processes, as torchrun leaves them in the environment.

    Raises:
        ConfigError: The machine has fewer GPUs than processes.
        EngineError: This process cannot reach the others.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        place, num_gpus = launch.local_number, torch.cuda.device_count()
        if place >= num_gpus:
            raise ConfigError(
                f"torchrun started process {place + 1} on a machine of {num_gpus} GPUs, and each "
                f"process needs its own GPU. Use --nproc-per-node {num_gpus}, or hide the GPUs "
                "with CUDA_VISIBLE_DEVICES=."
            )
        torch.cuda.set_device(place)
    try:
        distributed.join("cpu:gloo,cuda:nccl" if has_gpu else "gloo", PROCESSES_PATIENCE)
    except RuntimeError as error:  # The errors of torch.distributed are RuntimeErrors.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"Process {launch.number} cannot join the {launch.num_processes} processes that meet "
            f"at MASTER_ADDR and MASTER_PORT: {reason[:300]}"
        ) from None
    engine = TorchrunEngine(config)
    try:
        yield engine
    finally:
        if engine.is_listening:
            if engine.is_leader:
                engine._say(None)
            dist.destroy_process_group()
