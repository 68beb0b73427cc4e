"""Digests of settings and files, and checks whether a file is unchanged."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from recgrit.config import Config
from recgrit.disk import write_atomic

# Files above this size are checked by a sample of blocks where reading every byte would take longer
# than using the file.
LARGE_BYTES = 64 * 2**20
SAMPLE_BLOCKS, BLOCK_BYTES = 256, 2**16
# Seconds without a change after which the digest of a file is cached. Clocks of file systems are
# coarse: a file that changes twice within one tick would look unchanged.
SETTLED_SECONDS = 0.1

_digests: dict[tuple[str | int | bool, ...], str] = {}


class FileRecord(Config):
    """The size and the digests of a file at the time it was written.

    Args:
        bytes: Size of the file in bytes.
        sha256: SHA-256 of all bytes, in hexadecimal.
        sample: SHA-256 of a sample of blocks, for a file over 64 MiB. Empty for smaller files.
    """

    bytes: int
    sha256: str
    sample: str = ""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file as it is now."""
        size = path.stat().st_size
        return cls(
            bytes=size,
            sha256=digest_file(path),
            sample=_digest_sample(path) if size > LARGE_BYTES else "",
        )

    def fits(self, path: Path, *, whole: bool) -> bool:
        """Return whether a file still has the recorded content.

        Args:
            path: File to check.
            whole: Compare all bytes of a large file. If false, its size and a sample are compared.

        Raises:
            OSError: The file cannot be read.
        """
        if path.stat().st_size != self.bytes:
            return False
        if self.bytes > LARGE_BYTES and not whole:
            return _digest_sample(path) == self.sample
        return digest_file(path) == self.sha256


def write_record(path: Path) -> None:
    """Write the `FileRecord` of a file into a file beside it, for `fits_record`."""
    write_atomic(_record_of(path), FileRecord.of(path).model_dump_json() + "\n")


def fits_record(path: Path) -> bool:
    """Return whether a file has exactly the bytes that it had when `write_record` was called."""
    try:
        record = FileRecord.model_validate_json(_record_of(path).read_text(encoding="utf-8"))
        return record.fits(path, whole=True)
    except (OSError, ValueError):
        return False


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def digest_json(value: Any) -> str:
    """Return a hash of a JSON value that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    The digest is cached in the process until the file changes.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(path, is_sample=False)


def _digest_sample(path: Path) -> str:
    """Return the SHA-256 of evenly spaced blocks of a file, including its first and last bytes."""
    return _digest(path, is_sample=True)


def _digest(path: Path, *, is_sample: bool) -> str:
    state = path.stat()
    key = (
        state.st_dev,
        state.st_ino,
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
        is_sample,
    )
    found = _digests.get(key)
    if found is None:
        with path.open("rb") as stream:
            if is_sample:
                digest = hashlib.sha256()
                last = max(0, state.st_size - BLOCK_BYTES)
                for block in range(SAMPLE_BLOCKS):
                    stream.seek(last * block // (SAMPLE_BLOCKS - 1))
                    digest.update(stream.read(BLOCK_BYTES))
                found = digest.hexdigest()
            else:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time() - max(state.st_mtime, state.st_ctime) > SETTLED_SECONDS:
            _digests[key] = found
    return found
