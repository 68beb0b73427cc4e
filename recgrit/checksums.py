"""Digests of settings and of files, and whether a file is as it was written."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from recgrit.config import Config
from recgrit.disk import write_atomic

# Files above this size are sampled where reading them whole would take longer than using them.
LARGE_BYTES = 64 * 2**20
SAMPLE_BLOCKS, BLOCK_BYTES = 256, 2**16
# A digest is kept only of files that have been left alone for so long: clocks of file systems are
# coarse, and a file changed in the same tick looks unchanged.
SETTLED_SECONDS = 0.1

_digests: dict[tuple[str | int | bool, ...], str] = {}


class FileRecord(Config):
    """What a file was when it was written.

    Args:
        bytes: Its size.
        sha256: Digest of all its bytes.
        sample: Digest of a sample of its bytes, for a large file; empty for others.
    """

    bytes: int
    sha256: str
    sample: str = ""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe a file as it is now."""
        size = path.stat().st_size
        return cls(
            bytes=size,
            sha256=digest_file(path),
            sample=_digest_sample(path) if size > LARGE_BYTES else "",
        )

    def fits(self, path: Path, *, whole: bool) -> bool:
        """Whether a file is as it was.

        Args:
            path: The file.
            whole: Read a large file whole; false for its size and a sample.

        Raises:
            OSError: It cannot be read.
        """
        if path.stat().st_size != self.bytes:
            return False
        if self.bytes > LARGE_BYTES and not whole:
            return _digest_sample(path) == self.sample
        return digest_file(path) == self.sha256


def write_record(path: Path) -> None:
    """Record beside a file what it is, for `fits_record`."""
    write_atomic(_record_of(path), FileRecord.of(path).model_dump_json() + "\n")


def fits_record(path: Path) -> bool:
    """Whether a file is whole and as it was when `write_record` was called."""
    try:
        record = FileRecord.model_validate_json(_record_of(path).read_text(encoding="utf-8"))
        return record.fits(path, whole=True)
    except (OSError, ValueError):
        return False


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def digest_json(value: Any) -> str:
    """Hash of a JSON-able value, the same for equal values whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read once a process while the file is unchanged.

    Raises:
        OSError: It cannot be read.
    """
    return _digest(path, is_sample=False)


def _digest_sample(path: Path) -> str:
    """SHA-256 of blocks at even distances, the first and the last bytes of the file among them."""
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
