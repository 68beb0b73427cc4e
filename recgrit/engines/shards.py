"""A job in shards: numbered files in one folder, each vouched for by a record beside it.

A worker writes its shard under another name, puts it in place, and then writes the record with its
size and digest. A shard without a record that fits counts as not done and is done again in place of
what is there: so whatever is killed when, each shard is in the outcome exactly once. Workers on
several machines share the folder, which has to lie where all of them see it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recgrit.checksums import digest_file
from recgrit.disk import explain_write_failure, replacing, write_atomic
from recgrit.errors import EngineError, RecgritError

logger = logging.getLogger(__name__)

# Writes what becomes of these rows to a path.
ShardFunction = Callable[[slice, Path], None]
# Takes what to tell of as it goes on.
Report = Callable[[Any], None]
# Makes a shard function where it is to work, once a worker: it may load a model.
ShardBuilder = Callable[[], ShardFunction]

# Workers that may die over a shard before it is given up.
MAX_ATTEMPTS = 3
# Failed shards that are told of one by one.
MAX_TOLD = 5


@dataclass(frozen=True)
class Shards:
    """The shards of a job.

    Args:
        name: What the job is called when it is told of.
        folder: Where they lie.
        num_rows: Of all shards together.
        shard_rows: Of each but the last.
        suffix: Of their files, with the dot.
    """

    name: str
    folder: Path
    num_rows: int
    shard_rows: int
    suffix: str

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return -(-self.num_rows // self.shard_rows)

    def rows(self, number: int) -> slice:
        """The rows of a shard."""
        start = number * self.shard_rows
        return slice(start, min(start + self.shard_rows, self.num_rows))

    def count_rows(self, numbers: Iterable[int]) -> int:
        """How many rows these shards have."""
        return sum(rows.stop - rows.start for rows in map(self.rows, numbers))

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{number:06d}{self.suffix}"

    def paths(self) -> Iterator[Path]:
        """The files of all shards, in order."""
        return (self.path(number) for number in range(self.num_shards))

    def is_done(self, number: int) -> bool:
        """Whether a shard is there, whole."""
        path = self.path(number)
        try:
            record = json.loads(self._record(number).read_text(encoding="utf-8"))
            return bool(
                record["bytes"] == path.stat().st_size and record["sha256"] == digest_file(path)
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def find_pending(self) -> list[int]:
        """The shards that are not done; what died over them before counts no more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pending = [number for number in range(self.num_shards) if not self.is_done(number)]
        for number in pending:
            if self.path(number).exists():
                logger.warning(
                    "%s is damaged or was not finished, and is made anew", self.path(number)
                )
            self._attempts(number).unlink(missing_ok=True)
        return pending

    def write(self, number: int, function: ShardFunction) -> None:
        """Let a function write a shard, and put it on record."""
        path = self.path(number)
        with replacing(path) as temporary:
            function(self.rows(number), temporary)
        record = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        write_atomic(self._record(number), json.dumps(record))

    def count_attempt(self, number: int) -> int:
        """Note that a worker starts on a shard; returns how many did so before."""
        with self._attempts(number).open("ab") as file:
            file.write(b".")
            return file.tell() - 1

    def forget_attempts(self, number: int) -> None:
        """Nobody died over this shard."""
        self._attempts(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete them all, with what this job left beside them under other settings: they are used.

        The folder they were in goes too, if they were the last.
        """
        for folder in (self.folder, *self.folder.parent.glob(f"{self.name}-*")):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _attempts(self, number: int) -> Path:
        return self.folder / f"{number:06d}.attempts"


@dataclass(frozen=True)
class ShardOutcome:
    """What became of a shard.

    Args:
        number: Of the shard.
        error: Why it could not be written; empty if it was.
        is_fatal: Whether the others would fail for the same reason.
    """

    number: int
    error: str = ""
    is_fatal: bool = False


class ShardWorker:
    """Works on shards one after another with one function, made for the first of them."""

    def __init__(self, build: ShardBuilder, shards: Shards) -> None:
        self._build = build
        self._shards = shards
        self._function: ShardFunction | None = None

    def work(self, number: int) -> ShardOutcome:
        """Write a shard; an error is part of the outcome, so that others are worked on."""
        shards = self._shards
        if not shards.folder.is_dir():
            return ShardOutcome(
                number,
                f"this worker does not see {shards.folder}: put run.dir (and run.cache_dir) on "
                "storage that all machines share",
                is_fatal=True,
            )
        if shards.is_done(number):  # By a worker that died before it could say so.
            return ShardOutcome(number)
        is_building = False
        try:
            if shards.count_attempt(number) >= MAX_ATTEMPTS:
                return ShardOutcome(
                    number, f"its worker died {MAX_ATTEMPTS} times, perhaps for want of memory"
                )
            is_building = self._function is None
            self._function = self._function or self._build()
            is_building = False
            shards.write(number, self._function)
        except Exception as error:
            told = str(error) if isinstance(error, RecgritError) else repr(error)
            unwritable = explain_write_failure(error)
            logger.debug("shard %d of %s", number, shards.name, exc_info=True)
            return ShardOutcome(number, unwritable or told, is_building or unwritable is not None)
        finally:
            shards.forget_attempts(number)
        return ShardOutcome(number)


def require_all(shards: Shards, outcomes: list[ShardOutcome], pending: list[int]) -> None:
    """Refuse to continue without some shards.

    Args:
        shards: The job.
        outcomes: What became of shards.
        pending: Those that were to be done.

    Raises:
        EngineError: Names them and what went wrong; those that are done are kept.
    """
    failed = sorted((o for o in outcomes if o.error), key=lambda outcome: outcome.number)
    missing = set(pending) - {outcome.number for outcome in outcomes}
    if not failed:
        if missing:
            raise EngineError(
                f"Nothing was heard of {len(missing)} of {shards.num_shards} shards of "
                f"{shards.name}. Run the same command again, which does only what is missing."
            )
        return
    if all(outcome.error == failed[0].error for outcome in failed):
        told = f" {failed[0].number}: {failed[0].error}"
    else:
        lines = [f"\n  {outcome.number}: {outcome.error}" for outcome in failed[:MAX_TOLD]]
        told = "".join(lines) + ("\n  ..." if len(failed) > MAX_TOLD else "")
    num_done = shards.num_shards - len(missing) - len(failed)
    raise EngineError(
        f"{len(failed)} of {shards.num_shards} shards of {shards.name} could not be done, first "
        f"{told.strip()}\n{num_done} are done and kept in {shards.folder}: mend the cause and run "
        "the same command again, which does only what is missing."
    )
