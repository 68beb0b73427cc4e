"""Jobs whose result is written in shards: numbered files in one folder, each with a record.

A worker writes a shard under a temporary name, renames it, and then writes a record with its size
and digest. A shard whose record is missing or differs counts as unfinished and is written again.
The result therefore contains each shard exactly once, whichever process is killed at whatever time.
Workers on several machines share the folder, so it has to be on storage that all of them can reach.
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

# A function that computes the result for a range of rows and writes it to a path.
ShardFunction = Callable[[slice, Path], None]
# A function that gets the values that a running task reports, such as the results of an epoch.
Report = Callable[[Any], None]
# A function that returns a shard function. Each worker calls it once, because it may load a model.
ShardBuilder = Callable[[], ShardFunction]

# Number of workers that may die while they write a shard before the shard is given up.
MAX_ATTEMPTS = 3
# Number of failed shards that an error message lists one by one.
MAX_TOLD = 5


@dataclass(frozen=True)
class Shards:
    """The shards of a job, each with a consecutive range of the job's rows.

    Args:
        name: Name of the job in messages.
        folder: Folder of the shards' files.
        num_rows: Number of rows of all shards together.
        shard_rows: Number of rows of each shard. The last shard may have fewer.
        suffix: Suffix of the shards' files, with the dot, such as ``.npy``.
    """

    name: str
    folder: Path
    num_rows: int
    shard_rows: int
    suffix: str

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_rows // self.shard_rows)

    def rows(self, number: int) -> slice:
        """Return the range of rows of a shard."""
        start = number * self.shard_rows
        return slice(start, min(start + self.shard_rows, self.num_rows))

    def count_rows(self, numbers: Iterable[int]) -> int:
        """Return the total number of rows of the shards with these numbers."""
        return sum(rows.stop - rows.start for rows in map(self.rows, numbers))

    def path(self, number: int) -> Path:
        """Return the path of a shard's file."""
        return self.folder / f"{number:06d}{self.suffix}"

    def paths(self) -> Iterator[Path]:
        """Return the paths of the files of all shards, in order."""
        return (self.path(number) for number in range(self.num_shards))

    def is_done(self, number: int) -> bool:
        """Return whether a shard is finished, which means that its file agrees with its record."""
        path = self.path(number)
        try:
            record = json.loads(self._record(number).read_text(encoding="utf-8"))
            return bool(
                record["bytes"] == path.stat().st_size and record["sha256"] == digest_file(path)
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def find_pending(self) -> list[int]:
        """Return the numbers of the unfinished shards, and delete their records of starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pending = [number for number in range(self.num_shards) if not self.is_done(number)]
        for number in pending:
            if self.path(number).exists():
                logger.warning(
                    "%s is damaged or unfinished, and is computed again", self.path(number)
                )
            self._attempts(number).unlink(missing_ok=True)
        return pending

    def write(self, number: int, function: ShardFunction) -> None:
        """Write a shard with a function, and then write the shard's record.

        Args:
            number: Number of the shard.
            function: Function that writes the rows of the shard to a path.
        """
        path = self.path(number)
        with replacing(path) as temporary:
            function(self.rows(number), temporary)
        record = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        write_atomic(self._record(number), json.dumps(record))

    def count_attempt(self, number: int) -> int:
        """Record that a worker starts to write a shard, and return the number of earlier starts.

        A worker that dies leaves its start on record. A shard with `MAX_ATTEMPTS` such starts is
        given up, because it would kill every worker.
        """
        with self._attempts(number).open("ab") as file:
            file.write(b".")
            return file.tell() - 1

    def forget_attempts(self, number: int) -> None:
        """Delete the record of starts on a shard, because its last worker did not die."""
        self._attempts(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all shards of this job, after their contents have been read.

        Shards that the same job left under other settings are deleted too, and so is their common
        folder if it is empty then.
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
    """The outcome of the attempt to write a shard.

    Args:
        number: Number of the shard.
        error: Reason why the shard could not be written. Empty if it was written.
        is_fatal: Whether the other shards would fail for the same reason.
    """

    number: int
    error: str = ""
    is_fatal: bool = False


class ShardWorker:
    """A worker that writes shards one after another with one function.

    Args:
        build: Function that returns the function that writes a shard. It is called before the first
            shard.
        shards: The shards of the job.
    """

    def __init__(self, build: ShardBuilder, shards: Shards) -> None:
        self._build = build
        self._shards = shards
        self._function: ShardFunction | None = None

    def work(self, number: int) -> ShardOutcome:
        """Write a shard, and return the outcome.

        An error is returned in the outcome instead of raised, so that the worker can continue with
        other shards.
        """
        shards = self._shards
        if not shards.folder.is_dir():
            return ShardOutcome(
                number,
                f"this worker cannot see {shards.folder}: put run.dir (and run.cache_dir) on "
                "storage that all machines share",
                is_fatal=True,
            )
        # Another worker may have finished the shard and died before it returned the outcome.
        if shards.is_done(number):
            return ShardOutcome(number)
        is_building = False
        try:
            if shards.count_attempt(number) >= MAX_ATTEMPTS:
                return ShardOutcome(
                    number, f"its worker died {MAX_ATTEMPTS} times, perhaps because memory ran out"
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
    """Check that all pending shards are written.

    Args:
        shards: The shards of the job.
        outcomes: Outcomes of the shards that were tried.
        pending: Numbers of the shards that were to be written.

    Raises:
        EngineError: A shard is missing. The message names the failed shards and the reasons.
            Finished shards are kept.
    """
    failed = sorted((o for o in outcomes if o.error), key=lambda outcome: outcome.number)
    missing = set(pending) - {outcome.number for outcome in outcomes}
    if not failed:
        if missing:
            raise EngineError(
                f"No result arrived for {len(missing)} of {shards.num_shards} shards of "
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
        f"{len(failed)} of {shards.num_shards} shards of {shards.name} failed, first "
        f"{told.strip()}\n{num_done} are done and kept in {shards.folder}: fix the cause and run "
        "the same command again, which does only what is missing."
    )
