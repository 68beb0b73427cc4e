"""The processes that torchrun started: process 0 goes through the stages, the others help it.

Process 0 says what is to be done, all do it, and process 0 hears what became of it. So shards are
divided among the GPUs of a machine without a cluster, and training has its process group. What is
sent are functions of this package with their settings, between processes of one job.
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

# How long the others wait for process 0 to come to something that they can help with.
PATIENCE = timedelta(days=30)


class TorchrunEngine:
    """All processes of torchrun."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.is_leader = dist.get_rank() == 0
        # Of its own: a collective of training that takes so long hangs.
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        # Whether the others wait for a word. They do not if something went wrong in a common task.
        self.is_listening = True

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """See `recgrit.engines.engine.Engine`; every process does an equal number of shards."""
        pending = shards.find_pending()
        parts = self._do(partial(_work_on_share, build, shards, pending))
        require_all(shards, [outcome for part in parts for outcome in part], pending)

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """See `recgrit.engines.engine.Engine`."""
        found: T = self._do(partial(_help, function), own=partial(function, report))[0]
        return found

    def follow(self) -> None:
        """Do what process 0 says until it says no more."""
        while (task := self._say(None)) is not None:
            self.is_listening = False
            self._hear(task())
            self.is_listening = True

    def _do(self, task: Task, own: Task | None = None) -> list[Any]:
        """Have a task done by all processes, or another by this one; what each of them returned."""
        self.is_listening = False
        self._say(task)
        found = self._hear((own or task)())
        self.is_listening = True
        return found

    def _say(self, task: Task | None) -> Task | None:
        """What process 0 says."""
        said = [task]
        dist.broadcast_object_list(said, src=0, group=self._control)
        return said[0]

    def _hear(self, result: Any) -> list[Any]:
        """What all processes have to say, in process 0."""
        results: list[Any] | None = [None] * dist.get_world_size() if self.is_leader else None
        dist.gather_object(result, results, dst=0, group=self._control)
        return results or []


def _help(function: Callable[[Report], Any]) -> None:
    """Call a function in a process that neither reports nor returns anything."""
    function(lambda value: None)


def _work_on_share(build: ShardBuilder, shards: Shards, pending: list[int]) -> list[ShardOutcome]:
    """This process's share of the shards, up to one after which no other can be done either."""
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
    """Take this process's place among those that torchrun started."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        place, num_gpus = launch.local_number, torch.cuda.device_count()
        if place >= num_gpus:
            raise ConfigError(
                f"torchrun started process {place + 1} on a machine of {num_gpus} GPUs, and each "
                f"needs one of its own. Use --nproc-per-node {num_gpus}, or hide the GPUs with "
                "CUDA_VISIBLE_DEVICES=."
            )
        torch.cuda.set_device(place)
    try:
        distributed.join("cpu:gloo,cuda:nccl" if has_gpu else "gloo", PROCESSES_PATIENCE)
    except RuntimeError as error:  # torch.distributed's own are of this kind.
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
