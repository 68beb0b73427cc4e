"""Test malicious and malformed files of every format.

A reader must count a bad line or report it with its file and line number. It must not lose it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from recgrit.data.config import DataConfig
from recgrit.data.prepare import prepare
from recgrit.data.sources import RawData, load_source
from recgrit.errors import DataError

# Ratings file, items file and number of header lines of each format.
FORMATS = {
    "movielens-100k": ("u.data", "u.item", 0),
    "movielens-100k as atomic files": ("ml-100k.inter", "ml-100k.item", 1),
    "movielens-1m": ("ratings.dat", "movies.dat", 0),
    "movielens-latest-small": ("ratings.csv", "movies.csv", 1),
    "recbole": ("ml-100k.inter", "ml-100k.item", 1),
    "amazon2014/Beauty": ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz", 0),
    "amazon2014/Beauty as ratings": ("ratings_Beauty.csv", "meta_Beauty.json.gz", 0),
    "amazon2018/Gift_Cards": ("Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz", 0),
    "amazon2023/All_Beauty": ("All_Beauty.jsonl.gz", "meta_All_Beauty.jsonl.gz", 0),
    "amazon2023/All_Beauty as splits": (
        "All_Beauty.train.csv.gz",
        "meta_All_Beauty.jsonl.gz",
        1,
    ),
}
MANY = [(str(user), "10", 3, 100 + user) for user in range(100)]
# A user id that occurs once in MANY, so its row can be found in any format.
MARK = b"77"


class Case:
    """A data set of one format, which a test damages and reads."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        ratings, items, self.num_header_lines = FORMATS[name]
        self.ratings, self.items = folder / ratings, folder / items

    def lines(self, path: Path) -> list[bytes]:
        return self.content(path).split(b"\n")[:-1]

    def content(self, path: Path) -> bytes:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    def write_lines(self, path: Path, lines: list[bytes], end: bytes = b"\n") -> None:
        self.write(path, b"".join(line + end for line in lines))

    def read(self, max_malformed_share: float = 0.05) -> RawData:
        source = load_source(self.name.split(" ", maxsplit=1)[0])
        return source.read(source.find_files(self.folder), max_malformed_share)

    def line_of(self, user: bytes) -> int:
        """Return the number, from 0, of the line with this user."""
        lines = self.lines(self.ratings)
        return next(
            i for i, line in enumerate(lines) if line.startswith(user) or b'"' + user + b'"' in line
        )


@pytest.fixture(params=list(FORMATS))
def case(request: pytest.FixtureRequest, write_dataset: Callable[..., Path]) -> Case:
    return Case(request.param, write_dataset(request.param))


@pytest.fixture(params=list(FORMATS))
def big(request: pytest.FixtureRequest, write_dataset: Callable[..., Path]) -> Case:
    if "as splits" in request.param:
        pytest.skip("a user of one row has no training part")
    return Case(request.param, write_dataset(request.param, MANY))


def test_truncated_and_empty_files_are_refused(case: Case) -> None:
    for path in (case.ratings, case.items):
        whole = path.read_bytes()
        if path.suffix == ".gz":
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(DataError, match=f"{path.name} is a damaged or incomplete gzip"):
                case.read()
        path.write_bytes(b"")
        with pytest.raises(DataError, match=f"{path.name} is empty"):
            case.read()
        path.write_bytes(whole)
    assert case.read().counts["rows_malformed"] == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp500"])
def test_other_encodings_are_refused(case: Case, encoding: str) -> None:
    case.write(case.ratings, case.content(case.ratings).decode().encode(encoding))
    with pytest.raises(DataError, match=case.ratings.name):
        case.read()


def test_line_ends_may_be_mixed(case: Case) -> None:
    plain = case.read()
    for path in (case.ratings, case.items):
        lines = [line.rstrip(b"\r") for line in case.lines(path)]
        mixed = b"".join(line + (b"\r\n", b"\n", b"\n\n")[i % 3] for i, line in enumerate(lines))
        case.write(path, mixed)
    raw = case.read()
    assert raw.interactions.equals(plain.interactions)
    assert raw.items.equals(plain.items)
    assert raw.counts == plain.counts


