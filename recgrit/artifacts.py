"""What a stage leaves on disk: a folder of files and one ``manifest.json``, written atomically.

A stage writes into a temporary folder beside its destination, which takes the destination's place
only when everything is there: a killed stage leaves the previous artifact, or none.

Two fingerprints tell artifacts apart. The ``key`` is a hash of what a stage starts from (its
settings, its parents, its input files), so equal keys mean that nothing has to be done again. The
``fingerprint`` adds the content of the files written, and it is what a child records of its
parents: two fits with equal settings need not give equal bytes on every machine, and a checkpoint
belongs to one ID table only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import recgrit
from recgrit.config import Config
from recgrit.errors import ArtifactError, NewerSchemaError, RecgritError

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"

# What a full disk, a quota or a folder without permission answers to a write.
WRITE_FAILURES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


class Manifest(Config):
    """What an artifact folder holds, what it was built from, and how long that took."""

    schema_version: int
    recgrit_version: str
    stage: str
    version: int
    key: str
    fingerprint: str
    config: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, str]
    files: dict[str, str]
    summary: dict[str, Any]
    created: str
    seconds: float


@dataclass
class ArtifactWriter:
    """Where a stage puts its files while it runs, what it starts from, and what it says of them.

    Args:
        path: The temporary folder.
        key: Of what the stage starts from.
        summary: What the stage reports.
        manifest: Of the artifact, once it is in its place.
    """

    path: Path
    key: str
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None


def digest_json(value: Any) -> str:
    """Hash of a JSON-able value, the same for equal values whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Origin:
    """What a stage starts from.

    Args:
        stage: The stage's name.
        version: Of the stage: another one gives other results from the same start.
        config: The settings its result depends on; no paths.
        parents: Fingerprint of each parent artifact, by stage name.
        inputs: SHA-256 of each raw input file, by path, in the order they are read.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of it all; files count by their content, wherever they lie."""
        return digest_json(
            {
                "schema": SCHEMA_VERSION,
                "stage": self.stage,
                "version": self.version,
                "config": dict(self.config),
                "parents": dict(self.parents),
                "inputs": list(self.inputs.values()),
            }
        )


