"""The engine that works in this process alone, which is the reference for all other engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from recgrit.engines.config import EngineConfig
from recgrit.engines.shards import (
    Report,
    ShardBuilder,
    ShardOutcome,
    Shards,
    ShardWorker,
    require_all,
)
from recgrit.progress import progress_bar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two log lines about the progress of a job.
SECONDS_BETWEEN = 30.0


class LocalEngine:
    """An engine that works in this process, one shard after another.

    Args:
        config: Settings of the engine. None uses the defaults.
    """

    is_leader = True

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """Write the missing shards in order; see `recgrit.engines.engine.Engine.map_shards`."""
        pending = shards.find_pending()
        worker = ShardWorker(build, shards)
        collect(shards, (worker.work(number) for number in pending), pending)

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """Call a function in this process and return its result.

        See `recgrit.engines.engine.Engine.run_on_processes`.
        """
        return function(report)

    def follow(self) -> None:
        """Do nothing, because there is no other process to help."""


def collect(shards: Shards, outcomes: Iterable[ShardOutcome], pending: list[int]) -> None:
    """Wait for the outcomes of shards, and show the progress of the job.

    Args:
        shards: The shards of the job.
        outcomes: Outcomes of shards, in the order in which the shards are finished.
        pending: Numbers of the shards that are to be written.

    Raises:
        EngineError: Some shards could not be written. The error is raised after all outcomes, or at
            once if the other shards would fail for the same reason.
    """
    seen: list[ShardOutcome] = []
    started = time.perf_counter()
    next_told = started
    num_done, num_now = shards.num_rows - shards.count_rows(pending), 0
    with progress_bar(shards.name, shards.num_rows) as bar:
        bar.advance(num_done)
        for outcome in outcomes:
            seen.append(outcome)
            if outcome.is_fatal:
                break
            if outcome.error:
                logger.warning("Shard %d of %s: %s", outcome.number, shards.name, outcome.error)
            num_rows = shards.count_rows([outcome.number])
            num_now += num_rows
            now = time.perf_counter()
            rate = num_now / (now - started)
            bar.advance(num_rows, note=f"{rate:,.0f} a second")
            num_left = shards.num_rows - num_done - num_now
            if num_left and now >= next_told:
                done = f"{num_done + num_now:,} of {shards.num_rows:,} done"
                # The time of the first shard includes the loading of a model, so it gives no rate.
                if len(seen) == 1:
                    logger.info("%s: %s", shards.name, done)
                else:
                    left = timedelta(seconds=round(num_left / rate))
                    logger.info("%s: %s, %.0f a second, %s left", shards.name, done, rate, left)
                next_told = now + SECONDS_BETWEEN
    require_all(shards, seen, pending)
