from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recgrit.bounds import UNPACKED_BYTES
from recgrit.data.sources import load_source, reading, streaming
from recgrit.data.sources.cleaning import clean_items
from recgrit.data.sources.reading import RawFile, parse_json_lines
from recgrit.errors import DataError

NAME = "movielens-latest-small"


def pack(folder: Path, archive: Path, prefix: str = "ml-latest-small/") -> Path:
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in folder.iterdir():
            stream.write(path, prefix + path.name)
    return archive


def rows_read(name: str, path: Path) -> int:
    source = load_source(name)
    return source.read(source.find_files(path)).counts["rows_read"]


def test_bombs_are_refused(
    write_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "UNPACKED_BYTES", replace(UNPACKED_BYTES, default=2**20))
    folder = write_dataset(NAME)
    (folder / "ratings.csv").write_bytes(b"\0" * 3 * 2**20)
    with pytest.raises(DataError, match="made to fill the memory"):
        rows_read(NAME, pack(folder, tmp_path / "ml-latest-small.zip"))
    amazon = write_dataset("amazon2018/Gift_Cards", folder="amazon")
    (amazon / "Gift_Cards_5.json.gz").write_bytes(gzip.compress(b" " * 3 * 2**20))
    with pytest.raises(DataError, match="made to fill the memory"):
        rows_read("amazon2018/Gift_Cards", amazon)


def test_what_compresses_well_is_no_bomb(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [(str(user % 50), "10", 3, 100) for user in range(20_000)]
    folder = write_dataset(NAME, rows)
    assert rows_read(NAME, pack(folder, tmp_path / "ml-latest-small.zip")) == 20_000


@pytest.mark.parametrize("prefix", ["../../../", "/tmp/", "x/../../", "C:\\\\", "..\\\\"])
def test_archives_with_paths_outside_of_them_are_refused(
    write_dataset: Callable[..., Path], tmp_path: Path, prefix: str
) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "in" / "ml-latest-small.zip", "x/")
    # zipfile cleans names when it writes them. An attacker would not, so the test sets the name
    # itself.
    with zipfile.ZipFile(archive, "a") as stream:
        entry = zipfile.ZipInfo("links.csv")
        entry.filename = f"{prefix}links.csv"
        stream.writestr(entry, b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"ml-latest-small\.zip holds .* outside the archive"):
        rows_read(NAME, archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_file_twice_in_an_archive_is_refused(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_dataset(NAME)
    archive = pack(folder, tmp_path / "ml-latest-small.zip")
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr("__MACOSX/ml-latest-small/ratings.csv", b"a shadow of it")
        stream.writestr("old/README.txt", b"x")
        stream.writestr("ml-latest-small/README.txt", b"y")
    assert rows_read(NAME, archive) == 6
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr("old/ratings.csv", b"userId,movieId,rating,timestamp\n1,1,1,1\n")
    with pytest.raises(DataError, match=r"ratings\.csv twice, as 'ml-latest.*and 'old/ratings"):
        rows_read(NAME, archive)


@pytest.mark.parametrize(
    ("find", "put"), [(b"PK\x01\x02", 42), (b"PK\x03\x04", 26), (b"PK\x05\x06", 16)]
)
def test_archives_with_false_headers_are_refused(
    write_dataset: Callable[..., Path], tmp_path: Path, find: bytes, put: int
) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "ml-latest-small.zip")
    content = bytearray(archive.read_bytes())
    place = content.index(find) + put
    content[place : place + 4] = b"\xff\xff\xff\xff"
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"ml-latest-small\.zip is a damaged or incomplete zip"):
        rows_read(NAME, archive)


@pytest.mark.parametrize("cut", [10, 200])
def test_a_cut_archive(write_dataset: Callable[..., Path], tmp_path: Path, cut: int) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "ml-latest-small.zip")
    archive.write_bytes(archive.read_bytes()[:-cut])
    with pytest.raises(DataError, match="damaged or incomplete zip"):
        rows_read(NAME, archive)


@pytest.mark.parametrize("cut", ["", "{cut\n"])
@pytest.mark.parametrize("half", [r"\ud800", r"\udc00", r"a\ud800b"])
def test_an_id_with_half_a_surrogate_pair_is_malformed(cut: str, half: str) -> None:
    """An id with half a surrogate pair is malformed.

    This must hold when all lines are parsed at once, and when a damaged line makes the reader parse
    each line by itself.
    """
    lines = '{"item_id": "' + half + '"}\n{"item_id": "b"}\n{"item_id": ""}\n' + cut
    file = RawFile("x.jsonl", lines.encode())
    found = parse_json_lines(file, {"item_id": pl.String})
    cleaned = clean_items(found, "x.jsonl", "objects", 1.0)
    assert cleaned.frame["item_id"].to_list() == ["b"]
    assert cleaned.num_malformed == found.height - 1


def test_a_zip_with_false_sizes_in_its_directory_is_refused(
    write_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on the unpacked size holds even if the archive states a wrong packed size."""
    monkeypatch.setattr(reading, "UNPACKED_BYTES", replace(UNPACKED_BYTES, default=2**20))
    folder = write_dataset(NAME)
    (folder / "ratings.csv").write_bytes(b"\0" * 3 * 2**20)
    archive = pack(folder, tmp_path / "ml-latest-small.zip")
    told = zipfile.ZipFile.getinfo

    def lie(self: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        info = told(self, name)
        info.compress_size = 2**31
        return info

    monkeypatch.setattr(zipfile.ZipFile, "getinfo", lie)
    with pytest.raises(DataError, match="made to fill the memory"):
        rows_read(NAME, archive)


def test_a_line_without_an_end_is_refused(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECGRIT_MAX_LINE_BYTES", str(2**16))
    monkeypatch.setattr(streaming, "PARSED_BYTES", 2**14)
    folder = write_dataset(NAME)
    with (folder / "ratings.csv").open("a") as stream:
        stream.write("1" * 2**18)
    with pytest.raises(DataError, match=r"line \d+: [0-9,]+ bytes in one line, and 65,536"):
        rows_read(NAME, folder)
