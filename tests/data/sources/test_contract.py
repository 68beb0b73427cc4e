"""Tests that every source must pass. A source inherits them by a subclass of a few lines."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from recgrit.data.sources import RawData, load_source
from recgrit.errors import DataError

MANY = [(str(user), "10", 3, 100 + user) for user in range(100)]


def read_lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return content.split(b"\n")[:-1]


def write_lines(path: Path, lines: list[bytes]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


class SourceContract:
    name: ClassVar[str]
    written_as: ClassVar[str]
    ratings_file: ClassVar[str]
    items_file: ClassVar[str]
    line_without_user: ClassVar[bytes]
    line_without_time: ClassVar[bytes]
    num_header_lines: ClassVar[int] = 0

    @pytest.fixture
    def folder(self, write_dataset: Callable[..., Path]) -> Path:
        return write_dataset(self.written_as)

    @pytest.fixture
    def big_folder(self, write_dataset: Callable[..., Path]) -> Path:
        return write_dataset(self.written_as, MANY)

    def read(self, path: Path, **settings: float) -> RawData:
        source = load_source(self.name)
        return source.read(source.find_files(path), **settings)

    def append(self, path: Path, *lines: bytes) -> None:
        write_lines(path, [*read_lines(path), *lines])

    def test_interactions_keep_file_order(self, folder: Path) -> None:
        frame = self.read(folder).interactions
        assert frame["user_id"].to_list() == ["7", "9", "7", "7", "9", "9"]
        assert frame["item_id"].to_list() == ["30", "10", "10", "20", "30", "20"]
        assert frame["timestamp"].to_list() == [100, 50, 100, 90, 60, 70]
        assert frame["weight"].to_list() == [4, 5, 3, 5, 2, 1]

    def test_interactions_have_the_promised_types(self, folder: Path) -> None:
        assert dict(self.read(folder).interactions.schema) == {
            "user_id": pl.String,
            "item_id": pl.String,
            "timestamp": pl.Int64,
            "weight": pl.Float32,
        }

    def test_items_have_titles_or_null(self, folder: Path) -> None:
        items = self.read(folder).items
        assert items.columns[:2] == ["item_id", "title"]
        titles = dict(items.select("item_id", "title").iter_rows())
        assert titles == {"10": "Toy Story", "20": "Misérables, Les", "30": None}

    def test_counts_and_files_are_reported(self, folder: Path) -> None:
        raw = self.read(folder)
        assert raw.counts == {
            "rows_read": 6,
            "rows_malformed": 0,
            "rows_without_id": 0,
            "items_read": 3,
            "items_malformed": 0,
            "items_repeated": 0,
        }
        assert [path.name for path in raw.files] == [self.ratings_file, self.items_file]

    def test_the_path_of_one_file_is_enough(self, folder: Path) -> None:
        assert self.read(folder / self.ratings_file).counts["rows_read"] == 6

    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"No file or folder at .*nowhere.*data\.path"):
            self.read(tmp_path / "nowhere")

    def test_wrong_folder_names_expected_and_found(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").touch()
        with pytest.raises(DataError, match=r"expected .*; found holiday\.jpg") as caught:
            self.read(tmp_path)
        assert Path(self.ratings_file).suffix in str(caught.value)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="found nothing"):
            self.read(tmp_path)

    @pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<p>404", b"\n<HTML><body>log in"])
    def test_html_page_under_a_data_name(self, folder: Path, page: bytes) -> None:
        (folder / self.ratings_file).write_bytes(page)
        with pytest.raises(DataError, match=f"{self.ratings_file} is an HTML page"):
            self.read(folder)

    def test_empty_file(self, folder: Path) -> None:
        (folder / self.ratings_file).write_bytes(b"")
        with pytest.raises(DataError, match=f"{self.ratings_file} is empty"):
            self.read(folder)

    def test_few_malformed_lines_are_counted(self, big_folder: Path) -> None:
        self.append(big_folder / self.ratings_file, b"garbage", b"", self.line_without_time)
        raw = self.read(big_folder)
        assert raw.interactions.height == 100
        assert raw.counts["rows_read"] == 102
        assert raw.counts["rows_malformed"] == 2
        assert raw.counts["rows_without_id"] == 0

    def test_rows_without_id_are_malformed_and_counted(self, big_folder: Path) -> None:
        self.append(big_folder / self.ratings_file, self.line_without_user)
        counts = self.read(big_folder).counts
        assert (counts["rows_malformed"], counts["rows_without_id"]) == (1, 1)

    def test_many_malformed_lines_stop_with_their_numbers(self, folder: Path) -> None:
        path = folder / self.ratings_file
        lines = read_lines(path)
        head = self.num_header_lines
        write_lines(path, [*lines[:head], b"garbage", lines[head], b"{", b"x y", b"z"])
        numbers = ", ".join(str(head + i) for i in (1, 3, 4))
        message = f"4 of 5 lines are malformed, the first at line {numbers}"
        with pytest.raises(DataError, match=message):
            self.read(folder)

    def test_share_of_malformed_lines_is_a_setting(self, folder: Path) -> None:
        self.append(folder / self.ratings_file, b"garbage")
        with pytest.raises(DataError, match=r"up to 5% are skipped \(data\.max_malformed_share\)"):
            self.read(folder)
        assert self.read(folder, max_malformed_share=0.2).counts["rows_malformed"] == 1

    def test_milliseconds_are_no_seconds(self, folder: Path) -> None:
        path = folder / self.ratings_file
        lines = read_lines(path)
        late = lines[self.num_header_lines].replace(b"100", b"1318896000000")
        write_lines(path, [*lines[: self.num_header_lines], late])
        with pytest.raises(DataError, match="1 of 1 lines are malformed"):
            self.read(folder)

    def test_identical_items_are_dropped_and_counted(self, folder: Path) -> None:
        path = folder / self.items_file
        self.append(path, read_lines(path)[-1])
        raw = self.read(folder)
        assert raw.items.height == 3
        assert raw.counts["items_repeated"] == 1

    def test_contradicting_items_are_refused(self, folder: Path) -> None:
        path = folder / self.items_file
        first = read_lines(path)[self.num_header_lines]
        self.append(path, first.replace(b"Toy Story", b"Toy Storage"))
        with pytest.raises(
            DataError, match=r"Item ids must be unique: .*'10' on lines \d+ and \d+"
        ):
            self.read(folder)

    def test_malformed_items_are_counted(self, folder: Path) -> None:
        self.append(folder / self.items_file, b"garbage")
        raw = self.read(folder, max_malformed_share=0.5)
        assert (raw.counts["items_read"], raw.counts["items_malformed"]) == (4, 1)
        assert raw.items.height == 3


class TestMovieLens100K(SourceContract):
    name = "movielens-100k"
    written_as = "movielens-100k"
    ratings_file, items_file = "u.data", "u.item"
    line_without_user = b"\t10\t3\t100"
    line_without_time = b"7\t10\t3\tnoon"


class TestMovieLens100KAsAtomicFiles(SourceContract):
    name = "movielens-100k"
    written_as = "movielens-100k as atomic files"
    ratings_file, items_file = "ml-100k.inter", "ml-100k.item"
    line_without_user = b"\t10\t3\t100"
    line_without_time = b"7\t10\t3\t"
    num_header_lines = 1


class TestMovieLens1M(SourceContract):
    name = "movielens-1m"
    written_as = "movielens-1m"
    ratings_file, items_file = "ratings.dat", "movies.dat"
    line_without_user = b"::10::3::100"
    line_without_time = b"7::10::3::"


class TestMovieLensLatestSmall(SourceContract):
    name = "movielens-latest-small"
    written_as = "movielens-latest-small"
    ratings_file, items_file = "ratings.csv", "movies.csv"
    line_without_user = b" ,10,3.5,100\r"
    line_without_time = b"7,10,3.5,nan\r"
    num_header_lines = 1


class TestRecBole(SourceContract):
    name = "recbole"
    written_as = "recbole"
    ratings_file, items_file = "ml-100k.inter", "ml-100k.item"
    line_without_user = b"\t10\t3\t100"
    line_without_time = b"7\t10\t3\tinf"
    num_header_lines = 1

    def test_milliseconds_are_no_seconds(self, folder: Path) -> None:
        # Atomic files may hold seconds or milliseconds, so the reader detects the unit.
        path = folder / self.ratings_file
        lines = read_lines(path)
        write_lines(path, [lines[0], lines[1].replace(b"100", b"1318896000000")])
        assert self.read(folder).interactions["timestamp"].to_list() == [1_318_896_000]

    def test_items_have_titles_or_null(self, folder: Path) -> None:
        # Words for an unknown title differ by data set, so the reader keeps them unchanged.
        titles = self.read(folder).items["title"].to_list()
        assert titles == ["Toy Story", "Misérables, Les", "unkonwn"]


class TestAmazon2014(SourceContract):
    name = "amazon2014/Beauty"
    written_as = "amazon2014/Beauty"
    ratings_file, items_file = "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"
    line_without_user = b'{"asin": "10", "overall": 3.0, "unixReviewTime": 100}'
    line_without_time = b'{"reviewerID": "7", "asin": "10", "overall": 3.0}'


class TestAmazon2014AsRatings(SourceContract):
    name = "amazon2014/Beauty"
    written_as = "amazon2014/Beauty as ratings"
    ratings_file, items_file = "ratings_Beauty.csv", "meta_Beauty.json.gz"
    line_without_user = b",10,3.0,100"
    line_without_time = b"7,10,3.0,"


class TestAmazon2018(SourceContract):
    name = "amazon2018/Gift_Cards"
    written_as = "amazon2018/Gift_Cards"
    ratings_file, items_file = "Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"
    line_without_user = b'{"asin": "10", "overall": 3.0, "unixReviewTime": 100}'
    line_without_time = b'{"reviewerID": "7", "asin": "10", "overall": 3.0}'


class TestAmazon2023(SourceContract):
    name = "amazon2023/All_Beauty"
    written_as = "amazon2023/All_Beauty"
    ratings_file, items_file = "All_Beauty.jsonl.gz", "meta_All_Beauty.jsonl.gz"
    line_without_user = b'{"parent_asin": "10", "rating": 3.0, "timestamp": 100000}'
    line_without_time = b'{"user_id": "7", "parent_asin": "10", "rating": 3.0}'
