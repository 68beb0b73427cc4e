"""The lists of fused runs can be read by the command `recgrit score`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recgrit.runs import Run

FILE = Path(__file__).parents[2] / "pipelines" / "fuse_runs.py"


def fuse(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FILE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("masked", [False, True])
def test_a_run_fused_with_itself_scores_as_it_does(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path, masked: bool
) -> None:
    lists = tmp_path / "deep" / "lists.parquet"
    flags = ["--masked"] if masked else []
    done = fuse(tiny_run.directory, tiny_run.directory, "--out", lists, *flags)
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(lists).columns == ["user_id", "item_id", "rank", "score"]
    scored = command("score", lists, "--run", tiny_run.directory, "--json", *flags).json()
    expected = Run(tiny_run.directory).report("test", masked=masked).metrics()
    assert scored["metrics"] == pytest.approx(expected)


def test_runs_that_cannot_be_fused(
    tiny_run: Any, new_config: Callable[..., Path], run_command: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_command("train", new_config(), "model.kind=popularity")
    assert done.code == 0, done.err
    out = tmp_path / "lists.parquet"
    refused = fuse(tiny_run.directory, tmp_path / "runs" / "new", "--out", out)
    assert refused.returncode == 1
    assert "only runs of trie, tiger, decoder can be fused" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not out.exists()
