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


def test_names_that_lead_elsewhere_are_only_names(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "in" / "ml-latest-small.zip", "../../../")
    before = sorted(tmp_path.rglob("*"))
    assert rows_read(NAME, archive) == 6
    assert sorted(tmp_path.rglob("*")) == before  # Nothing is unpacked to the disk.


@pytest.mark.parametrize("cut", [10, 200])
def test_a_cut_archive(write_dataset: Callable[..., Path], tmp_path: Path, cut: int) -> None:
    archive = pack(write_dataset(NAME), tmp_path / "ml-latest-small.zip")
    archive.write_bytes(archive.read_bytes()[:-cut])
    with pytest.raises(DataError, match="damaged or incomplete zip"):
        rows_read(NAME, archive)
