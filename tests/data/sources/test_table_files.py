"""Test formats of users' tables. They are detected, set, or refused with the setting to change."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recgrit.data.config import TableConfig
from recgrit.data.sources import RawData, delimited, load_source, reading
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.reading import Place, read_pieces
from recgrit.data.sources.table import Table
from recgrit.data.sources.table_files import list_files, open_table, read_table
from recgrit.errors import ConfigError, DataError

LOG = "user_id,item_id,timestamp\nü1,i1,1320105600\nu2,i2,1320105660\n"
ROWS = [("ü1", "i1", 1_320_105_600), ("u2", "i2", 1_320_105_660)]


def raw(path: Path, **names: Any) -> RawData:
    table = Table(**TableConfig(**names).model_dump())
    return table.read(table.find_files(path), 0.5)


def rows(path: Path, **names: Any) -> list[tuple[Any, ...]]:
    return raw(path, **names).interactions.rows()


def write(folder: Path, name: str, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::", ", "])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_separator_line_end_and_encoding_are_detected(
    tmp_path: Path, separator: str, line_end: str, encoding: str
) -> None:
    text = LOG.replace(",", separator).replace("\n", line_end)
    assert rows(write(tmp_path, "log.csv", text, encoding)) == ROWS


@pytest.mark.parametrize(
    "before", ["# exported today\n# by us\n", "\n\n", "sep=,\n", "#", "# a, b, c\n\n"]
)
def test_lines_before_the_header(tmp_path: Path, before: str) -> None:
    assert rows(write(tmp_path, "log.csv", before + LOG)) == ROWS


def test_the_detected_format_is_logged_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for day in range(3):
        write(tmp_path, f"{day}.csv", LOG.replace(",", ";"))
    rows(tmp_path)
    said = [r.getMessage() for r in caplog.records if "semicolons between fields" in r.getMessage()]
    assert len(said) == 1
    assert "0.csv and 2 more files: text, semicolons between fields, UTF-8, a header" in said[0]


def test_comments_among_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", LOG + "// the end,,\n")
    assert rows(path, comment="//") == ROWS


def test_no_header(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "1320105600;i1;ü1;9\n1320105660;i2;u2;9\n")
    with pytest.raises(DataError, match=r"seems to have no header: its first line is '1320105600;"):
        rows(path)
    columns = ("timestamp", "item_id", "user_id", "other")
    assert rows(path, columns=columns) == ROWS
    with pytest.raises(DataError, match=r"line 1 has 4 fields .*data\.table\.columns names 3"):
        rows(path, columns=columns[:3])
    assert (
        rows(write(tmp_path, "log.csv", LOG), columns=("user_id", "item_id", "timestamp")) == ROWS
    )


def test_other_column_names_are_refused_with_the_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", LOG.replace("user_id", "userId"))
    with pytest.raises(DataError, match=r"lacks the column user_id.*data\.table\.user_id=userId"):
        rows(path)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis"])
def test_other_encodings_are_refused_unless_they_are_set(tmp_path: Path, encoding: str) -> None:
    name = "u1" if encoding == "shift_jis" else "ü1"
    text = LOG.replace("ü1", "u1") + f"ソ{name},i3,1320105660\n".replace(
        "ソ", "ソ" if encoding == "shift_jis" else ""
    )
    path = write(tmp_path, "log.csv", text, encoding)
    with pytest.raises(DataError, match=r"log\.csv is not UTF-8 text: the byte 0x\w\w on line 4"):
        rows(path)
    assert rows(path, encoding=encoding)[2][0].endswith(name)
    with pytest.raises(ConfigError, match="encoding=utf-5 is not a known encoding"):
        rows(path, encoding="utf-5")


@pytest.mark.parametrize("extra", ["u3,i3,1320105660,9", "u3,i3"])
def test_ragged_lines_are_counted_by_line(tmp_path: Path, extra: str) -> None:
    path = write(tmp_path, "log.csv", f"{LOG}{extra}\nu4,i4,1320105670\n")
    found = raw(path)
    assert found.interactions.rows() == [*ROWS, ("u4", "i4", 1_320_105_670)]
    assert found.counts["rows_malformed"] == 1
    table = Table(**TableConfig().model_dump())
    with pytest.raises(DataError, match=r"1 of 4 lines are malformed, the first at line 4"):
        table.read((path,), 0.05)


@pytest.mark.parametrize(
    ("lines", "titles"),
    [
        (['i1,Lamp 7" tall', 'i2,Lamp 5" red'], ['Lamp 7" tall', 'Lamp 5" red']),
        (['i1,7"', 'i2,"Lamp, red"'], ['7"', "Lamp, red"]),
        (['i1,"7"" lamp"', 'i2,""'], ['7" lamp', None]),
        (['i1,"Lamp" the best', "i2,b"], ['"Lamp" the best', "b"]),
        (['i1, "Lamp, red"', "i2,b"], ["Lamp, red", "b"]),
        (['i1,"two\nlines"', "i2,b"], ["two lines", "b"]),
        (['i1,"two, with\na comma\n"', 'i2,"b"'], ["two, with a comma", "b"]),
        (['i1,"Lamp 7', "i2,b"], ['"Lamp 7', "b"]),
        (["i1,O'Hara", "i2,'b'"], ["O'Hara", "'b'"]),
    ],
)
def test_quotes_and_inches(tmp_path: Path, lines: list[str], titles: list[str | None]) -> None:
    items = write(tmp_path, "items.csv", "\n".join(["item_id,title", *lines, ""]))
    log = write(tmp_path, "log.csv", LOG)
    assert raw(log, items_path=items).items["title"].to_list() == titles


def test_a_quote_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    items = write(tmp_path, "items.csv", 'item_id,title\ni1,"Lamp 7\ni2,Lamp 5"\n')
    log = write(tmp_path, "log.csv", LOG)
    with pytest.raises(DataError, match=r"items\.csv, line 2: the quote .*data\.table\.quote=none"):
        raw(log, items_path=items)
    assert raw(log, items_path=items, quote="none").items["title"].to_list() == [
        '"Lamp 7',
        'Lamp 5"',
    ]
    assert raw(log, items_path=items, quote='"').items["title"].to_list() == ["Lamp 7 i2,Lamp 5"]


@pytest.mark.parametrize(
    ("weights", "decimal", "found"),
    [
        (["4,5", "3,0"], None, [4.5, 3.0]),
        (["4,5", "3"], None, [4.5, 3.0]),
        (["4.5", "3"], None, [4.5, 3.0]),
        (["1.234,5", "3"], None, [1234.5, 3.0]),
        (["1,234.5", "3"], None, [1234.5, 3.0]),
        (["1,234", "3"], ",", [1.234, 3.0]),
        (["1,234", "3"], ".", [1234.0, 3.0]),
    ],
)
def test_decimal_commas(
    tmp_path: Path, weights: list[str], decimal: str | None, found: list[float]
) -> None:
    first, second = weights
    log = f"user_id;item_id;timestamp;w\nu;i;1320105600;{first}\nu;j;1320105600;{second}\n"
    path = write(tmp_path, "log.csv", log)
    read = raw(path, weight="w", decimal=decimal).interactions["weight"]
    assert read.to_list() == pytest.approx(found)


def test_commas_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "user_id;item_id;timestamp;w\nu;i;1320105600;1,234\n")
    with pytest.raises(DataError, match=r"numbers in w, such as '1,234'.*data\.table\.decimal=','"):
        raw(path, weight="w")


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(name: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(f"shop/{name}", content)
            archive.writestr("__MACOSX/shop/._log.csv", b"x")
        return out.getvalue()

    return pack


JSON_LINES = (
    '{"user_id": "ü1", "item_id": "i1", "timestamp": 1320105600, "extra": {"a": 1}}\n'
    '{"user_id": "u2", "timestamp": 1320105660, "item_id": "i2"}\n'
)


@pytest.mark.parametrize(
    ("name", "text", "pack"),
    [
        ("log.tsv", LOG.replace(",", "\t"), bytes),
        ("log.txt", LOG, bytes),
        ("log.CSV", LOG, bytes),
        ("log", LOG, bytes),
        ("log.csv.gz", LOG, gzip.compress),
        ("log.csv.gz", LOG, bytes),
        ("log.tsv.zst", LOG, zstd),
        ("log.zip", LOG, zipped("log.csv")),
        ("log.zip", JSON_LINES, zipped("log.jsonl")),
        ("log.jsonl", JSON_LINES, bytes),
        ("log.jsonl.gz", JSON_LINES, gzip.compress),
        ("log.json", "[" + JSON_LINES.strip().replace("\n", ",") + "]", bytes),
    ],
)
def test_kinds_of_files(
    tmp_path: Path, name: str, text: str, pack: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path, name, pack(text.encode()))
    assert rows(path) == ROWS
    if "." in name:
        assert rows(tmp_path) == ROWS


def frame(*found: tuple[Any, ...]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(found, schema=schema, orient="row")


def test_folders_of_parts(tmp_path: Path) -> None:
    for day, row in zip(("2011-11-01", "2011-11-02"), ROWS, strict=True):
        folder = tmp_path / "log" / f"day={day}"
        folder.mkdir(parents=True)
        frame(row).write_parquet(folder / "part-00000-c000.snappy.parquet")
        frame().write_parquet(folder / "part-00001-c000.snappy.parquet")
        (folder / "_SUCCESS").touch()
        (folder / ".part-00000.crc").write_bytes(b"x")
    (tmp_path / "log" / "_SUCCESS").touch()
    log = tmp_path / "log"
    assert rows(log) == ROWS
    assert rows(log / "day=2011-11-0[1]" / "*.parquet") == ROWS[:1]
    assert rows(tmp_path / "l*" / "**" / "*.parquet") == ROWS
    assert rows(tmp_path / "*" / "day=*") == ROWS
    by_day = rows(log, timestamp="day")
    assert [time for _, _, time in by_day] == [1_320_105_600, 1_320_192_000]
    with pytest.raises(DataError, match=r"holds no such file"):
        rows(log / "day=2012-*")


def test_parts_of_text_without_rows(tmp_path: Path) -> None:
    write(tmp_path, "part-0.csv", LOG)
    write(tmp_path, "part-1.csv", "user_id,item_id,timestamp\n")
    write(tmp_path, "part-2.csv", "")
    assert rows(tmp_path) == ROWS
    write(tmp_path, "part-0.csv", "")
    with pytest.raises(
        DataError, match=r"is empty, and so is every file|holds no lines|hold no rows"
    ):
        rows(tmp_path)


def test_one_log_packed_and_unpacked_is_not_read_twice(tmp_path: Path) -> None:
    write(tmp_path, "log.csv", LOG)
    write(tmp_path, "README.txt", "About the log.")
    assert rows(tmp_path) == ROWS
    write(tmp_path, "log.csv.gz", gzip.compress(LOG.encode()))
    with pytest.raises(DataError, match=r"files of several kinds \(\.csv, \.csv\.gz\)"):
        rows(tmp_path)


def test_items_beside_the_log_are_no_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, "events.csv", LOG)
    items = write(tmp_path, "items.csv", "item_id,title\ni1,One\n")
    assert list_files(tmp_path, "a log", apart=[items]) == (tmp_path / "events.csv",)
    assert rows(tmp_path, items_path=items) == ROWS


@pytest.mark.parametrize("start", [b"PK\x03\x04 broken", b"\xd0\xcf\x11\xe0 sheet", b"<html>"])
def test_files_that_are_not_tables_are_refused(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(DataError, match=r"log\.csv is (a damaged zip|an Excel|an HTML page)"):
        rows(write(tmp_path, "log.csv", start * 100))


def test_an_excel_workbook_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(DataError, match=r"log\.xlsx is an Excel workbook: save it as CSV"):
        rows(write(tmp_path, "log.xlsx", out.getvalue()))


def test_official_files_unpacked_or_not(write_dataset: Callable[..., Path]) -> None:
    name = "amazon2023/All_Beauty"
    folder = write_dataset(name)
    source = load_source(name)
    packed = source.read(source.find_files(folder)).interactions
    for file in sorted(folder.iterdir()):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
        assert source.read(source.find_files(folder)).interactions.equals(packed)
    plain = folder / "All_Beauty.jsonl"
    assert source.read(source.find_files(plain)).interactions.equals(packed)


CELLS = st.text(
    st.sampled_from("ab7é \"',;|\t\n:#") | st.characters(codec="utf-8", exclude_categories=["Cc"]),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=12),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_program_wrote_is_read_back(
    table: list[tuple[str, ...]], separator: str, encoding: str, quoting: Any
) -> None:
    """Every table that a program wrote is read back, or the reader asks for a setting.

    It asks if a quoted text has several lines that each look like a row.
    """
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator="\n")
    writer.writerows([("user_id", "item_id", "timestamp"), *table])
    with tempfile.TemporaryDirectory() as folder:
        path, told = write(Path(folder), "log.csv", out.getvalue(), encoding), ""
        try:
            file = open_table(Place(path), ["user_id", "item_id", "timestamp"], TextSettings())
            found = read_table(file, ["user_id", "item_id", "timestamp"])
        except DataError as error:
            told = str(error)
    if told:
        assert "data.table.quote" in told
        return
    assert found.rows() == table


@settings(max_examples=200, deadline=None)
@example(b"x\x01", "log.jsonl")
@given(st.binary(max_size=60), st.sampled_from(["log.csv", "log.jsonl", "log.parquet", "log.zip"]))
def test_any_bytes_are_read_or_refused(scrap: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for content in (scrap, LOG.encode() + scrap, scrap + LOG.encode()):
            path, told = write(Path(folder), name, content), name
            try:
                raw(path)
            except DataError as error:
                told = str(error)
            assert name in told or "such as" in told


def parquet(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_parquet(out)
    return out.getvalue()


LINES = "user_id;item_id;timestamp;stars\n" + "".join(
    f'u{n};"i{n % 5}";{"2011-11-01 10:00:00" if n % 2 else 1320105600 + n};4,{n % 10}\n'
    for n in range(20)
)
DESCRIBED = "item_id,title,price\n" + "".join(f'i{n},"Lamp {n}"" tall",{n}.5\n' for n in range(5))
TABLES = {
    "log.csv": LINES.encode(),
    "log.csv.gz": gzip.compress(LINES.encode()),
    "log.tsv.zst": zstd(LINES.encode("utf-16")),
    "log.zip": zipped("log.csv")(LINES.encode()),
    "log.jsonl": b"".join(
        b'{"user_id": "u", "item_id": "i%d", "timestamp": 1320105600, "stars": 4}\n' % n
        for n in range(5)
    ),
    "log.parquet": parquet(
        pl.DataFrame({"user_id": ["u", "v"], "item_id": ["i1", "i2"], "timestamp": [1, 2]})
        .with_columns(stars=pl.lit(4.0))
    ),
}  # fmt: skip
SCRAPS = [
    *(b"\0", b"\r", b"\n\n", b"\t", b",", b";", b"::", b"|", b'"', b'""', b"'", b"#", b"{", b"}]"),
    *(b"null", b"nan", b"1e999", b"99999999999999999999", b"9/10/2011", b"20111101", b"1,234"),
    *(b"\xff\xfe", b"\xc3", b"\xef\xbb\xbf", "é\u2028".encode(), b"<html>", b"PAR1", b"sep=;"),
    b"x" * 100_000,
]


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([*TABLES, "items.csv"]),
    st.lists(
        st.tuples(
            st.floats(0, 1), st.sampled_from(["insert", "replace", "cut"]), st.sampled_from(SCRAPS)
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_damage_is_counted_or_refused(name: str, changes: list[tuple[float, str, bytes]]) -> None:
    content = DESCRIBED.encode() if name == "items.csv" else TABLES[name]
    for place, how, scrap in changes:
        at = int(place * len(content))
        rest = content[at + len(scrap) * (how == "replace") :]
        content = content[:at] if how == "cut" else content[:at] + scrap + rest
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        items = write(folder, "items.csv", content if name == "items.csv" else DESCRIBED)
        log = write(folder, "log.csv" if name == "items.csv" else name, TABLES.get(name, LINES))
        if name != "items.csv":
            log.write_bytes(content)
        table = Table(**TableConfig(items_path=items, weight="stars").model_dump())
        told = ""
        try:
            read = table.read(table.find_files(log), 0.9)
        except DataError as error:
            told = str(error)
    if told:
        assert folder.name in told
        return
    counts = read.counts
    assert read.interactions.height == counts["rows_read"] - counts["rows_malformed"]
    assert read.interactions.null_count().sum_horizontal().item() == 0
    left_out = counts["items_malformed"] + counts["items_repeated"]
    assert read.items.height == counts["items_read"] - left_out
    assert read.items["item_id"].is_unique().all()


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECGRIT_MAX_LINE_BYTES", str(2**16))
    monkeypatch.setattr(delimited, "PIECE_BYTES", 2**14)
    path = write(tmp_path, "log.csv", LOG + "x" * 2**18)
    with pytest.raises(DataError, match=r"line 4: [0-9,]+ bytes in one line, and 65,536"):
        rows(path)


def test_a_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "PIECE_BYTES", 2**12)
    path = write(tmp_path, "log.csv", "user_id,item_id\n" + "a,b\n" * 2**16)
    file = delimited.TextFile(Place(path), ("user_id", "item_id"), TextSettings())
    num_read = 0

    def watched(place: Place, size: int) -> Iterator[bytes]:
        nonlocal num_read
        for piece in read_pieces(place, size):
            num_read += 1
            yield piece

    monkeypatch.setattr(delimited, "read_pieces", watched)
    parts = file.rows(["user_id"])
    first = next(parts)
    assert num_read <= 2
    assert first.frame.height + sum(part.frame.height for part in parts) == 2**16
    assert num_read > 60


def test_long_and_many_columns_are_cut_in_messages() -> None:
    assert reading.show_names(["a" * 400, "b"]) == f"{'a' * 60}…, b"
    assert reading.show_names([f"c{i}" for i in range(500)]).endswith("c29, and 470 more")
    assert reading.show_names([]) == "none"


@pytest.mark.parametrize(
    ("header", "repeated"),
    [
        ("user_id,item_id,timestamp,timestamp", "timestamp"),
        ("user_id,item_id,user_id,timestamp", "user_id"),
    ],
)
def test_a_duplicate_column_is_refused(header: str, repeated: str, tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", f"{header}\nu1,i1,1320105600,1320105601\n")
    with pytest.raises(DataError, match=rf"log\.csv has several columns called {repeated}"):
        rows(path)


def test_an_unused_column_may_be_duplicate(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,note,note\nü1,i1,1320105600,a,b\nu2,i2,1320105660,a,b\n"
    assert rows(write(tmp_path, "log.csv", text)) == rows(write(tmp_path, "plain.csv", LOG))


@pytest.mark.parametrize("repeated", ["title", "item_id"])
def test_duplicate_title_and_id_columns_of_items_are_refused(repeated: str, tmp_path: Path) -> None:
    items = write(tmp_path, "items.csv", f"item_id,title,{repeated}\ni1,Lamp,Home\n")
    with pytest.raises(DataError, match=rf"items\.csv has several columns called {repeated}"):
        raw(write(tmp_path, "log.csv", LOG), items_path=items)


def test_fractions_of_seconds_in_some_blocks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "PIECE_BYTES", 400)
    times = [f"2022-07-22 08:15:{n:02d}" for n in range(50)]
    for place in (2, 48):
        odd = [time + ".5" * (n == place) for n, time in enumerate(times)]
        lines = [f"u1,i{n},{time}\n" for n, time in enumerate(odd)]
        path = write(tmp_path, "log.csv", "user_id,item_id,timestamp\n" + "".join(lines))
        found = raw(path).coded.frame
        assert found["fraction"].to_list() == [0.5 * (n == place) for n in range(50)]
