"""On a full disk or in a folder without permission, old artifacts stay complete and readable.

The tests mount a small file system in memory as the disk. Only root may mount it, and root may
write anywhere, so these tests give up the effective user id to lose permission. Without root they
are skipped, and a limit on the size of files makes the same writes fail.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recgrit.artifacts import write_artifact
from recgrit.data import transfer
from recgrit.data.transfer import fetch_file
from recgrit.errors import ArtifactError, DataError
from recgrit.manifests import Origin, read_manifest
from recgrit.runs import Run

NOBODY = 65534
SMALL = ("data.min_user_interactions=3",)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount an empty file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Fill the disk until `leave` bytes are free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "ballast").write_bytes(b"x" * max(0, free - leave))


def test_a_full_disk_keeps_the_old_artifact(
    new_config: Callable[..., Path], command: Callable[..., Any], small_disk: Path
) -> None:
    run = small_disk / "run"
    config = new_config(run={"dir": str(run)})
    assert command("prepare", config).code == 0
    before = contents(run)
    fill(small_disk, leave=8192)
    told = command("prepare", config, *SMALL).error_message()
    assert "No space left on device" in told
    assert "what was finished before is kept" in told
    assert contents(run) == before
    assert [path.name for path in run.iterdir() if "partial" in path.name] == []
    assert len(Run(run).data.interactions) > 0
    # The same command succeeds after space was freed.
    (small_disk / "ballast").unlink()
    assert command("prepare", config, *SMALL).code == 0


def test_a_read_only_disk_keeps_the_old_artifact(
    new_config: Callable[..., Path], command: Callable[..., Any], small_disk: Path
) -> None:
    run = small_disk / "run"
    config = new_config(run={"dir": str(run)})
    assert command("prepare", config).code == 0
    before = contents(run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    told = command("prepare", config, *SMALL).error_message()
    assert "Cannot write" in told
    assert contents(run) == before
    assert command("inspect", "run", "--run", run).code == 0


@pytest.mark.parametrize("kind", ["recbole", "index"])
def test_an_export_to_a_full_disk_keeps_the_old_files(
    tiny_run: Any, command: Callable[..., Any], small_disk: Path, kind: str
) -> None:
    arguments = ("export", kind, "--run", tiny_run.directory, "--out", small_disk / "out")
    assert command(*arguments).code == 0
    before = contents(small_disk / "out")
    fill(small_disk, leave=0)
    assert "No space left on device. Choose another --out" in command(*arguments).error_message()
    assert contents(small_disk / "out") == before


def test_a_download_to_a_full_disk_is_refused_and_can_be_repeated(
    file_server: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    file_server.content = b"PK" + os.urandom(100_000)
    fill(small_disk, leave=40_960)
    target = small_disk / "data.zip"
    address = f"{file_server.address}/whole/data.zip"
    with pytest.raises(DataError, match=r"No space left on device.*Free disk space"):
        fetch_file([address], target)
    assert not target.exists()
    (small_disk / "ballast").unlink()
    fetch_file([address], target)
    assert target.read_bytes() == file_server.content


def test_a_limit_on_files_keeps_the_old_artifact(copied_run: Path) -> None:
    before = contents(copied_run / "data")
    done = subprocess.run(
        [sys.executable, "-m", "recgrit", "prepare", str(copied_run), *SMALL],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert contents(copied_run / "data") == before
    read_manifest(copied_run / "data")


@pytest.fixture
def denied() -> Iterator[Path]:
    """Return a folder that this process may read but not write, until the test ends."""
    folder = Path(tempfile.mkdtemp(prefix="recgrit-denied-"))
    folder.chmod(0o755)
    with write_artifact(folder / "data", Origin("prepare", 1, {"old": True})) as writer:
        (writer.path / "rows.txt").write_text("old")
    was_root = os.geteuid() == 0
    "".encode("idna")  # Opening a socket imports this module, which user nobody may not read.
    folder.chmod(0o555)
    if was_root:
        os.seteuid(NOBODY)
    yield folder
    if was_root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_permission_keeps_the_old_artifact(denied: Path) -> None:
    before = contents(denied)
    with (
        pytest.raises(ArtifactError, match=r"Cannot write to .*: Permission denied.*run\.dir=PATH"),
        write_artifact(
            denied / "data", Origin("prepare", 1, {"old": False}), elsewhere="run.dir=PATH"
        ),
    ):
        pytest.fail("nothing may begin")
    assert contents(denied) == before
    assert read_manifest(denied / "data").config == {"old": True}


def test_a_download_folder_without_permission_is_refused(denied: Path, file_server: Any) -> None:
    file_server.content = b"PK data"
    address = f"{file_server.address}/whole/data.zip"
    with pytest.raises(DataError, match=r"Permission denied.*data\.download_dir"):
        fetch_file([address], denied / "data.zip")
    assert [path.name for path in denied.iterdir() if path.name[0] != "."] == ["data"]
