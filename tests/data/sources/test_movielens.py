from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recgrit.data.sources import RawData, load_source
from recgrit.data.sources.movielens import split_year
from recgrit.errors import DataError


def read(name: str, path: Path) -> RawData:
    source = load_source(name)
    return source.read(source.find_files(path))


def pack(folder: Path, archive: Path, inner: str) -> Path:
    with zipfile.ZipFile(archive, "w") as stream:
        for path in folder.iterdir():
            if path != archive:
                stream.write(path, f"{inner}/{path.name}")
    return archive


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Jin Roh (Man-Wolf) (1999) ", "Jin Roh (Man-Wolf)", 1999),
        ("Death Note (2006–2007)", "Death Note", 2006),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Babylon 5", "Babylon 5", None),
        ("2001", "2001", None),
        ("Brady &amp; Bunch\t(1995)", "Brady & Bunch", 1995),
        ("(1995)", None, 1995),
        ("", None, None),
    ],
)
def test_year_is_moved_out_of_the_title(text: str, title: str | None, year: int | None) -> None:
    assert split_year(text) == (title, year)


@pytest.mark.parametrize(
    "written_as",
    ["movielens-100k", "movielens-100k as atomic files", "movielens-latest-small"],
)
def test_years_and_genres(written_as: str, write_dataset: Callable[..., Path]) -> None:
    items = read(written_as.split(" ", maxsplit=1)[0], write_dataset(written_as)).items
    assert items.columns == ["item_id", "title", "year", "genres"]
    assert items["year"].to_list() == [1995, 1998, None]
    assert items["genres"].to_list() == [["Animation", "Comedy"], ["Drama"], None]


def test_both_copies_of_100k_are_equal(write_dataset: Callable[..., Path]) -> None:
    official = read("movielens-100k", write_dataset("movielens-100k", folder="official"))
    atomic = read("movielens-100k", write_dataset("recbole", folder="atomic"))
    assert official.items.equals(atomic.items)
    assert official.interactions.equals(atomic.interactions)


def test_official_files_come_first(write_dataset: Callable[..., Path]) -> None:
    write_dataset("recbole")
    folder = write_dataset("movielens-100k")
    files = load_source("movielens-100k").find_files(folder)
    assert [path.name for path in files] == ["u.data", "u.item"]


def test_year_falls_back_to_the_release_date(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-100k")
    path = folder / "u.item"
    path.write_bytes(path.read_bytes().replace(b"Toy Story (1995)", b"Toy Story"))
    assert read("movielens-100k", folder).items["year"].first() == 1995


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("movielens-100k", "ml-100k.zip"),
        ("movielens-latest-small", "ml-latest-small.zip"),
    ],
)
class TestArchive:
    def test_archive_reads_as_the_folder(
        self, name: str, archive: str, write_dataset: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = write_dataset(name)
        path = pack(folder, tmp_path / archive, Path(archive).stem)
        plain = read(name, folder)
        for place in (path, tmp_path):
            packed = read(name, place)
            assert packed.files == (path,)
            assert packed.interactions.equals(plain.interactions)
            assert packed.items.equals(plain.items)

    def test_unpacked_subfolder_is_found(
        self, name: str, archive: str, write_dataset: Callable[..., Path], tmp_path: Path
    ) -> None:
        write_dataset(name, folder=Path(archive).stem)
        assert read(name, tmp_path).counts["rows_read"] == 6

    def test_cut_archive(
        self, name: str, archive: str, write_dataset: Callable[..., Path], tmp_path: Path
    ) -> None:
        path = pack(write_dataset(name), tmp_path / archive, "x")
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match="damaged or incomplete zip archive"):
            read(name, path)

    def test_html_page_named_zip(self, name: str, archive: str, tmp_path: Path) -> None:
        (tmp_path / archive).write_text("<!doctype html><title>Not found</title>")
        with pytest.raises(DataError, match="HTML page"):
            read(name, tmp_path)

    def test_foreign_archive(self, name: str, archive: str, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "photo.jpg").write_text("x")
        path = pack(tmp_path / "inner", tmp_path / archive, "x")
        with pytest.raises(DataError, match=r"does not hold .*; found photo\.jpg"):
            read(name, path)


def test_half_of_the_files_is_not_enough(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-100k")
    (folder / "u.item").unlink()
    with pytest.raises(DataError, match=r"expected u\.data and u\.item.*; found u\.data"):
        load_source("movielens-100k").find_files(folder)


def test_unrelated_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt is not a file of this data set"):
        load_source("movielens-100k").find_files(tmp_path / "notes.txt")


def test_csv_with_another_header(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-latest-small")
    (folder / "ratings.csv").write_text("user;movie;rating\n1;2;3\n")
    with pytest.raises(DataError, match="does not start with the header 'userId,movieId"):
        read("movielens-latest-small", folder)


def test_csv_without_lines(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-latest-small")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\r\n")
    with pytest.raises(DataError, match="holds no lines of data"):
        read("movielens-latest-small", folder)


def test_csv_in_another_encoding(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-latest-small")
    path = folder / "movies.csv"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    with pytest.raises(DataError, match=r"movies\.csv is not utf-8 text"):
        read("movielens-latest-small", folder)


def test_byte_order_mark_is_ignored(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-latest-small")
    path = folder / "ratings.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read("movielens-latest-small", folder).counts["rows_read"] == 6


def test_a_stray_quote_makes_one_movie_malformed(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("movielens-latest-small")
    path = folder / "movies.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(1, b'40,"Stray (1999),Drama\r\n')
    path.write_bytes(b"".join(lines))
    source = load_source("movielens-latest-small")
    raw = source.read(source.find_files(folder), max_malformed_share=0.3)
    assert raw.items["item_id"].to_list() == ["10", "20", "30"]
    assert raw.counts["items_malformed"] == 1


def test_real_latest_small(real_data: Callable[[str], Path]) -> None:
    raw = read("movielens-latest-small", real_data("ml-latest-small"))
    assert raw.interactions["user_id"].n_unique() == 610
    assert raw.interactions["item_id"].n_unique() == 9724
    assert raw.interactions.height == raw.counts["rows_read"] == 100_836
    assert raw.items.height == 9742
    assert raw.items.null_count().row(0, named=True) == {
        "item_id": 0,
        "title": 0,
        "year": 12,
        "genres": 34,
    }


def test_the_archive_of_10m_has_a_folder_of_another_name(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_dataset("movielens-1m")
    archive = pack(folder, tmp_path / "ml-10m.zip", "ml-10M100K")
    assert read("movielens-10m", archive).interactions.height == 6
    folder.rename(tmp_path / "ml-10M100K")
    archive.unlink()
    assert read("movielens-10m", tmp_path).items["title"][1] == "Misérables, Les"


def test_titles_in_either_encoding(write_dataset: Callable[..., Path]) -> None:
    path = write_dataset("movielens-1m") / "movies.dat"
    latin = read("movielens-1m", path).items
    path.write_text(path.read_text(encoding="latin-1"), encoding="utf-8")
    assert read("movielens-1m", path).items.equals(latin)