def test_old_macintosh_line_ends_are_refused(case: Case) -> None:
    case.write_lines(case.ratings, [line.rstrip(b"\r") for line in case.lines(case.ratings)], b"\r")
    with pytest.raises(DataError, match=case.ratings.name):
        case.read()


@pytest.mark.parametrize("scrap", [b"\0", b"\0\0garbage\0", b"\xc3\x28", b"[" * 5000, b"x" * 2**20])
def test_a_line_of_garbage_is_counted_or_refused(big: Case, scrap: bytes) -> None:
    lines = big.lines(big.ratings)
    big.write_lines(big.ratings, [*lines[:50], scrap, *lines[50:]])
    if scrap == b"\xc3\x28" and not big.content(big.ratings).startswith(b"{"):
        # The file is then not UTF-8 as a whole, so its lines cannot be counted one by one.
        with pytest.raises(DataError, match=rf"{big.ratings.name} .*, on line 51, cannot be read"):
            big.read()
        return
    raw = big.read()
    assert raw.counts["rows_read"] == 101
    assert raw.counts["rows_malformed"] == 1
    assert raw.interactions.height == 100


@pytest.mark.parametrize("time", [b"1e300", b"nan", b"-1e18", b"1318896000000000", b"noon", b""])
def test_absurd_times_are_counted(big: Case, time: bytes) -> None:
    lines = big.lines(big.ratings)
    place = big.line_of(MARK)
    at = 177000 if "2023" in big.name else 177
    quoted = b'"' + time + b'"' if lines[place].startswith(b"{") else time
    lines[place] = lines[place].replace(str(at).encode(), quoted)
    big.write_lines(big.ratings, lines)
    raw = big.read()
    assert raw.counts["rows_malformed"] == 1
    assert MARK.decode() not in raw.interactions["user_id"].to_list()


def test_times_before_1970_and_negative_ids_are_read_unchanged(big: Case) -> None:
    lines = big.lines(big.ratings)
    place = big.line_of(MARK)
    at = b"177000" if "2023" in big.name else b"177"
    lines[place] = lines[place].replace(at, b"-" + at).replace(MARK, b"-" + MARK, 1)
    if lines[place].startswith(b"{"):
        lines[place] = lines[place].replace(b'"' + MARK + b'"', b'"-' + MARK + b'"')
        lines[place] = lines[place].replace(b'"--', b'"-')
    big.write_lines(big.ratings, lines)
    frame = big.read().interactions
    rows = dict(frame.select("user_id", "timestamp").iter_rows())
    assert len(rows) == 100
    assert rows["-77"] == -177


def test_a_title_of_a_megabyte_is_kept_or_counted(case: Case) -> None:
    lines = case.lines(case.items)
    case.write_lines(case.items, [line.replace(b"Toy Story", b"T" * 2**20) for line in lines])
    raw = case.read(max_malformed_share=0.4)
    if case.items.suffix == ".csv":  # Python's csv module refuses such a long field.
        assert raw.counts["items_malformed"] == 1
        return
    assert max(len(title or "") for title in raw.items["title"]) == 2**20


@pytest.mark.parametrize("title", ["=cmd|' /C calc'!A0", "@SUM(1+1)", "+1-1", "-2+3"])
def test_formulas_in_titles_are_data(case: Case, title: str) -> None:
    """Titles that a spreadsheet would run as formulas are kept: recgrit runs no formulas."""
    if not case.name.startswith("amazon2018"):
        # These characters would end a field or a text.
        title = title.replace("|", "!").replace("'", "")
    lines = case.lines(case.items)
    case.write_lines(case.items, [line.replace(b"Toy Story", title.encode()) for line in lines])
    items = case.read(max_malformed_share=0.4).items
    assert title in items["title"].to_list()


