"""Reading in blocks and the fast parsers change time and memory, but not the result."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.sources import RawData, load_source, streaming
from recgrit.data.sources.cleaning import clean_interactions
from recgrit.data.sources.coding import CodedInteractions, InteractionCoder
from recgrit.data.sources.reading import Place, split_fields, split_lines
from recgrit.errors import DataError

NAMES = ("user_id", "item_id", "weight", "timestamp")
FORMATS = [
    "movielens-1m",
    "movielens-latest-small",
    "amazon2014/Beauty",
    "amazon2014/Beauty as ratings",
    "amazon2018/Gift_Cards",
    "amazon2023/All_Beauty",
    "amazon2023/All_Beauty as splits",
]
MANY = [(str(i % 37), f"{10 * (i % 11)}", 1 + i % 5, 100 + 7 * i % 50) for i in range(300)]


def read(name: str, path: Path) -> RawData:
    source = load_source(name.partition(" as ")[0])
    return source.read(source.find_files(path))


def row_by_row(content: bytes, separator: str) -> pl.DataFrame:
    coder = InteractionCoder()
    fields = split_fields(split_lines(content.decode()), separator, NAMES)
    rows = clean_interactions(fields, "file", "rows", 1.0, coder)
    assert rows.num_malformed == 0
    return CodedInteractions(rows.frame, coder.users.ids(), coder.items.ids()).to_polars()


fields = st.sampled_from(
    [
        "7",
        "10",
        "007",
        "+7",
        "-7",
        "-0",
        " 7",
        "7 ",
        "7.0",
        "1e3",
        "",
        "é",
        '"7"',
        "7\x0b",
        "0x7",
        "9" * 18,
        "9" * 20,
        "B00X",
        "\xa07",
    ]
)
numbers = st.sampled_from(["3", "4.5", "1e2", "+5", "05", "-1", " 3", "3 ", "nan", "inf", "", "x"])
lines = st.tuples(fields, fields, numbers, numbers).map(list)


@settings(max_examples=400, deadline=None)
@given(st.lists(lines, min_size=1, max_size=4), st.sampled_from([",", "\t", "::"]), st.booleans())
def test_the_fast_parser_reads_the_same_values_as_the_plain_one(
    rows: list[list[str]], separator: str, returns: bool
) -> None:
    end = "\r\n" if returns else "\n"
    content = "".join(separator.join(row) + end for row in rows).encode()
    for id_type in (pl.Int64, pl.String):
        found = streaming.parse_clean_fields(content, separator, NAMES, id_type=id_type)
        if found is not None:
            as_text = found.with_columns(pl.col("user_id", "item_id").cast(pl.String))
            assert as_text.select(sorted(NAMES)).equals(
                row_by_row(content, separator).select(sorted(NAMES))
            )


@pytest.mark.parametrize("separator", [",", "::"])
def test_clean_lines_take_the_fast_way(separator: str) -> None:
    content = b"".join(b"7,10,4.0,100\r\n".replace(b",", separator.encode()) for _ in range(9))
    found = streaming.parse_clean_fields(content, separator, NAMES, id_type=pl.Int64)
    assert found is not None
    assert found.row(0) == (7, 10, 100, 4.0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("block_bytes", [1, 64, 1000])
def test_small_blocks_give_the_same(
    name: str, block_bytes: int, write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(name, MANY)
    whole = read(name, folder)
    monkeypatch.setattr(streaming, "PARSED_BYTES", block_bytes)
    in_blocks = read(name, folder)
    assert in_blocks.interactions.equals(whole.interactions)
    assert in_blocks.counts == whole.counts


@pytest.mark.parametrize("name", ["movielens-latest-small", "amazon2018/Gift_Cards"])
def test_malformed_lines_of_later_blocks_have_their_numbers(
    name: str, write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PARSED_BYTES", 256)
    folder = write_dataset(name, MANY)
    path = next(path for path in folder.iterdir() if path.name[0] in "rG")
    is_packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    damaged = content.split(b"\n")
    for line in (100, 201, 250):
        damaged[line - 1] = b"garbage"
    content = b"\n".join(damaged)
    path.write_bytes(gzip.compress(content) if is_packed else content)
    assert read(name, folder).counts["rows_malformed"] == 3
    source = load_source(name)
    with pytest.raises(DataError, match="3 of 300 lines are malformed, the first at line 100, 201"):
        source.read(source.find_files(folder), max_malformed_share=0.001)


def test_lines_before_the_first_stars_are_malformed(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PARSED_BYTES", 256)
    folder = write_dataset("amazon2018/Gift_Cards", MANY)
    path = folder / "Gift_Cards_5.json.gz"
    reviews = gzip.decompress(path.read_bytes()).split(b"\n")
    reviews[:9] = [line.replace(b'"overall"', b'"stars"') for line in reviews[:9]]
    path.write_bytes(gzip.compress(b"\n".join(reviews)))
    raw = read("amazon2018/Gift_Cards", folder)
    assert raw.counts["rows_malformed"] == 9
    assert raw.interactions["weight"].null_count() == 0


def test_ids_that_stop_being_numbers_stay_the_same_ids(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PARSED_BYTES", 64)
    rows = [*MANY, ("u1", "010", 3, 5), ("7", "10", 3, 6)]
    found = read("movielens-latest-small", write_dataset("movielens-latest-small", rows))
    assert found.interactions.select("user_id", "item_id").rows() == [row[:2] for row in rows]
    assert found.coded.user_ids.n_unique() == len(found.coded.user_ids) == 38


def test_text_that_is_not_utf8_is_refused_with_its_position(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PARSED_BYTES", 64)
    folder = write_dataset("movielens-latest-small", MANY)
    path = folder / "ratings.csv"
    place = path.stat().st_size + 2
    path.write_bytes(path.read_bytes() + b"7,\xff,3,4\n")
    with pytest.raises(DataError, match=f"is not utf-8 text: byte {place}, on line 302, cannot"):
        read("movielens-latest-small", folder)


def test_an_archive_that_is_damaged_in_the_middle(
    write_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_dataset("movielens-latest-small", MANY)
    archive = tmp_path / "ml-latest-small.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in folder.iterdir():
            stream.write(path, f"ml-latest-small/{path.name}")
    content = bytearray(archive.read_bytes())
    content[200:260] = bytes(60)
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged or incomplete zip"):
        read("movielens-latest-small", archive)


def test_blocks_are_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PARSED_BYTES", 10)
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbf1\n22\n\n4444444444444\n5")
    blocks = list(streaming.read_blocks(Place(path)))
    assert b"".join(block.file.content for block in blocks) == path.read_bytes()[3:] + b"\n"
    for block in blocks:
        before = path.read_bytes()[: block.offset]
        assert block.first_line == before.count(b"\n") + 1
        assert block.file.content.endswith(b"\n")
