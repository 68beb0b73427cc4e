"""Manifests: what is in an artifact's folder, what it was built from, and digests of both.

A manifest has two hashes. The ``key`` is a hash of what a stage starts from: its settings, its
parents and its input files. A stage with an equal key does not have to run again. The
``fingerprint`` also covers the content of the written files, and each artifact records the
fingerprints of its parents. The fingerprint is needed because two fits with equal settings may give
different bytes on different machines, and a checkpoint belongs to exactly one ID table.

A manifest ends with a digest of itself. The digest protects against damage and edits by hand. It
does not protect against someone who computes a new digest, so the content of a manifest is checked
wherever it is used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

import recgrit
from recgrit.bounds import MANIFEST_BYTES
from recgrit.checksums import FileRecord, digest_json
from recgrit.config import Config
from recgrit.disk import MANIFEST_NAME, wait_for
from recgrit.errors import ArtifactError, NewerSchemaError

SCHEMA_VERSION = 3
# Files that file managers create in any folder that a user opens.
OF_FILE_MANAGERS = {".DS_Store", ".directory", "Thumbs.db", "desktop.ini"}


class Manifest(Config):
    """What an artifact folder holds, what it was built from, and how long the stage took.

    Args:
        schema_version: Version of this list of fields.
        recgrit_version: Version of the recgrit that wrote the artifact.
        stage: Name of the stage.
        version: Version of the stage's code. A new version makes the stage run again.
        key: Hash of what the stage started from.
        fingerprint: Hash of the key and of the files' content.
        config: Settings that the result depends on.
        parents: Fingerprint of each parent artifact, by stage name.
        inputs: SHA-256 of each raw input file, by path.
        files: Size and digest of every file of the folder except the manifest, by path in the
            folder.
        summary: Numbers and texts that the stage reported about its result.
        created: Time at which the artifact was written, in UTC.
        seconds: Duration of the stage in seconds.
        digest: Hash of all fields above.
    """

    schema_version: int
    recgrit_version: str
    stage: str
    version: int
    key: str
    fingerprint: str
    config: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, str]
    files: dict[str, FileRecord]
    summary: dict[str, Any]
    created: str
    seconds: float
    digest: str = ""

    @property
    def origin(self) -> Origin:
        """Return the stage, its version, settings, parents and input files as an `Origin`."""
        return Origin(self.stage, self.version, self.config, self.parents, self.inputs)

    def signed(self) -> Manifest:
        """Return a copy with the digest of all other fields filled in."""
        fields = self.model_dump(mode="json", exclude={"digest"})
        return self.model_copy(update={"digest": digest_json(fields)})


@dataclass(frozen=True)
class Origin:
    """What a stage starts from; its hash decides whether the stage has to run again.

    Args:
        stage: Name of the stage.
        version: Version of the stage's code, raised when the code gives other results.
        config: Settings that the result depends on, without paths.
        parents: Fingerprint of each parent artifact, by stage name.
        inputs: SHA-256 of each raw input file, by path, in reading order.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    parents: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return the hash of all fields; input files count by content and order, not by path."""
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


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of an artifact folder after checking that the listed files exist.

    The content of the files is not compared. `recgrit.artifacts.open_artifact` compares it.

    Raises:
        ArtifactError: The manifest is missing or was changed, a recgrit with another schema version
            wrote it, or the folder lacks a listed file or holds an unlisted one.
    """
    wait_for(directory)
    path = directory / MANIFEST_NAME
    try:
        # Reading a pipe could wait forever, so only regular files are read.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileNotFoundError
        if (size := path.stat().st_size) > MANIFEST_BYTES.allowed():
            raise ArtifactError(f"{path} has {MANIFEST_BYTES.explain(size)}.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(
            f"No artifact at {directory}: {MANIFEST_NAME} is missing. "
            "Build it with 'recgrit run CONFIG', or name the right run folder."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}."
        ) from None
    manifest = _parse_manifest(text, directory)
    names = set(manifest.files)
    outside = [name for name in names if not _lies_inside(name)]
    if outside:
        raise ArtifactError(
            f"{path} lists {', '.join(map(repr, sorted(outside)[:3]))}, which is outside its "
            "folder. Do not use it."
        )
    # If the folder is being replaced just now, callers notice that the manifest changed and retry.
    try:
        missing = sorted(name for name in names if not (directory / name).is_file())
    except OSError as error:
        raise ArtifactError(f"Cannot read {error.filename}: {error.strerror}.") from None
    if missing:
        raise ArtifactError(
            f"{directory} lacks {', '.join(missing)}, which its manifest lists. "
            f"Delete the folder and run again."
        )
    added = sorted(find_files(directory) - names)
    if added:
        raise ArtifactError(
            f"{directory} holds {', '.join(added[:3])}, which its manifest does not list. Move "
            "that elsewhere."
        )
    return manifest


def _parse_manifest(text: str, directory: Path) -> Manifest:
    """Parse the text of a manifest, and check its version, fields and digests.

    Raises:
        ArtifactError: The text is no manifest of this version, or was changed after it was written.
    """
    path = directory / MANIFEST_NAME
    try:
        values = json.loads(text)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(
            f"{path} is damaged: expected JSON with a schema_version. "
            f"Delete {directory} and run again."
        ) from None
    if type(version) is int and version < 1:
        raise ArtifactError(
            f"{path} is damaged: there is no schema version {version}. Delete {directory} and run "
            "again."
        )
    if type(version) is not int or version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{directory} was written with schema version {version}, this recgrit "
            f"({recgrit.__version__}) reads up to {SCHEMA_VERSION}. Upgrade recgrit, or choose "
            "another run.dir."
        )
    if version < SCHEMA_VERSION:
        raise ArtifactError(
            f"{directory} was written by an older recgrit, with schema version {version}; this "
            f"one ({recgrit.__version__}) reads {SCHEMA_VERSION}. Make it again, with 'recgrit "
            f"run {directory.parent}' if it is part of a run."
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(
            f"{path} is damaged ({error.error_count()} fields cannot be read). "
            f"Delete {directory} and run again."
        ) from None
    if (
        manifest.signed() != manifest
        or manifest.origin.key != manifest.key
        or fingerprint_of(manifest.key, manifest.files) != manifest.fingerprint
    ):
        raise ArtifactError(
            f"{path} changed since it was written (its digest differs). Restore the file, or "
            f"delete {directory} and run again."
        )
    return manifest


def fingerprint_of(key: str, files: Mapping[str, FileRecord]) -> str:
    """Return the hash of a key and of the content of the files."""
    return digest_json([key, {name: record.sha256 for name, record in files.items()}])


def _lies_inside(name: str) -> bool:
    """Return whether a path in a manifest stays inside the artifact's folder."""
    path = PurePosixPath(name)
    parts = name.split("/")
    return not (
        path.is_absolute()
        or "\\" in name
        or "\0" in name
        or any(part in ("", ".", "..") or part.endswith(":") for part in parts)
        or name == MANIFEST_NAME
    )


def find_files(directory: Path, *, hidden: bool = False) -> set[str]:
    """Return the paths of the files in an artifact's folder, without its manifest.

    Args:
        directory: Folder of the artifact.
        hidden: Also return hidden files, except the hidden files that file managers create.
    """
    found = set()
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if hidden or not name.startswith(".")]
        found |= {
            (Path(folder) / name).relative_to(directory).as_posix()
            for name in names
            if name not in OF_FILE_MANAGERS and (hidden or not name.startswith("."))
        }
    return found - {MANIFEST_NAME}