@contextlib.contextmanager
def write_artifact(
    directory: Path, origin: Origin, *, elsewhere: str = "run.dir=PATH"
) -> Iterator[ArtifactWriter]:
    """Collect a stage's files in a temporary folder and put it in place when the block ends well.

    Args:
        directory: Where the artifact will be.
        origin: What the stage starts from.
        elsewhere: How a user names another folder.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    started = time.perf_counter()
    temporary = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        temporary.mkdir()
    except OSError as error:
        raise ArtifactError(
            f"Cannot write to {directory.parent}: {error.strerror}. "
            f"Choose another folder with {elsewhere}."
        ) from None
    key = origin.key
    try:
        writer = ArtifactWriter(temporary, key)
        yield writer
        files = {
            path.relative_to(temporary).as_posix(): digest_file(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            recgrit_version=recgrit.__version__,
            stage=origin.stage,
            version=origin.version,
            key=key,
            fingerprint=digest_json([key, files]),
            config=dict(origin.config),
            parents=dict(origin.parents),
            inputs=dict(origin.inputs),
            files=files,
            summary=json.loads(json.dumps(writer.summary, default=_as_plain)),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - started, 3),
        )
        (temporary / MANIFEST_NAME).write_text(
            manifest.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        _share_alike(temporary, list(files))
        _replace(temporary, directory)
        writer.manifest = manifest
    except RecgritError:
        raise
    except Exception as error:
        reason = explain_write_failure(error)
        if reason is None:
            raise
        raise ArtifactError(
            f"Cannot write {directory}: {reason}. Make room, or choose another folder with "
            f"{elsewhere}; what was finished before is kept."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def explain_write_failure(error: Exception) -> str | None:
    """Why the system refused a write, in its words; None if the error is another.

    The writers of Parquet and safetensors do not raise `OSError` but put its number into their
    message, and NumPy raises one without a number.
    """
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(named[1]) if named else None)
    if number in WRITE_FAILURES:
        return os.strerror(number)
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        return "the disk took a part of a file only, it may be full"
    return None


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when the block ends well."""
    # Of this machine too: several may write one shard, where one of them is thought dead.
    temporary = path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact folder.

    Raises:
        ArtifactError: There is none, it is damaged, a newer recgrit wrote it, or files it lists
            are gone.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"No artifact at {directory}: {MANIFEST_NAME} is missing. "
            "Build it with 'recgrit run CONFIG', or name the right run folder."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"{path} is damaged: expected JSON with a schema_version. "
            f"Delete {directory} and run again."
        ) from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{directory} was written with schema version {version}, this recgrit "
            f"({recgrit.__version__}) reads up to {SCHEMA_VERSION}. Upgrade recgrit, or choose "
            "another run.dir."
        )
    if version < SCHEMA_VERSION:
        raise ArtifactError(
            f"{directory} was written by an older recgrit, with schema version {version}; this one "
            f"({recgrit.__version__}) reads {SCHEMA_VERSION}. Make it again, with 'recgrit run "
            f"{directory.parent}' where it is part of a run."
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged ({error.error_count()} fields cannot be read). "
            f"Delete {directory} and run again."
        ) from None
    missing = [name for name in manifest.files if not (directory / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{directory} lacks {', '.join(missing)}, which its manifest lists. "
            f"Delete the folder and run again."
        )
    return manifest


def is_current(directory: Path, key: str) -> bool:
    """Whether an intact artifact built from exactly this key is already there.

    Raises:
        NewerSchemaError: A newer recgrit wrote the folder, so it must not be overwritten.
    """
    if not (directory / MANIFEST_NAME).is_file():
        return False
    try:
        return read_manifest(directory).key == key
    except NewerSchemaError:
        raise
    except ArtifactError:  # Damaged: to be built again.
        return False


def check_parent(child: Path, manifest: Manifest, parent: Path, parent_manifest: Manifest) -> None:
    """Refuse a child that was built from another parent than the one at hand.

    Raises:
        ArtifactError: The fingerprints differ; names both and the command that rebuilds.
    """
    expected = manifest.parents.get(parent_manifest.stage)
    if expected != parent_manifest.fingerprint:
        # A child may lie one folder deeper than its parent: the run is what both lie in.
        run = os.path.commonpath([child, parent])
        raise ArtifactError(
            f"{child} ({manifest.stage}) was built from {parent_manifest.stage} artifact "
            f"{expected}, but {parent} is {parent_manifest.fingerprint}. Rebuild it with "
            f"'recgrit run {run}', or bring back the artifact it was built from."
        )


def _share_alike(directory: Path, files: list[str]) -> None:
    """Let whoever may read the manifest read all: safetensors writes for the owner alone."""
    mode = (directory / MANIFEST_NAME).stat().st_mode
    for name in files:
        (directory / name).chmod(mode)


def _as_plain(value: Any) -> Any:
    """Scalars and arrays of numpy and torch as Python's own; a stage must not fail at its end."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _remove_leftovers(directory: Path) -> None:
    """Temporary folders of killed runs; a live process with that number keeps its own."""
    for leftover in directory.parent.glob(f".{directory.name}.partial-*"):
        process = leftover.name.rsplit("-", 1)[-1]
        if process.isdigit() and int(process) != os.getpid() and _is_alive(int(process)):
            continue
        shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(source: Path, destination: Path) -> None:
    """Swap folders: a rename cannot overwrite a folder that has files in it."""
    retired = destination.with_name(f".{destination.name}.partial-{os.getpid()}-old")
    if destination.exists():
        destination.rename(retired)
    try:
        source.rename(destination)
    except OSError:
        if retired.exists():
            retired.rename(destination)
        raise
    shutil.rmtree(retired, ignore_errors=True)
