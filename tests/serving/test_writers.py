"""Several processes write and read one bundle at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recgrit.artifacts import retry_replaced
from recgrit.errors import ArtifactError, ReplacedError
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle

EXPORT = """
import sys, time
from pathlib import Path
from recgrit.errors import ArtifactError
from recgrit.runs import Run
from recgrit.serving.writing import export_bundle

run, out, until = Run(sys.argv[1]), Path(sys.argv[2]), time.monotonic() + float(sys.argv[3])
exported = refused = 0
print("ready", flush=True)
while time.monotonic() < until:
    try:
        export_bundle(run, out)
        exported += 1
    except ArtifactError as error:
        assert "is being written by" in str(error), error
        refused += 1
print(exported, refused)
"""


@pytest.fixture
def writers(tiny_run: Any, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Start two processes that replace the bundle repeatedly for three seconds."""
    command = [sys.executable, "-c", EXPORT, str(tiny_run.directory), str(tmp_path / "out"), "3"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_bundle_that_two_replace_can_be_read_at_any_time(
    writers: list[subprocess.Popen[str]],
    bundle: Bundle,
    run: Run,
    tmp_path: Path,
    histories: dict[str, list[str]],
) -> None:
    export_bundle(run, tmp_path / "out")
    some = {"x": histories["3"]}
    expected = bundle.recommend_after(some)
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    num_read = 0
    while any(process.poll() is None for process in writers):
        found = retry_replaced(lambda: Bundle(tmp_path / "out").recommender())
        assert found.recommend_after(some).equals(expected)
        num_read += 1
    counts = [tuple(map(int, process.communicate()[0].split())) for process in writers]
    assert num_read > 3
    assert sum(exported for exported, _ in counts) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_open_bundle_raises_after_it_was_replaced(
    run: Run, bundle: Bundle, tmp_path: Path, histories: dict[str, list[str]]
) -> None:
    opened = export_bundle(run, tmp_path / "out")
    time.sleep(1.1)  # Bundles of the same run that are written within one second are identical.
    export_bundle(run, tmp_path / "out")
    with pytest.raises(ReplacedError, match="was replaced since it was opened: open it again"):
        opened.recommend_after(histories)


def test_an_open_run_raises_after_it_was_rebuilt(copied_run: Path, command: Any) -> None:
    opened = Run(copied_run)
    assert opened.recommend(["1"]).height == 10
    assert command("run", copied_run, "retriever.epochs=1").code == 0
    with pytest.raises(ReplacedError, match=r"stage train .* was made again .*open the run again"):
        opened.manifest("evaluate")


def test_a_folder_of_something_else_is_kept(run: Run, copied_run: Path) -> None:
    with pytest.raises(ArtifactError, match="already exists and is not recgrit's bundle"):
        export_bundle(run, copied_run / "data")
    assert Run(copied_run).data.split.num_items == 40
