from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from recgrit import checksums
from recgrit.checksums import FileRecord, digest_file


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_file_does_not_fit_its_record(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    path.write_bytes(b"0123456789")
    record = FileRecord.of(path)
    assert record == FileRecord(bytes=10, sha256=hashlib.sha256(b"0123456789").hexdigest())
    assert record.fits(path, whole=False)
    for place in range(10):
        flip(path, place)
        assert not record.fits(path, whole=False)
        flip(path, place)
        assert record.fits(path, whole=True), "the same bytes again"
    path.write_bytes(b"012345678")
    assert not record.fits(path, whole=False)


def test_only_a_sample_of_a_large_file_is_checked_unless_whole_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "LARGE_BYTES", 1000)
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 10)
    monkeypatch.setattr(checksums, "SAMPLE_BLOCKS", 5)
    path = tmp_path / "vectors"
    path.write_bytes(bytes(range(256)) * 8)
    record = FileRecord.of(path)
    assert record.sample
    for place in (0, 2047):
        flip(path, place)
        assert not record.fits(path, whole=False), "the first and the last block are in the sample"
        flip(path, place)
    flip(path, 100)
    assert record.fits(path, whole=False)
    assert not record.fits(path, whole=True)
    path.write_bytes(bytes(range(256)) * 8 + b"x")
    assert not record.fits(path, whole=False), "the size is compared first"


def test_a_file_is_read_once_while_it_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codes"
    path.write_bytes(b"one")
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    first, opened = digest_file(path), []
    monkeypatch.setattr(Path, "open", lambda *_: opened.append(1))
    assert digest_file(path) == first
    assert not opened


def test_a_file_changed_within_a_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    for text in ("one", "two", "six", "ten"):
        path.write_text(text)
        assert digest_file(path) == hashlib.sha256(text.encode()).hexdigest()
