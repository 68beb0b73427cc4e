"""Files and folders without permission end in one message that names them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
pytestmark = pytest.mark.pipeline


@pytest.fixture
def close(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Remove all permissions from a path until the test ends."""
    probe = tmp_path / "probe"
    probe.touch(mode=0o000)
    if os.access(probe, os.R_OK):
        pytest.skip("permission bits do not bind this user, who is root")
    closed: list[tuple[Path, int]] = []

    def take(path: Path) -> Path:
        closed.append((path, path.stat().st_mode))
        path.chmod(0o000)
        return path

    yield take
    for path, mode in reversed(closed):
        path.chmod(mode)


COMMANDS = (
    ("inspect", "run", "--run"),
    ("recommend", "--user", "1", "--run"),
    ("report",),
    ("run",),
    ("export", "bundle", "--out", "OUT", "--run"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("what", ["model", "model/manifest.json", "data", "config.yaml", "."])
def test_what_cannot_be_read_is_named(
    what: str,
    arguments: tuple[str, ...],
    copied_run: Path,
    tmp_path: Path,
    close: Callable[[Path], Path],
    command: Command,
) -> None:
    if what == "config.yaml" and arguments[0] in ("recommend",):
        pytest.skip("is not read")
    closed = close(copied_run / what)
    given = [str(tmp_path / "out") if word == "OUT" else word for word in arguments]
    told = command(*given, copied_run).error_message()
    assert closed.name in told
    assert "Permission denied" in told or "is not readable" in told


def test_weights_that_cannot_be_read_are_named(
    copied_run: Path, close: Callable[[Path], Path], command: Command
) -> None:
    weights = close(copied_run / "model" / "weights.safetensors")
    told = command("recommend", "--run", copied_run, "--user", "1").error_message()
    assert f"Cannot read {weights}: Permission denied" in told


def test_a_folder_of_data_that_cannot_be_read_is_named(
    tmp_path: Path,
    new_config: Callable[..., Path],
    close: Callable[[Path], Path],
    command: Command,
) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    close(folder)
    for source in ("table", "movielens-100k"):
        told = command(
            "prepare", new_config(), f"data.source={source}", f"data.path={folder}"
        ).error_message()
        assert "closed" in told
        assert "Permission denied" in told


def test_an_unreadable_lock_file_is_named(
    copied_run: Path, tmp_path: Path, close: Callable[[Path], Path], command: Command
) -> None:
    for file, arguments in (
        (copied_run / ".lock", ("run", copied_run)),
        (tmp_path / ".new.lock", ("export", "bundle", "--run", copied_run, "--out", "NEW")),
    ):
        file.touch()
        close(file)
        given = [tmp_path / "new" if word == "NEW" else word for word in arguments]
        told = command(*given).error_message()
        assert file.name in told
        assert "delete that file" in told
