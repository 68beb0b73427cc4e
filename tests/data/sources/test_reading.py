from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recgrit.data.sources import load_source, reading
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
    monkeypatch.setattr(reading, "BOMB_BYTES", 2**20)
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
def test_archives_whose_names_lead_elsewhere_are_refused(
    write_dataset: Callable[..., Path], tmp_path: Path, prefix: str
) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "in" / "ml-latest-small.zip", "x/")
    # zipfile tidies names as it writes them, which whoever means harm would not.
    with zipfile.ZipFile(archive, "a") as stream:
        entry = zipfile.ZipInfo("links.csv")
        entry.filename = f"{prefix}links.csv"
        stream.writestr(entry, b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"ml-latest-small\.zip holds .* leads out of the archive"):
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
def test_archives_whose_headers_lie(
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
