"""Readers and killed writers leave a replaced file or folder in the old or the new state."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from recgrit import disk
from recgrit.disk import (
    bring_back,
    hold_lock,
    making_folder,
    replace_folder,
    replacing,
    replacing_files,
    wait_for,
    write_atomic,
)
from recgrit.errors import ArtifactError


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "codes.txt").write_text(content)
    return path


def content_of(path: Path) -> str:
    return (path / "codes.txt").read_text()


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(params=["exchanged", "renamed"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Exchange folders by one system call, and again as on systems that do not have it."""
    if request.param == "renamed":
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)
    return str(request.param)


def test_write_atomic_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "state.json"
    write_atomic(path, "one é")
    write_atomic(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "three")
    assert path.read_text(encoding="utf-8") == "two é"
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_path_that_is_not_a_regular_file_is_not_replaced(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out").stat()
    with pytest.raises(ArtifactError, match=r"Cannot write .*out: it is .*Name a file"):
        write_atomic(tmp_path / "out", "text")
    assert (tmp_path / "out").stat().st_ino == before.st_ino
    with pytest.raises(ArtifactError, match="not a regular file"), replacing(Path("/dev/null")):
        pytest.fail("nothing may begin")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there the link itself is replaced")
@pytest.mark.parametrize("write", [replacing, replacing_files, making_folder])
def test_a_link_that_leads_back_to_itself_is_refused(write: Any, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match="leads back to itself"), write(tmp_path / "loop"):
        pytest.fail("nothing can be written there")


def test_partial_files_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "[a].txt").touch()
    code = (
        "import os, signal; from pathlib import Path; from recgrit.disk import replacing\n"
        f"with replacing(Path({str(tmp_path / '[a].txt')!r})) as temporary:\n"
        "    temporary.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    start = f".[a].txt.partial-{socket.gethostname()}-"
    assert [name.startswith(start) for name in names(tmp_path)] == [True, False]
    living = tmp_path / f"{start}{os.getppid()}"
    living.touch()
    write_atomic(tmp_path / "[a].txt", "new")
    assert names(tmp_path) == [living.name, "[a].txt"]


@pytest.mark.parametrize("note", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_note_names_no_holder(tmp_path: Path, note: str) -> None:
    with hold_lock(tmp_path / "kept"):
        (tmp_path / ".kept.holder").write_text(note)
        with (
            pytest.raises(ArtifactError, match="being written by another process"),
            hold_lock(tmp_path / "kept"),
        ):
            pytest.fail("two at once")


def test_a_new_folder_is_there_when_it_is_whole(tmp_path: Path) -> None:
    place, killed = tmp_path / "new", tmp_path / ".new.partial"
    killed.mkdir()
    (killed / "half").touch()
    with making_folder(place) as temporary:
        (temporary / "a").touch()
        assert not place.exists()
    assert [path.name for path in place.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(ArtifactError, match="already exists"), making_folder(place):
        pytest.fail("it would be replaced")


def test_no_folder_is_left_in_an_artifact_that_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"fingerprint": "1"}')
    with pytest.raises(ArtifactError, match="an artifact that recgrit wrote"):
        write_atomic(tmp_path / "inner" / "file", "")
    assert not (tmp_path / "inner").exists()


def test_the_file_that_a_link_names_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "2026.txt").write_text("old")
    (tmp_path / "latest.txt").symlink_to("2026.txt")
    write_atomic(tmp_path / "latest.txt", "new")
    assert (tmp_path / "latest.txt").is_symlink()
    assert (tmp_path / "2026.txt").read_text() == "new"


def test_a_folder_takes_the_place_of_another(tmp_path: Path, swap: str) -> None:
    replace_folder(folder(tmp_path / "new", "1"), tmp_path / "kept")
    replace_folder(folder(tmp_path / "new", "2"), tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "2"
    assert names(tmp_path) == ["kept"]


def test_an_open_file_stays_readable_after_its_folder_is_replaced(
    tmp_path: Path, swap: str
) -> None:
    folder(tmp_path / "kept", "old")
    with (tmp_path / "kept" / "codes.txt").open() as opened:
        replace_folder(folder(tmp_path / "new", "new"), tmp_path / "kept")
        assert opened.read() == "old"


def test_a_swap_that_fails_keeps_the_old_folder(
    tmp_path: Path, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "kept", "old")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError("a file in it is open")
        return rename(self, target)

    def refuse(*_: object) -> bool:
        raise PermissionError("a file in it is open")

    monkeypatch.setattr(Path, "rename", refuse_new)
    if swap == "exchanged":
        monkeypatch.setattr(disk, "_exchange", refuse)
    with pytest.raises(PermissionError, match="is open"):
        replace_folder(folder(tmp_path / "new", "new"), tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "old"


def test_this_system_has_a_call_that_exchanges_folders() -> None:
    """Linux and macOS have a call that exchanges names. Other systems rename twice."""
    assert hasattr(disk.ctypes.CDLL(None), "renameat2" if sys.platform == "linux" else "renamex_np")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_folders_are_replaced_on_a_file_system_that_cannot_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Libc:
        def renameat2(self, *_: object) -> int:
            disk.ctypes.set_errno(number)
            return -1

    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *_, **__: Libc())
    folder(tmp_path / "kept", "old")
    replace_folder(folder(tmp_path / "new", "new"), tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "new"
    assert names(tmp_path) == ["kept"]


def test_a_folder_lost_between_two_renames_is_restored(tmp_path: Path) -> None:
    folder(tmp_path / ".kept.retired", "old")
    bring_back(tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "old"
    folder(tmp_path / ".kept.retired", "older")
    bring_back(tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "old", "what is there stays"
    assert names(tmp_path) == ["kept"], "what was not deleted before the kill is gone"


def test_a_reader_restores_the_folder_that_a_killed_writer_moved(tmp_path: Path) -> None:
    folder(tmp_path / ".kept.retired", "old")
    wait_for(tmp_path / "kept")
    assert content_of(tmp_path / "kept") == "old"
    assert names(tmp_path) == ["kept"]


def test_a_reader_waits_while_a_writer_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "REPLACING_SECONDS", 0.2)
    folder(tmp_path / ".kept.retired", "old")
    with hold_lock(tmp_path / "kept"):
        started = time.monotonic()
        wait_for(tmp_path / "kept")
        assert time.monotonic() - started >= 0.2
        assert not (tmp_path / "kept").exists(), "the writer is about to put the new one there"


def _replace_for(directory: Path, seconds: float) -> None:
    """Replace a folder repeatedly for some seconds, as one of several processes."""
    until, number = time.monotonic() + seconds, 0
    new = directory.with_name(f"new-{os.getpid()}")
    while time.monotonic() < until:
        number += 1
        new.mkdir()
        for name in "ab":
            (new / name).write_text(f"{number}")
        try:
            with hold_lock(directory):
                replace_folder(new, directory)
        except ArtifactError:  # Another process holds the lock.
            shutil.rmtree(new)


def test_readers_never_miss_a_folder_that_two_writers_replace(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_replace_for, args=(directory, 1.5)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while not directory.exists():
        time.sleep(0.01)
    until = time.monotonic() + 1.0
    looks = 0
    while time.monotonic() < until:
        assert directory.is_dir()
        looks += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert looks > 100
    assert names(tmp_path) == ["kept"]
    assert len({(directory / name).read_text() for name in "ab"}) == 1


@pytest.mark.parametrize("inside", [False, True])
def test_a_second_writer_is_refused_with_the_process_of_the_first(
    tmp_path: Path, inside: bool
) -> None:
    directory = tmp_path / "runs" / "first"
    with hold_lock(directory, inside=inside):
        with (
            pytest.raises(ArtifactError, match=rf"is being written by process {os.getpid()} on "),
            hold_lock(directory, inside=inside),
        ):
            pytest.fail("two at once")
        code = (
            "import sys; from pathlib import Path; from recgrit.disk import hold_lock\n"
            f"with hold_lock(Path({str(directory)!r}), inside={inside}): pass\n"
        )
        other = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True
        )
        assert f"process {os.getpid()} on {socket.gethostname()} since 20" in other.stderr
    with hold_lock(directory, inside=inside):
        pass
    assert names(tmp_path) == [], "neither files of the lock nor folders made for it are left"


@pytest.mark.parametrize("inside", [False, True])
def test_a_full_disk_leaves_no_lock_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with (
        pytest.raises(OSError, match="No space left"),
        hold_lock(tmp_path / "runs" / "first", inside=inside),
    ):
        pytest.fail("there is no lock")
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path) -> None:
    directory = tmp_path / "first"
    code = (
        "import os, signal; from pathlib import Path; from recgrit.disk import hold_lock\n"
        f"with hold_lock(Path({str(directory)!r})): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert names(tmp_path) == [".first.holder", ".first.lock"]
    with hold_lock(directory):
        pass
    assert names(tmp_path) == []


def test_a_folder_named_like_a_partial_file_does_not_block_writing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    odd = tmp_path / f".a.txt.partial-{socket.gethostname()}-{process.pid}"
    odd.mkdir()
    write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert odd.is_dir()
