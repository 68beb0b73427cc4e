"""Artifacts: the folders in which stages store their results, written atomically and verified.

An artifact is a folder of files and one ``manifest.json``. A stage writes into a temporary folder
beside its destination. The temporary folder replaces the destination when all files are written
(`recgrit.disk`), so a killed stage leaves either the previous artifact or none. When an artifact is
opened, its files are compared with its manifest (`recgrit.manifests`), so damaged or edited files
are refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import recgrit
from recgrit.checksums import FileRecord
from recgrit.disk import (
    MANIFEST_NAME,
    bring_back,
    explain_write_failure,
    hold_lock,
    partial_of,
    refuse_inside_artifact,
    replace_folder,
    resolve_links,
    wait_for,
)
from recgrit.errors import ArtifactError, DataError, NewerSchemaError, RecgritError, ReplacedError
from recgrit.manifests import (
    SCHEMA_VERSION,
    Manifest,
    Origin,
    find_files,
    fingerprint_of,
    read_manifest,
)

logger = logging.getLogger(__name__)

# Number of attempts to open an artifact that other processes replace while it is read.
OPEN_ATTEMPTS = 20

T = TypeVar("T")


@dataclass
class ArtifactWriter:
    """The temporary folder of a running stage, and what the stage reports for its manifest.

    Args:
        path: The temporary folder.
        key: Hash of what the stage starts from, as in `Origin.key`.
        summary: Numbers and texts that the stage reports about its result. The stage fills this
            mapping, and the manifest stores it.
        manifest: Manifest of the finished artifact. None until the folder is in its place.
    """

    path: Path
    key: str
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None


@contextlib.contextmanager
def write_artifact(
    directory: Path, origin: Origin, *, elsewhere: str = "--out"
) -> Iterator[ArtifactWriter]:
    """Collect a stage's files in a temporary folder and put it in place when the block succeeds.

    A lock keeps other processes from writing the same artifact while the block runs.

    Args:
        directory: Folder that will hold the artifact.
        origin: What the stage starts from.
        elsewhere: Option by which a user names another folder. Error messages show it.

    Raises:
        ArtifactError: The folder cannot be written, holds files that recgrit did not write, lies
            inside an artifact, or is being written by another process.
    """
    started = time.perf_counter()
    directory = resolve_links(directory)
    if not directory.name:
        raise ArtifactError(f"{directory} is not a writable folder: name one with {elsewhere}.")
    refuse_inside_artifact(directory)
    temporary = partial_of(directory)
    key = origin.key
    with contextlib.ExitStack() as stack:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(directory))
            bring_back(directory)
            # The temporary folder of a killed process: a running one would hold the lock.
            shutil.rmtree(temporary, ignore_errors=True)
            require_replaceable(directory, origin.stage, elsewhere)
            temporary.mkdir()
        except OSError as error:
            raise ArtifactError(
                f"Cannot write to {directory.parent}: {error.strerror}. "
                f"Choose another folder with {elsewhere}."
            ) from None
        try:
            writer = ArtifactWriter(temporary, key)
            yield writer
            files = {
                path.relative_to(temporary).as_posix(): FileRecord.of(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                recgrit_version=recgrit.__version__,
                stage=origin.stage,
                version=origin.version,
                key=key,
                fingerprint=fingerprint_of(key, files),
                config=dict(origin.config),
                parents=dict(origin.parents),
                inputs=dict(origin.inputs),
                files=files,
                summary=json.loads(json.dumps(writer.summary, default=_as_plain)),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.perf_counter() - started, 3),
            ).signed()
            (temporary / MANIFEST_NAME).write_text(
                manifest.model_dump_json(indent=2) + "\n", encoding="utf-8"
            )
            _share_alike(temporary, list(files))
            replace_folder(temporary, directory)
            writer.manifest = manifest
        except RecgritError:
            raise
        except Exception as error:
            reason = explain_write_failure(error)
            if reason is None:
                raise
            raise ArtifactError(
                f"Cannot write {directory}: {reason}. Free disk space, or choose another folder "
                f"with {elsewhere}; what was finished before is kept."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_replaceable(directory: Path, stage: str | None, elsewhere: str) -> None:
    """Refuse to replace a folder that is no artifact of this stage, or that holds other files.

    Args:
        directory: Folder to be replaced. A missing or empty folder may be replaced.
        stage: Name of the stage that the folder must belong to. None accepts any stage.
        elsewhere: Option by which a user names another folder. Error messages show it.

    Raises:
        ArtifactError: The folder must not be replaced. The message names what it holds.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        values = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        found, listed = values["stage"], {*values["files"], MANIFEST_NAME}
    except PermissionError as error:
        raise ArtifactError(f"Cannot read {error.filename}: {error.strerror}.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found, listed = None, set[str]()
    if found is None or (stage is not None and found != stage):
        raise ArtifactError(
            f"{directory} already exists and is not recgrit's {stage or 'artifact'}: delete it, "
            f"or choose another folder with {elsewhere}."
        )
    others = sorted(find_files(directory, hidden=True) - listed)
    if others:
        raise ArtifactError(
            f"{directory} would be replaced, but it holds {', '.join(others[:3])}, which recgrit "
            f"did not write. Move that elsewhere, or choose another folder with {elsewhere}."
        )


def open_artifact(directory: Path, *, whole: bool = False) -> Manifest:
    """Return the manifest of an artifact after checking that its files are unchanged.

    Args:
        directory: Folder of the artifact.
        whole: Compare all bytes of large files. If false, only the size and a sample of blocks of a
            large file are compared.

    Raises:
        ArtifactError: A file changed since it was written, or `read_manifest` refuses the folder.
        ReplacedError: The artifact was replaced during every attempt.
    """
    for _ in range(OPEN_ATTEMPTS):
        before = _peek(directory)
        try:
            manifest = read_manifest(directory)
            changed = _find_changed(directory, manifest, whole=whole)
        except ArtifactError:
            if _peek(directory) == before:
                raise
            continue
        if not changed:
            return manifest
        if _peek(directory) == before:
            raise ArtifactError(
                f"{directory} is damaged: {', '.join(changed)} changed since it was written "
                "(checksums differ). Delete the folder and run again, or restore the former "
                "files."
            )
    raise _never_at_rest(directory)


def load_artifact(
    directory: Path, load: Callable[[Path], T], *, expected: Manifest | None = None
) -> T:
    """Return what ``load`` reads from an artifact, with all files belonging to one manifest.

    If the artifact is replaced while it is read, it is read again.

    Args:
        directory: Folder of the artifact.
        load: Function that reads what it needs from the folder.
        expected: Manifest that the artifact must have. None accepts any manifest.

    Raises:
        ReplacedError: The artifact has another manifest than ``expected``, or was replaced during
            every attempt.
        ArtifactError: `open_artifact` refuses the artifact, or its files cannot be read.
    """
    for _ in range(OPEN_ATTEMPTS):
        before = _peek(directory)
        manifest = open_artifact(directory)
        if expected is not None and manifest.digest != expected.digest:
            raise ReplacedError(f"{directory} was replaced since it was opened: open it again.")
        try:
            loaded = load(directory)
        # Every file format raises its own exceptions, and those of safetensors derive from
        # Exception. A panic of a Rust reader derives from BaseException.
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            if _peek(directory) != before:
                continue
            if isinstance(error, RecgritError) and not isinstance(error, DataError):
                raise
            raise ArtifactError(
                f"{directory} cannot be read because its files do not fit together: {error}. Build "
                "or export it again, or use another one."
            ) from error
        if _peek(directory) == before:
            return loaded
    raise _never_at_rest(directory)


def _is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic of a reader in Rust, as a truncated file causes."""
    return type(error).__name__ == "PanicException"


def retry_replaced(load: Callable[[], T]) -> T:
    """Return what ``load`` returns, calling it again if an artifact was replaced while it was read.

    Raises:
        ReplacedError: An artifact was replaced during every attempt.
    """
    for _ in range(OPEN_ATTEMPTS - 1):
        with contextlib.suppress(ReplacedError):
            return load()
    return load()


def is_current(directory: Path, key: str) -> bool:
    """Return whether the folder holds an intact artifact that was built from exactly this key.

    Raises:
        NewerSchemaError: A newer recgrit wrote the folder, so it must not be overwritten.
    """
    wait_for(directory)
    if not directory.is_dir():
        return False
    try:
        return read_manifest(directory).key == key and open_artifact(directory).key == key
    except NewerSchemaError:
        raise
    except ArtifactError as error:  # The caller builds a damaged artifact again.
        logger.warning("%s", error)
        return False


def check_parent(child: Path, manifest: Manifest, parent: Path, parent_manifest: Manifest) -> None:
    """Refuse an artifact that was built from another parent artifact than the given one.

    Args:
        child: Folder of the artifact.
        manifest: Manifest of the artifact.
        parent: Folder of the parent artifact.
        parent_manifest: Manifest of the parent artifact.

    Raises:
        ArtifactError: The fingerprints differ. The message names both and the command that
            rebuilds.
    """
    expected = manifest.parents.get(parent_manifest.stage)
    if expected != parent_manifest.fingerprint:
        # A child may lie one folder deeper than its parent: the run folder contains both.
        run = os.path.commonpath([child, parent])
        raise ArtifactError(
            f"{child} ({manifest.stage}) was built from the {parent_manifest.stage} artifact with "
            f"fingerprint {expected}, but {parent} has {parent_manifest.fingerprint}. Rebuild it "
            f"with 'recgrit run {run}', or restore the artifact that it was built from."
        )


def _share_alike(directory: Path, files: list[str]) -> None:
    """Give all files the permissions of the manifest, since safetensors are written owner-only."""
    mode = (directory / MANIFEST_NAME).stat().st_mode
    for name in files:
        (directory / name).chmod(mode)


def _as_plain(value: Any) -> Any:
    """Return numpy and torch values as Python's own, so that JSON can hold them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _find_changed(directory: Path, manifest: Manifest, *, whole: bool) -> list[str]:
    """Return the names of files that differ from their records in the manifest.

    Raises:
        ArtifactError: A file cannot be read.
    """
    try:
        return [
            name
            for name, record in manifest.files.items()
            if not record.fits(directory / name, whole=whole)
        ]
    except OSError as error:
        raise ArtifactError(f"Cannot read {error.filename}: {error.strerror}.") from None


def _peek(directory: Path) -> bytes | None:
    """Return the bytes of a folder's manifest, or None if there is no manifest.

    Different bytes show that the artifact was replaced.
    """
    try:
        return (directory / MANIFEST_NAME).read_bytes()
    except OSError:
        return None


def _never_at_rest(directory: Path) -> ReplacedError:
    return ReplacedError(
        f"{directory} was replaced {OPEN_ATTEMPTS} times while it was read. Open it again when "
        "no other process writes to it."
    )
