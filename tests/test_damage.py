"""Damage to any file of a run or a bundle is reported, repaired or harmless.

A command must not use damaged data without an error. The tests try a sample of files, damages and
commands. All of them take hours. Another seed tries other ones:

    RECGRIT_DAMAGE_SEED=1 RECGRIT_DAMAGE_CASES=400 python -m pytest tests/test_damage.py
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recgrit.disk import MANIFEST_NAME

Command = Callable[..., Any]

SEED = int(os.environ.get("RECGRIT_DAMAGE_SEED", "0"))
CASES = int(os.environ.get("RECGRIT_DAMAGE_CASES", "24"))
# Users may change the settings, so changed settings are no damage.
OWN_FILES = {"config.yaml"}


def _flip(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def _zero(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.randint(1, 64))
    return content[:start] + bytes(end - start) + content[end:]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a bit flipped": _flip,
    "some bytes zeroed": _zero,
    "cut": lambda content, draw: content[: draw.randrange(len(content))],
    "emptied": lambda *_: b"",
    "longer": lambda content, draw: content + draw.randbytes(draw.randint(1, 9)),
    "deleted": lambda *_: None,
}


@contextmanager
def _damaged(path: Path, content: bytes | None) -> Iterator[None]:
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(before)


def _content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files except the manifests, which have the times of the stages."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def _try(command: Command, arguments: list[str], out: Path | None) -> Any:
    """Return the output of a command, or None if it reported an error."""
    if out is not None and out.is_dir():
        shutil.rmtree(out)
    elif out is not None:
        out.unlink(missing_ok=True)
    found = command(*arguments)
    if found.code == 2:
        found.error_message()
        return None
    assert found.code == 0, (found.code, found.err)
    if out is None:
        return found.out
    return _content_of(out) if out.is_dir() else out.read_bytes()


def _check(
    command: Command, folder: Path, commands: dict[str, tuple[list[str], Path | None]]
) -> None:
    """Try a sample of damages and commands.

    Args:
        command: Function that calls the command line.
        folder: Folder of the run or of the bundle.
        commands: Arguments of each command and the path of its output, by a name for messages.
    """
    draw = random.Random(SEED)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OWN_FILES and path.stat().st_size
    ]
    whole = {name: _try(command, *given) for name, given in commands.items()}
    assert None not in whole.values()
    cases = [(path, damage, name) for path in files for damage in DAMAGES for name in commands]
    silent, told = [], 0
    for path, damage, name in draw.sample(cases, min(CASES, len(cases))):
        content = DAMAGES[damage](path.read_bytes(), draw)
        if content == path.read_bytes():  # Damage that writes zeros over zeros changes nothing.
            continue
        backup = folder.with_name("backup")
        shutil.copytree(folder, backup)
        with _damaged(path, content):
            found = _try(command, *commands[name])
        shutil.rmtree(folder)
        backup.rename(folder)
        told += found is None
        if found is not None and found != whole[name]:
            silent.append(f"{name} with {path.relative_to(folder)} {damage}")
    assert not silent
    assert told, "the sample would have met nothing"


def test_damage_of_a_run_is_refused_or_changes_no_output(
    copied_run: Path, command: Command
) -> None:
    run, out = str(copied_run), copied_run.parent / "out"
    _check(
        command,
        copied_run,
        {
            "recommend": (["recommend", "--run", run, "--user", "1", "--json"], None),
            "lists": (
                ["recommend", "--run", run, "--out", f"{out}.parquet"],
                Path(f"{out}.parquet"),
            ),
            "bundle": (["export", "bundle", "--run", run, "--out", f"{out}"], out),
            "table": (["export", "table", "--run", run, "--out", f"{out}"], out),
            "recbole": (["export", "recbole", "--run", run, "--out", f"{out}"], out),
            "report": (["report", run, "--out", f"{out}.html"], Path(f"{out}.html")),
            "item": (["inspect", "item", "5", "--run", run, "--json"], None),
            "verify": (["inspect", "run", "--run", run, "--verify"], None),
            "run": (["run", run], copied_run / "recommendations"),
        },
    )


def test_damage_of_a_bundle_is_refused_or_changes_no_output(
    copied_run: Path, command: Command, tmp_path: Path
) -> None:
    bundle, out = tmp_path / "bundles" / "first", tmp_path / "bundles" / "second"
    assert command("export", "bundle", "--run", copied_run, "--out", bundle).code == 0
    (tmp_path / "histories.csv").write_text("user_id,item_id\na,5\na,9\nb,12\n")
    (tmp_path / "items.csv").write_text("item_id,title\nnew,Love Wedding\n")
    lists = tmp_path / "lists.parquet"
    histories = ["--histories", str(tmp_path / "histories.csv")]
    _check(
        command,
        bundle,
        {
            "recommend": (
                ["recommend", "--bundle", str(bundle), *histories, "--out", str(lists)],
                lists,
            ),
            "append": (
                ["append", str(bundle), str(tmp_path / "items.csv"), "--out", str(out)],
                out,
            ),
        },
    )
