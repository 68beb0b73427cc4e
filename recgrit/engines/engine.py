"""The interface of an engine, and the choice of the engine by the settings."""

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
    """The interface through which a stage has its slow work done."""

    config: EngineConfig

    @property
    def is_leader(self) -> bool:
        """Whether this process runs the stages. The other processes only call `follow`."""

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """Write all shards of a job that are not finished yet.

        Args:
            build: Function that returns the function that writes a shard. Each worker calls it
                once, before its first shard.
            shards: The shards of the job.

        Raises:
            EngineError: Some shards cannot be written. Finished shards are kept.
        """

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """Call a function in every process that trains, and return the result of process 0.

        Args:
            function: Function to call, which gets a function for reports as its argument. With
                several processes, torch.distributed is initialised before the call.
            report: Function that is called in this process with every value that process 0 reports.
                It is called at once if this process is process 0, and otherwise after ``function``
                has returned.
            folder: Folder that all processes can read and write, for temporary files of the engine.

        Raises:
            EngineError: The function cannot be run in the processes, or a process of a cluster
                failed.
        """

    def follow(self) -> None:
        """Help the leading process with its work until it is done."""


@contextmanager
def start_engine(config: EngineConfig) -> Iterator[Engine]:
    """Start the engine that the settings name, yield it, and stop what it started.

    Args:
        config: Settings of the engine.

    Raises:
        ConfigError: Ray is not installed, torchrun and Ray are used at once, or the environment
            variables of torchrun are incomplete or invalid.
        EngineError: The other processes or the cluster cannot be reached.
    """
    launch = read_launch()
    if config.kind == "ray":
        if launch is not None:
            raise ConfigError(
                "engine=ray starts its own processes: run 'recgrit run' without torchrun, and set "
                "engine.train_workers to the number of training processes."
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
                "engine.num_workers and engine.train_workers work only with engine=ray: one "
                "process does all the work."
            )
        yield LocalEngine(config)
