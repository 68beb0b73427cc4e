"""Wherever a command is killed, old files stay complete until they are replaced.

A repeated command then succeeds. The tests kill at a sample of all operations on the disk. This
command tries all of them:

    RECGRIT_KILLS=all python -m pytest tests/test_kills.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recgrit.disk import MANIFEST_NAME
from recgrit.serving.bundle import Bundle

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Return a function that runs a command and kills it at an event; see `tests.killing`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def call(*arguments: object, kill_at: int | None = None, exchanges: bool = True) -> Any:
        request = {"arguments": list(map(str, arguments)), "kill_at": kill_at}
        stdin.write(json.dumps(request | {"exchanges": exchanges, "loud": kill_at is None}) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        # A repeated run may have fewer events, because a folder exists already.
        assert answer["code"] in ((0,) if kill_at is None else (0, -9)), answer
        return answer

    yield call
    stdin.close()
    process.wait()


def moments(num_events: int, num_tried: int, seed: int) -> list[int]:
    """Return the events at which to kill: a sample that includes the first and the last ones."""
    if os.environ.get("RECGRIT_KILLS") == "all":
        return list(range(num_events))
    inner = random.Random(seed).sample(range(1, num_events - 3), num_tried)
    return [0, *sorted(inner), *range(num_events - 3, num_events)]


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files that do not depend on the clock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST_NAME, "epochs.parquet")
    }


@pytest.fixture(scope="module")
def first(tiny_run: Any, ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with files of items and histories beside it."""
    folder = tmp_path_factory.mktemp("bundles")
    ask("export", "bundle", "--run", tiny_run.directory, "--out", folder / "first")
    (folder / "items.csv").write_text("item_id,title\nnew,Love Wedding\nnewer,Star Robot\n")
    (folder / "histories.csv").write_text("user_id,item_id\na,5\na,9\nb,12\n")
    return folder / "first"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_killed_append_is_repeated(
    first: Path, ask: Ask, tmp_path: Path, exchanges: bool
) -> None:
    before = content_of(first)
    whole, out = tmp_path / "whole", tmp_path / "out"
    items = first.parent / "items.csv"
    num = ask("append", first, items, "--out", whole, exchanges=exchanges)["events"]
    for moment in moments(num, 2, seed=1):
        ask("append", first, items, "--out", out, kill_at=moment, exchanges=exchanges)
        if out.exists():
            assert Bundle(out).fingerprint == Bundle(whole).fingerprint
        ask("append", first, items, "--out", out, exchanges=exchanges)
        assert content_of(out) == content_of(whole)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
        shutil.rmtree(out)
    assert content_of(first) == before


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_bundle_survives_a_killed_export(
    tiny_run: Any, first: Path, ask: Ask, tmp_path: Path, exchanges: bool
) -> None:
    out = tmp_path / "out"
    arguments = ("export", "bundle", "--run", tiny_run.directory, "--out", out)
    shutil.copytree(first, out)
    num = ask(*arguments, exchanges=exchanges)["events"]
    for moment in moments(num, 4, seed=2):
        ask(*arguments, kill_at=moment, exchanges=exchanges)
        assert Bundle(out).fingerprint == Bundle(first).fingerprint
    ask(*arguments, exchanges=exchanges)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_killed_night_is_repeated(first: Path, ask: Ask, tmp_path: Path) -> None:
    """The night's bundle and lists are complete or missing, and a repeated command makes both."""
    script = Path(__file__).parents[1] / "pipelines" / "nightly_batch.py"
    folder, out = first.parent, tmp_path / "night"
    files = (f"items={folder / 'items.csv'}", f"histories={folder / 'histories.csv'}")
    arguments = (script, f"bundle={first}", f"out={out}", *files)
    num = ask(*arguments)["events"]
    whole = content_of(out)
    assert {"recommendations.parquet", "bundle/catalogue.parquet"} <= whole.keys()
    for moment in moments(num, 3, seed=5):
        shutil.rmtree(out, ignore_errors=True)
        ask(*arguments, kill_at=moment)
        for name in ("bundle", "recommendations.parquet"):
            if (out / name).exists():
                parts = {f: c for f, c in whole.items() if f.split("/")[0] == name}
                found = content_of(out)
                assert {f: c for f, c in found.items() if f.split("/")[0] == name} == parts
        ask(*arguments)
        assert content_of(out) == whole, f"killed at {moment}"


@pytest.mark.parametrize("kind", ["mlflow", "index"])
def test_a_killed_export_leaves_nothing_after_its_repeat(
    tiny_run: Any, first: Path, ask: Ask, tmp_path: Path, kind: str
) -> None:
    source = ("--bundle", first) if kind == "mlflow" else ("--run", tiny_run.directory)
    out = tmp_path / "out"
    arguments = ("export", kind, *source, "--out", out)
    num = ask(*arguments)["events"]
    names = {path.relative_to(out) for path in out.rglob("*")}
    for moment in moments(num, 2, seed=6):
        shutil.rmtree(out, ignore_errors=True)
        ask(*arguments, kill_at=moment)
        if not out.exists():
            ask(*arguments)
        assert {path.relative_to(out) for path in out.rglob("*")} == names, f"killed at {moment}"
        shutil.rmtree(out)
        ask(*arguments)
        assert [path.name for path in tmp_path.iterdir()] == ["out"], f"killed at {moment}"


def test_lists_survive_a_killed_command(first: Path, ask: Ask, tmp_path: Path) -> None:
    lists = tmp_path / "lists.parquet"
    histories = first.parent / "histories.csv"
    arguments = ("recommend", "--bundle", first, "--histories", histories, "--out", lists)
    num = ask(*arguments)["events"]
    before = lists.read_bytes()
    for moment in moments(num, 1, seed=3) if num > 4 else range(num):
        ask(*arguments, kill_at=moment)
        assert lists.read_bytes() == before
    ask(*arguments)
    assert pl.read_parquet(lists).height == 20


def test_a_killed_run_is_repeated_to_the_bit(
    new_config: Callable[..., Path], ask: Ask, tmp_path: Path
) -> None:
    run, settings = tmp_path / "runs" / "new", ("retriever.epochs=2", "tokenizer.epochs=1")
    config = new_config()
    num = ask("run", config, *settings)["events"]
    whole = content_of(run)
    for moment in moments(num, 2, seed=4):
        shutil.rmtree(run)
        ask("run", config, *settings, kill_at=moment)
        ask("run", config, *settings)
        assert content_of(run) == whole, f"killed at {moment}"
