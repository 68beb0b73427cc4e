"""What stages ask of an engine, and which engine there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine
from recgrit.engines.shards import Report, ShardBuilder, Shards
from recgrit.errors import ConfigError
from recgrit.launch import read_launch

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Engine(Protocol):
    """Does the work of a stage."""

    config: EngineConfig

    @property
    def is_leader(self) -> bool:
        """Whether this process goes through the stages; others only help it."""

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """Write those shards that are not done yet.

        Args:
            build: Makes the function that writes a shard, wherever the work is done.
            shards: What there is to do.

        Raises:
            EngineError: Some cannot be done; all others are.
        """

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """Call a function in every process that trains; returns what process 0 returned.

        Args:
            function: The same everywhere; where there are several, torch.distributed is ready.
            report: Called in this process with all that process 0 reports: at once where that is
                this process, else when the function has returned.
            folder: That all processes see, for what the engine keeps meanwhile.

        Raises:
            EngineError: It cannot be done, or a process raised an error of another machine.
        """

    def follow(self) -> None:
        """Help the leader until it is done."""


@contextmanager
def start_engine(config: EngineConfig) -> Iterator[Engine]:
    """The engine the settings name; what it started is stopped at the end.

    Raises:
        ConfigError: Ray is not installed, torchrun and Ray are asked for at once, or what torchrun
            leaves in the environment is not what it leaves.
        EngineError: A cluster cannot be reached.
    """
    launch = read_launch()
    if config.kind == "ray":
        if launch is not None:
            raise ConfigError(
                "engine=ray starts its own processes: run 'recgrit run' without torchrun, and set "
                "engine.train_workers for the number that train."
            )
        from recgrit.engines.ray_engine import start_ray

        with start_ray(config) as ray_engine:
            yield ray_engine
    elif launch is not None:
        from recgrit.engines.torchrun import join_processes

        with join_processes(config, launch) as processes:
            yield processes
    else:
        if config.train_workers is not None or config.num_workers is not None:
            logger.warning(
                "engine.num_workers and engine.train_workers are for engine=ray: one process does "
                "all."
            )
        yield LocalEngine(config)
