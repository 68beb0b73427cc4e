"""One process does everything, one shard after another: the reference for all other engines."""

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

# How often a log is told how far a job is.
SECONDS_BETWEEN = 30.0


class LocalEngine:
    """This process."""

    is_leader = True

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()

    def map_shards(self, build: ShardBuilder, shards: Shards) -> None:
        """See `recgrit.engines.engine.Engine`."""
        pending = shards.find_pending()
        worker = ShardWorker(build, shards)
        collect(shards, (worker.work(number) for number in pending), pending)

    def run_on_processes(self, function: Callable[[Report], T], report: Report, folder: Path) -> T:
        """See `recgrit.engines.engine.Engine`."""
        return function(report)

    def follow(self) -> None:
        """There is nobody to follow."""


def collect(shards: Shards, outcomes: Iterable[ShardOutcome], pending: list[int]) -> None:
    """Follow shards as they are done, and say how far they are.

    Raises:
        EngineError: Some could not be done; raised at once if no other could either.
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
                if len(seen) == 1:  # Most of the time until now went into loading a model.
                    logger.info("%s: %s", shards.name, done)
                else:
                    left = timedelta(seconds=round(num_left / rate))
                    logger.info("%s: %s, %.0f a second, %s left", shards.name, done, rate, left)
                next_told = now + SECONDS_BETWEEN
    require_all(shards, seen, pending)
