"""Test the shards that every engine uses: a shard is complete or missing, and is made once."""

import hashlib
import json
import signal
import subprocess
import sys

import pytest

from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine
from recgrit.engines.shards import MAX_ATTEMPTS, Shards
from recgrit.errors import EngineError, RecgritError


@pytest.fixture
def shards(tmp_path):
    return Shards("embed", tmp_path / "shards", num_rows=10, shard_rows=3, suffix=".txt")


def write_rows(rows, path):
    path.write_text(",".join(map(str, range(rows.start, rows.stop))))


def read(shards):
    return ",".join(path.read_text() for path in shards.paths())


ALL = "0,1,2,3,4,5,6,7,8,9"


def test_every_row_is_in_one_shard(shards):
    LocalEngine().map_shards(lambda: write_rows, shards)
    assert shards.num_shards == 4
    assert read(shards) == ALL


def test_what_is_done_is_not_done_again(shards):
    done = []

    def note(rows, path):
        done.append(rows.start)
        write_rows(rows, path)

    LocalEngine().map_shards(lambda: note, shards)
    shards.path(1).unlink()
    LocalEngine().map_shards(lambda: note, shards)
    assert done == [0, 3, 6, 9, 3]


@pytest.mark.parametrize("damage", ["truncated", "changed", "unrecorded", "record", "deep"])
def test_a_damaged_shard_is_rebuilt(shards, damage, caplog):
    LocalEngine().map_shards(lambda: write_rows, shards)
    record = shards.folder / "000002.json"
    if damage == "truncated":
        shards.path(2).write_text("6,7")
    elif damage == "changed":
        shards.path(2).write_text("6,7,9")
    elif damage == "unrecorded":
        record.unlink()
    elif damage == "deep":
        record.write_text("[" * 100_000)
    else:
        record.write_text("{")
    LocalEngine().map_shards(lambda: write_rows, shards)
    assert read(shards) == ALL
    assert "000002.txt is damaged or unfinished" in caplog.text


def test_a_poisoned_shard_is_reported_and_the_others_done(shards):
    def poisoned(rows, path):
        if rows.start == 3:
            raise ValueError("a text of nothing but poison")
        write_rows(rows, path)

    with pytest.raises(EngineError, match=r"1 of 4 shards of embed .* 1: .*nothing but poison"):
        LocalEngine().map_shards(lambda: poisoned, shards)
    assert [shards.is_done(number) for number in range(4)] == [True, False, True, True]
    LocalEngine().map_shards(lambda: write_rows, shards)
    assert read(shards) == ALL


def test_several_failures_are_reported_separately(shards):
    def poisoned(rows, path):
        raise ValueError(f"poison {rows.start}")

    with pytest.raises(EngineError) as raised:
        LocalEngine().map_shards(lambda: poisoned, shards)
    assert "4 of 4" in str(raised.value)
    assert "poison 0" in str(raised.value)
    assert "poison 9" in str(raised.value)


def test_an_error_that_affects_all_shards_is_raised_at_once(shards):
    calls = []

    def build():
        calls.append(1)
        raise RecgritError("The model is not on this machine.")

    with pytest.raises(EngineError, match="The model is not on this machine"):
        LocalEngine().map_shards(build, shards)
    assert len(calls) == 1


def test_a_full_disk_is_raised_at_the_first_shard(shards):
    def write(rows, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EngineError, match=r"1 of 4 .*No space left on device"):
        LocalEngine().map_shards(lambda: write, shards)
    assert not list(shards.folder.glob("*.txt"))


SCRIPT = """
import os, signal, sys
from pathlib import Path
from recgrit.engines.local import LocalEngine
from recgrit.engines.shards import Shards

def write(rows, path):
    path.write_text(",".join(map(str, range(rows.start, rows.stop))))
    if rows.start == 6:
        os.kill(os.getpid(), signal.SIGKILL)

LocalEngine().map_shards(lambda: write, Shards("embed", Path(sys.argv[1]), 10, 3, ".txt"))
"""


def test_a_killed_process_leaves_whole_shards_only(shards):
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(shards.folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert shards.find_pending() == [2, 3]
    LocalEngine().map_shards(lambda: write_rows, shards)
    assert read(shards) == ALL


def test_a_shard_that_kills_its_workers_is_given_up(shards):
    """A shard is given up after some tries, because an engine may restart workers forever."""
    from recgrit.engines.shards import ShardWorker

    shards.find_pending()
    for _ in range(MAX_ATTEMPTS):
        shards.count_attempt(1)
    outcome = ShardWorker(lambda: write_rows, shards).work(1)
    assert f"died {MAX_ATTEMPTS} times" in outcome.error
    assert not outcome.is_fatal
    # A new call tries the shard again, because the cause may have been removed.
    assert shards.find_pending() == [0, 1, 2, 3]
    assert not ShardWorker(lambda: write_rows, shards).work(1).error


def test_a_worker_that_cannot_see_the_folder_fails_with_the_reason(shards):
    from recgrit.engines.shards import ShardWorker

    outcome = ShardWorker(lambda: write_rows, shards).work(0)
    assert outcome.is_fatal
    assert "storage that all machines share" in outcome.error


def test_the_record_has_size_and_digest_of_the_shard(shards):
    LocalEngine().map_shards(lambda: write_rows, shards)
    record = json.loads((shards.folder / "000003.json").read_text())
    assert record["bytes"] == shards.path(3).stat().st_size == 1
    assert record["sha256"] == hashlib.sha256(shards.path(3).read_bytes()).hexdigest()


def test_the_folder_goes_with_its_shards(shards):
    LocalEngine(EngineConfig()).map_shards(lambda: write_rows, shards)
    shards.remove()
    assert not shards.folder.exists()