def test_quotes_and_line_breaks_in_titles(case: Case) -> None:
    raw = case.content(case.items)
    if case.items.suffix == ".gz":  # JSON and Python escape these characters.
        raw = raw.replace(b"Toy Story", rb"Toy\n\"Story\"\ttwo")
        expected = 'Toy "Story" two'
    elif case.items.suffix == ".csv":
        raw = raw.replace(b"Toy Story (1995)", b'"Toy ""Story"" two (1995)"')
        expected = 'Toy "Story" two'
    else:
        raw = raw.replace(b"Toy Story", b"Toy \"Story' two")
        expected = "Toy \"Story' two"
    case.write(case.items, raw)
    assert expected in case.read().items["title"].to_list()


def test_a_line_break_within_a_quoted_title_makes_that_movie_malformed(
    write_dataset: Callable[..., Path],
) -> None:
    case = Case("movielens-latest-small", write_dataset("movielens-latest-small"))
    broken = case.content(case.items).replace(b"Toy Story (1995)", b'"Toy\nStory (1995)"')
    case.write(case.items, broken)
    raw = case.read(max_malformed_share=0.5)
    assert raw.items["item_id"].to_list() == ["20", "30"]
    assert (raw.counts["items_read"], raw.counts["items_malformed"]) == (4, 2)


def test_files_that_disagree_are_counted(case: Case) -> None:
    """Items with ratings but no metadata are counted, and items with metadata but no ratings."""
    lines = case.lines(case.items)
    kept = [line for line in lines if b"Toy Story" not in line]
    case.write_lines(case.items, [*kept, kept[-1].replace(b"30", b"9930")])
    config = DataConfig(
        source=case.name.split(" ", maxsplit=1)[0],
        path=case.folder,
        min_user_interactions=1,
        min_item_interactions=1,
    )
    counted = dict(prepare(config).funnel.select("step", "counted").iter_rows())
    assert counted["items without metadata"] == 1
    assert counted["metadata of items left out"] == 1


def test_splits_that_overlap_are_counted(write_dataset: Callable[..., Path]) -> None:
    name = "amazon2023/All_Beauty as splits"
    case = Case(name, write_dataset(name))
    test = case.folder / "All_Beauty.test.csv.gz"
    valid = case.lines(case.folder / "All_Beauty.valid.csv.gz")
    case.write_lines(test, [*case.lines(test), valid[1]])
    config = DataConfig(
        source="amazon2023/All_Beauty",
        path=case.folder,
        min_user_interactions=1,
        min_item_interactions=1,
    )
    data = prepare(config)
    dropped = dict(data.funnel.select("step", "dropped").iter_rows())
    assert dropped["exact duplicates"] == 1
    assert len(data.interactions) == 6


def test_user_ids_that_are_not_text_never_merge_with_other_users(
    write_dataset: Callable[..., Path],
) -> None:
    case = Case("amazon2018/Gift_Cards", write_dataset("amazon2018/Gift_Cards", MANY))
    lines = case.lines(case.ratings)
    for place, value in enumerate([["7"], {"a": 1}, None, True]):
        review = json.loads(lines[place]) | {"reviewerID": value}
        lines[place] = json.dumps(review).encode()
    case.write_lines(case.ratings, lines)
    raw = case.read()
    assert raw.interactions.height + raw.counts["rows_malformed"] == 100
    assert raw.counts["rows_malformed"] >= 1
    assert raw.interactions["user_id"].n_unique() == raw.interactions.height


@pytest.mark.parametrize("packer", [gzip.compress, zlib.compress])
def test_files_that_are_compressed_twice_are_refused(
    big: Case, packer: Callable[[bytes], bytes]
) -> None:
    big.write(big.ratings, packer(big.content(big.ratings)))
    if big.ratings.suffix != ".gz" and packer is gzip.compress:
        # The content is packed once, and its file name does not matter.
        assert big.read().interactions.height == 100
        return
    with pytest.raises(DataError, match=big.ratings.name):
        big.read()
