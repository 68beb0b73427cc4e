"""The manifest of an artifact: what is in its folder, what it was made from, and digests of it all.

Two fingerprints tell artifacts apart. The ``key`` is a hash of what a stage starts from (its
settings, its parents, its input files), so equal keys mean that nothing has to be done again. The
``fingerprint`` adds the content of the files written, and it is what a child records of its
parents: two fits with equal settings need not give equal bytes on every machine, and a checkpoint
belongs to one ID table only.

A manifest ends with a digest of itself. It protects against damage and against edits by hand, not
against somebody who makes a digest that fits: what it says is checked wherever it is used.
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
# Left by them wherever people look.
OF_FILE_MANAGERS = {".DS_Store", ".directory", "Thumbs.db", "desktop.ini"}


class Manifest(Config):
    """What an artifact folder holds, what it was built from, and how long that took.

    Args:
        schema_version: Of this list of fields.
        recgrit_version: Which recgrit wrote it.
        stage: The stage's name.
        version: Of the stage.
        key: Hash of what the stage started from.
        fingerprint: Hash of that and of the files' content.
        config: The settings that the result depends on.
        parents: Fingerprint of each parent artifact, by stage name.
        inputs: SHA-256 of each raw input file, by path.
        files: Every file of the folder but this one, by its path in it.
        summary: What the stage reports.
        created: When, in UTC.
        seconds: How long the stage took.
        digest: Hash of all the fields above.
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
        """What the stage started from."""
        return Origin(self.stage, self.version, self.config, self.parents, self.inputs)

    def signed(self) -> Manifest:
        """The same with its digest."""
        fields = self.model_dump(mode="json", exclude={"digest"})
        return self.model_copy(update={"digest": digest_json(fields)})


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


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact folder; the files that it lists are there.

    Raises:
        ArtifactError: There is none, it is not as it was written, a newer recgrit wrote it, or the
            folder holds other files than it lists.
    """
    wait_for(directory)
    path = directory / MANIFEST_NAME
    try:
        # No pipe, from which nothing may ever come.
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
            f"Cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}."
        ) from None
    manifest = _parse_manifest(text, directory)
    names = set(manifest.files)
    outside = [name for name in names if not _lies_inside(name)]
    if outside:
        raise ArtifactError(
            f"{path} lists {', '.join(map(repr, sorted(outside)[:3]))}, which does not lie in its "
            "folder. Do not use it."
        )
    # A folder that is just being replaced: whoever reads on finds another manifest.
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
    """A manifest as it was written.

    Raises:
        ArtifactError: It is another.
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
    if (
        manifest.signed() != manifest
        or manifest.origin.key != manifest.key
        or fingerprint_of(manifest.key, manifest.files) != manifest.fingerprint
    ):
        raise ArtifactError(
            f"{path} is not as it was written (its digest differs). Bring back the file, or delete "
            f"{directory} and run again."
        )
    return manifest


def fingerprint_of(key: str, files: Mapping[str, FileRecord]) -> str:
    """Hash of what a stage starts from and of the content of its files."""
    return digest_json([key, {name: record.sha256 for name, record in files.items()}])


def _lies_inside(name: str) -> bool:
    """Whether a path of a manifest stays in its folder."""
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
    """Files that an artifact's folder holds beside its manifest, by their paths in it.

    Args:
        directory: The folder.
        hidden: Count hidden files too, but for those of file managers.
    """
    found = set()
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if hidden or not name.startswith(".")]
        found |= {
            (Path(folder) / name).relative_to(directory).as_posix()
            for name in names
            if (hidden and name not in OF_FILE_MANAGERS) or not name.startswith(".")
        }
    return found - {MANIFEST_NAME}
