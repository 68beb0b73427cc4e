"""The engine for a Ray cluster: Ray Data writes shards in actors, and TorchTrainer trains.

Only the numbers of shards and their outcomes pass through Ray. The shards themselves are written to
disk by the workers. The engine therefore needs almost no space in the object store, which other
jobs may have filled, and the death of a worker costs only the shard that it was writing.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from recgrit.disk import write_atomic
from recgrit.engines.config import PROCESSES_PATIENCE, EngineConfig
from recgrit.engines.local import collect
from recgrit.engines.shards import Report, ShardBuilder, ShardOutcome, Shards, ShardWorker
from recgrit.errors import ConfigError, EngineError, RecgritError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Number of times that a training is resumed from its last checkpoint after a worker died.
MAX_TRAIN_FAILURES = 3


class RayEngine:
    """An engine that works on a Ray cluster.

    Args:
        config: Settings of the engine.
        is_own: Whether the cluster was started for this run.
    """

    is_leader = True

    def __init__(self, config: EngineConfig, *, is_own: bool) -> None:
        self.config = config
        # A cluster that was started for this run does not grow.
        self._is_own = is_own

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """Write the missing shards, which are divided among the actors of the Ray cluster.

        See `recgrit.engines.engine.Engine.map_shards`.
        """
        pending = shards.find_pending()
        collect(shards, self._map(build, shards, pending), pending)

    def _map(
        self, build: ShardBuilder, shards: Shards, pending: list[int]
    ) -> Iterator[ShardOutcome]:
        if not pending:
            return
        import ray.data
        import ray.exceptions

        num_workers = min(self._count_workers(), len(pending))
        logger.info("%s: %d shard(s) on %d worker(s)", shards.name, len(pending), num_workers)
        numbers = ray.data.from_items(
            [{"number": number} for number in pending], override_num_blocks=len(pending)
        )
        outcomes = numbers.map_batches(
            _build_actor(build, shards),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
            num_cpus=self.config.cpus_per_worker,
            num_gpus=self.config.gpus_per_worker,
        )
        try:
            for row in outcomes.iter_rows():
                yield ShardOutcome(int(row["number"]), str(row["error"]), bool(row["is_fatal"]))
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"Ray stopped {shards.name}: {_find_cause(error)}\nFinished shards are kept in "
                f"{shards.folder}: the same command does only what is missing."
            ) from error

    def _count_workers(self) -> int:
        """Return the number of workers by the settings, or as many as the cluster has room for."""
        asked = self.config.num_workers
        room = self._require_room(1, may_grow=asked is not None)
        return asked or room

    def _require_room(self, num_workers: int, *, may_grow: bool) -> int:
        """Return the number of workers that the cluster has room for.

        Args:
            num_workers: Number of workers that are needed.
            may_grow: Whether too little room is only a warning in a cluster that was not started
                for this run. Such a cluster may grow, and Ray then waits for it.

        Raises:
            EngineError: There is too little room, and the cluster is not expected to grow.
        """
        import ray

        there = ray.cluster_resources()
        cpus, gpus = self.config.cpus_per_worker, self.config.gpus_per_worker
        room = there.get("CPU", 0.0) / cpus
        if gpus:
            room = min(room, there.get("GPU", 0.0) / gpus)
        if room >= num_workers:
            return int(room)
        told = (
            f"The cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs: no "
            f"room for {num_workers} worker(s) with {cpus:g} and {gpus:g}."
        )
        if may_grow and not self._is_own:
            logger.warning("%s Waiting for the cluster to grow.", told)
            return int(room)
        raise EngineError(
            f"{told} Lower engine.cpus_per_worker, engine.gpus_per_worker or engine.train_workers."
        )

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """Call a function in ``train_workers`` Ray processes, or here if that setting is None.

        See `recgrit.engines.engine.Engine.run_on_processes`.
        """
        if self.config.train_workers is None:
            return function(report)
        self._require_room(self.config.train_workers, may_grow=True)
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = {"CPU": self.config.cpus_per_worker}
        with tempfile.TemporaryDirectory(prefix=".ray-", dir=folder.absolute()) as name:
            mistake = Path(name) / "mistake"

            def work() -> Any:
                # An error of recgrit, such as a wrong setting, would occur at every restart.
                if mistake.exists():
                    return None
                reported: list[Any] = []
                try:
                    value = function(reported.append)
                except RecgritError as error:
                    write_atomic(mistake, str(error))
                    raise
                return value, reported

            trainer = TorchTrainer(
                work,
                torch_config=TorchConfig(timeout_s=int(PROCESSES_PATIENCE.total_seconds())),
                scaling_config=ScalingConfig(
                    num_workers=self.config.train_workers,
                    use_gpu=self.config.gpus_per_worker > 0,
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    storage_path=name,
                    failure_config=FailureConfig(max_failures=MAX_TRAIN_FAILURES),
                ),
            )
            try:
                result: Any = trainer.fit()
            except SystemExit:  # Ray turns Ctrl-C into SystemExit.
                raise KeyboardInterrupt from None
            except Exception as error:
                raise EngineError(f"Training on Ray failed: {_find_cause(error)}") from error
            if mistake.exists():
                raise EngineError(mistake.read_text(encoding="utf-8"))
        found: T
        found, reported = result.return_value  # The result is that of process 0.
        for value in reported:
            report(value)
        return found

    def follow(self) -> None:
        """Do nothing, because the leading process uses Ray's own workers."""


def _build_actor(build: ShardBuilder, shards: Shards) -> type:
    """Return the class of the actor that Ray Data starts for each worker.

    The class is made for one job and its constructor has no arguments. Arguments of a constructor
    would be in the object store, and an actor could not be restarted after they are lost.
    """

    class ShardActor:
        def __init__(self) -> None:
            self.worker = ShardWorker(build, shards)

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
            outcomes = [self.worker.work(int(number)) for number in batch["number"]]
            return {
                "number": [outcome.number for outcome in outcomes],
                "error": [outcome.error for outcome in outcomes],
                "is_fatal": [outcome.is_fatal for outcome in outcomes],
            }

    return ShardActor


def _find_cause(error: BaseException) -> str:
    """Return the last line of the innermost error, without the traceback that Ray adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _require_reachable(address: str) -> None:
    """Check within seconds that a cluster answers, because Ray itself would try for minutes.

    Raises:
        OSError: Nothing answers at the address.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def start_ray(config: EngineConfig) -> Iterator[RayEngine]:
    """Connect to the Ray cluster that the settings name, or start one on this machine.

    A cluster or a connection that this function started is shut down at the end.

    Args:
        config: Settings of the engine.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: The cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise ConfigError(
            "engine=ray needs Ray: install it with 'pip install \"recgrit[ray]\"', or set "
            "engine=local."
        ) from None
    was_connected = ray.is_initialized()
    # Without an address, Ray would look for a cluster that somebody else started on this machine.
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if not was_connected:
        try:
            _require_reachable(address)
            ray.init(
                address=address,
                logging_level=logging.WARNING,
                include_dashboard=False if address == "local" else None,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            token = ""
            if "Token" in str(error) or "Auth" in str(error):
                token = (
                    " It requires a token: set RAY_AUTH_MODE=token here, and put the cluster's "
                    "token in ~/.ray/auth_token."
                )
            raise EngineError(
                f"Cannot connect to a Ray cluster at {address}: {error}{token} Check "
                "engine.address, or unset it to start one on this machine."
            ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield RayEngine(config, is_own=address == "local" and not was_connected)
    finally:
        if not was_connected:
            ray.shutdown()
