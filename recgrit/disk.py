"""Atomic writing of files and folders: readers see the old content or the new, never a part.

Files and folders are written beside their destination, flushed to the disk, and put in place in one
step. A file is renamed. A folder is exchanged with the existing one where the system supports that.
Elsewhere the exchange takes two renames, and a folder that a kill left between them is restored. A
lock keeps two processes from writing one folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import logging
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recgrit.errors import ArtifactError

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"

# Error numbers of writes that fail because of a full disk, a quota or missing permissions.
WRITE_FAILURES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}
# Number of bytes at the start of a manifest that contain its fingerprint.
MANIFEST_START = 4096
# Error numbers of systems and file systems that cannot exchange two folders.
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

# Seconds that a reader waits for a folder that is being replaced.
REPLACING_SECONDS = 5.0


def explain_write_failure(error: Exception) -> str | None:
    """Return the system's reason for refusing a write, or None if the error has another cause.

    The writers of Parquet and safetensors put the error number into their message and do not raise
    `OSError`. NumPy raises an `OSError` without a number.
    """
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(named[1]) if named else None)
    if number in WRITE_FAILURES:
        return os.strerror(number)
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        return "only part of a file was written; the disk may be full"
    return None


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def resolve_links(path: Path) -> Path:
    """Return the absolute path with all symbolic links resolved.

    Raises:
        ArtifactError: The links lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:  # Raised by Python before 3.13. Later versions keep the last link.
        raise ArtifactError(
            f"{path} is a link that leads back to itself: delete it, or name another place."
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` when the block succeeds.

    Raises:
        ArtifactError: ``path`` is a device, a pipe or a folder, which no file may replace, or
            ``path`` lies inside an artifact.
    """
    path = resolve_links(path)  # The file that a link names is replaced, and the link is kept.
    refuse_inside_artifact(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise ArtifactError(f"Cannot write {path}: it is {what}. Name a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The host name is part of the file name, because several machines may write the same shard if
    # one of them is wrongly considered dead.
    start = f".{path.name}.partial-{socket.gethostname()}-"
    temporary = path.with_name(f"{start}{os.getpid()}")
    for other in path.parent.glob(f"{glob.escape(start)}*"):
        if not _is_running(other.name.removeprefix(start)):
            with contextlib.suppress(OSError):  # Something of others, such as a folder, stays.
                other.unlink()  # The temporary file of a killed process.
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    """Return whether a process with this id may be running on this machine."""
    if os.name != "posix" or not process.isdecimal():  # On Windows, os.kill would end the process.
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # For example, the process belongs to another user.
        pass
    return True


@contextlib.contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are put into ``folder`` together if the block succeeds.

    ``folder`` is replaced by a folder with the new files and all other files that it holds. A
    reader therefore never sees some of the new files beside some of the old ones.

    Raises:
        ArtifactError: ``folder`` is a file, holds folders, is the working folder or above it, lies
            inside an artifact, or is being written by another process.
    """
    folder = resolve_links(folder)
    refuse_inside_artifact(folder / "any")
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder: name a folder.")
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ArtifactError(
            f"{folder} is the working folder or above it, but these files need a folder of their "
            f"own: name another, such as {folder / 'export'}."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder):
        bring_back(folder)
        kept = sorted(folder.iterdir()) if folder.is_dir() else []
        if inner := [path.name for path in kept if path.is_symlink() or not path.is_file()]:
            raise ArtifactError(
                f"{folder} holds {', '.join(inner[:3])}, but these files need a folder without "
                "subfolders and links. Name another one."
            )
        temporary = partial_of(folder)
        shutil.rmtree(temporary, ignore_errors=True)  # What a killed process left.
        temporary.mkdir()
        try:
            yield temporary
            for path in kept:
                if not (temporary / path.name).exists():
                    _link(path, temporary / path.name)
            if folder.is_dir():
                shutil.copystat(folder, temporary)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def making_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the new folder ``folder`` if the block succeeds.

    Raises:
        ArtifactError: ``folder`` exists already, lies inside an artifact, or is being written by
            another process.
    """
    folder = resolve_links(folder)
    refuse_inside_artifact(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder):
        if folder.exists():
            raise ArtifactError(f"{folder} already exists: name a folder that does not exist yet.")
        temporary = partial_of(folder)
        shutil.rmtree(temporary, ignore_errors=True)  # What a killed process left.
        temporary.mkdir()
        try:
            yield temporary
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _link(source: Path, destination: Path) -> None:
    """Create a hard link to a file, or a copy if the file system has no hard links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def refuse_inside_artifact(path: Path) -> None:
    """Refuse a path inside an artifact, because an artifact may hold only the files that it lists.

    Raises:
        ArtifactError: The path lies inside an artifact.
    """
    for folder in path.parents:
        manifest = folder / MANIFEST_NAME
        if manifest.is_file() and b'"fingerprint"' in manifest.read_bytes()[:MANIFEST_START]:
            raise ArtifactError(
                f"{path} is inside {folder}, an artifact that recgrit wrote and that may hold no "
                "other files. Name another place."
            )


def replace_folder(source: Path, destination: Path) -> None:
    """Put the folder ``source`` in the place of ``destination``, and delete the former destination.

    ``destination`` does not have to exist. A process that has a file of the former folder open can
    still read this file to its end.
    """
    for path in (*source.rglob("*"), source):
        _flush(path)
    if not destination.exists():
        source.rename(destination)
    elif _exchange(source, destination):
        shutil.rmtree(source, ignore_errors=True)
    else:
        retired = _retired(destination)
        shutil.rmtree(retired, ignore_errors=True)
        destination.rename(retired)
        try:
            source.rename(destination)
        except OSError:
            retired.rename(destination)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    _flush(destination.parent)


def bring_back(directory: Path) -> None:
    """Restore a folder whose writer was killed while it replaced the folder.

    While a folder is replaced, it has a temporary name for a moment. If the kill came in this
    moment, the folder gets its name back. If the new folder was already in place, the former folder
    is deleted. The caller has to hold the folder's lock.
    """
    retired = _retired(directory)
    if not retired.is_dir():
        return
    if directory.exists():
        shutil.rmtree(retired, ignore_errors=True)
    else:
        logger.warning(
            "%s was being replaced when its writer was killed: the former version is restored",
            directory,
        )
        retired.rename(directory)


def clear_up(directory: Path) -> None:
    """Delete what a killed writer left beside a folder, unless another process writes it."""
    left = [f".{directory.name}.{kind}" for kind in ("lock", "holder", "partial", "retired")]
    if not any((directory.parent / name).exists() for name in left):
        return
    # Releasing the lock deletes its files. In a read-only folder they stay, and no process holds
    # that lock.
    with contextlib.suppress(ArtifactError, OSError), hold_lock(directory):
        bring_back(directory)
        shutil.rmtree(partial_of(directory), ignore_errors=True)


def wait_for(directory: Path) -> None:
    """Wait for a folder that is being replaced, and restore it if its writer was killed."""
    until = time.monotonic() + REPLACING_SECONDS
    while not directory.exists() and _retired(directory).is_dir() and time.monotonic() < until:
        # If the writer holds the lock, or the place is read-only, wait. The caller then reports
        # that the folder is missing.
        with contextlib.suppress(ArtifactError, OSError), hold_lock(directory):
            bring_back(directory)
        time.sleep(0.01)


@contextlib.contextmanager
def hold_lock(directory: Path, *, inside: bool = False) -> Iterator[None]:
    """Keep other processes from writing a folder while the block runs.

    Args:
        directory: Folder to lock. It does not have to exist.
        inside: Create the folder and put the lock's files into it. If false, the lock's files are
            beside the folder.

    Raises:
        ArtifactError: Another process holds the lock, or the lock's file belongs to another user.
            The message names the process or the file.
        OSError: The lock's files cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = directory if inside else directory.parent
    name = "." if inside else f".{directory.name}."
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file, note = folder / f"{name}lock", folder / f"{name}holder"
    lock = FileLock(file, timeout=0)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise ArtifactError(
                f"{directory} is being written by {_read_holder(note)}. Wait until that has ended, "
                "or stop it."
            ) from None
        except PermissionError:
            if not file.exists():
                raise
            raise ArtifactError(
                f"{directory} has a lock file that this user may not open: {file}, owned by user "
                f"id {file.stat().st_uid}. If no process of that user writes {directory}, delete "
                "that file."
            ) from None
        try:
            _write_holder(note)
            yield
        finally:
            # The files are deleted while the lock is held. Deleted after the release, they could
            # already be the lock of another process, while a third one locks a new file. Windows
            # does not delete open files.
            for path in (note, file):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            lock.release()
    finally:
        for path in made:  # Folders with files in them stay.
            with contextlib.suppress(OSError):
                path.rmdir()


def _write_holder(note: Path) -> None:
    """Write which process holds a lock into a new file, never through a link that others made."""
    content = json.dumps(_describe_holder())
    with contextlib.suppress(OSError):  # On a full disk, the write after this one raises the error.
        note.unlink(missing_ok=True)
        with note.open("x", encoding="utf-8") as stream:
            stream.write(content)


def _describe_holder() -> dict[str, str]:
    return {
        "process": str(os.getpid()),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    }


def _read_holder(note: Path) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return (
            f"process {found['process']} on {found['host']} since {found['since']} "
            f"({found['command']})"
        )
    # The file is not written yet, or was just deleted.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def partial_of(directory: Path) -> Path:
    """Return the path of the temporary folder in which a folder is written."""
    return directory.with_name(f".{directory.name}.partial")


def _retired(directory: Path) -> Path:
    """Return the path that a replaced folder has for the moment between two renames."""
    return directory.with_name(f".{directory.name}.retired")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step, or return false if that is impossible."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    paths = os.fsencode(first), os.fsencode(second)
    if hasattr(libc, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = libc.renameat2(here, paths[0], here, paths[1], exchange)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*paths, 2)  # RENAME_SWAP of macOS
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _flush(path: Path) -> None:
    """Write a file or a folder from the system's cache to the disk."""
    if os.name != "posix" and path.is_dir():  # Windows cannot open folders.
        return
    if stat.S_ISLNK(path.lstat().st_mode):
        return
    # Windows flushes only files that are open for writing.
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:  # Some file systems cannot flush a folder.
            raise
    finally:
        os.close(number)
