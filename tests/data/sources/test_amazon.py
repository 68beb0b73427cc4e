from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.sources import RawData, load_source
from recgrit.data.sources.amazon import parse_literal
from recgrit.errors import DataError


def read(folder: Path, category: str = "Beauty", **settings: float) -> RawData:
    source = load_source(f"amazon2014/{category}")
    return source.read(source.find_files(folder), **settings)


def write_metadata(folder: Path, *lines: str) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress(content))


@pytest.fixture
def folder(write_dataset: Callable[..., Path]) -> Path:
    return write_dataset("amazon2014/Beauty")


def test_fields_of_an_item(folder: Path) -> None:
    assert read(folder).items.rows(named=True)[0] == {
        "item_id": "10",
        "title": "Toy Story",
        "brand": "Bell's",
        "categories": ["Beauty", "Animation", "Comedy"],
        "price": 1995.0,
        "description": None,
    }


def test_scraped_values_become_null_or_clean(folder: Path) -> None:
    write_metadata(
        folder,
        "{'asin': 'a', 'title': 'L&#39;Or\\n<b>No 5</b>', 'brand': 'Unknown', "
        "'price': '$1,299.00'}",
        "{'asin': 'b', 'title': '  ', 'brand': '', 'price': '.a-box { margin: 0 }'}",
        "{'asin': 'c', 'title': None, 'brand': None, 'categories': []}",
        "{'asin': 'd', 'title': ['odd'], 'brand': 'None', 'categories': None, 'price': True}",
        '{"asin": "e", "title": "JSON \'too\'", "price": null, "categories": [["A"], ["A"]]}',
    )
    rows = {row["item_id"]: row for row in read(folder).items.iter_rows(named=True)}
    assert (rows["a"]["title"], rows["a"]["brand"], rows["a"]["price"]) == ("L'Or No 5", None, 1299)
    for item in "bcd":
        assert set(rows[item].values()) == {item, None}
    assert (rows["e"]["title"], rows["e"]["categories"]) == ("JSON 'too'", ["A"])


def test_metadata_is_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    write_metadata(folder, f"__import__('pathlib').Path({str(trap)!r}).touch()", "{'asin': '10'}")
    raw = read(folder, max_malformed_share=0.5)
    assert raw.counts["items_malformed"] == 1
    assert not trap.exists()


@pytest.mark.parametrize("text", ["", "[1]", "{'a': }", "(" * 5000, "{'a': open}", "\0"])
def test_what_is_no_dict_literal(text: str) -> None:
    assert parse_literal(text) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), values, max_size=4))
def test_every_dict_literal_is_read_back(fields: dict[str, object]) -> None:
    assert parse_literal(repr(fields)) == fields


def test_truncated_gzip(folder: Path) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or incomplete gzip"):
        read(folder)


def test_unpacked_under_its_old_name(folder: Path) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert read(folder).counts["rows_read"] == 6


def test_times_as_text_are_read_line_by_line(folder: Path) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    text = gzip.decompress(path.read_bytes()).replace(b": 100}", b': "100"}')
    path.write_bytes(gzip.compress(text))
    assert read(folder).interactions["timestamp"].to_list() == [100, 50, 100, 90, 60, 70]


def test_copies_without_stars_have_no_weight(folder: Path) -> None:
    path = folder / "reviews_Beauty_5.json.gz"
    text = gzip.decompress(path.read_bytes()).replace(b"overall", b"helpful")
    path.write_bytes(gzip.compress(text))
    assert read(folder).interactions.columns == ["user_id", "item_id", "timestamp"]


def test_files_of_another_category_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected reviews_Baby_5\.json\.gz or .*, and meta_Baby"):
        read(folder, "Baby")


@pytest.mark.parametrize(
    ("folder_name", "category", "users", "items", "rows", "titles"),
    [
        ("amazon2014-beauty", "Beauty", 22_363, 12_101, 198_502, 12_094),
        ("amazon2014-sports", "Sports_and_Outdoors", 35_598, 18_357, 296_337, 18_357),
    ],
)
def test_real_files(
    folder_name: str,
    category: str,
    users: int,
    items: int,
    rows: int,
    titles: int,
    real_data: Callable[[str], Path],
) -> None:
    raw = read(real_data(folder_name), category)
    assert raw.interactions["user_id"].n_unique() == users
    assert raw.interactions["item_id"].n_unique() == items
    assert raw.interactions.height == rows
    assert raw.items["title"].count() == titles
    assert raw.items["title"].str.contains("&amp;|<|\n").sum() == 0
    assert raw.counts["rows_malformed"] == raw.counts["items_malformed"] == 0


def test_ready_splits_are_read_in_their_order(write_dataset: Callable[..., Path]) -> None:
    source = load_source("amazon2023/All_Beauty")
    raw = source.read(source.find_files(write_dataset("amazon2023/All_Beauty as splits")))
    assert len(raw.files) == 4
    of_seven = raw.interactions.filter(user_id="7")
    assert of_seven["item_id"].to_list() == ["20", "30", "10"]
    assert of_seven["timestamp"].to_list() == [90, 100, 100]
    assert raw.counts["rows_read"] == 6


@pytest.mark.parametrize(
    ("name", "description"),
    [("amazon2018/Gift_Cards", "One & two."), ("amazon2023/All_Beauty", "One two.")],
)
def test_fields_of_later_editions(
    name: str, description: str, write_dataset: Callable[..., Path]
) -> None:
    source = load_source(name)
    items = source.read(source.find_files(write_dataset(name))).items
    assert items.row(0, named=True) == {
        "item_id": "10",
        "title": "Toy Story",
        "brand": "Bell's",
        "categories": ["Beauty", "Animation"],
        "price": 1995.0,
        "description": description,
    }
    assert items["title"].to_list()[2] is None


def test_a_named_file_decides_between_copies(write_dataset: Callable[..., Path]) -> None:
    folder = write_dataset("amazon2023/All_Beauty as splits")
    write_dataset("amazon2023/All_Beauty")  # This writes the reviews beside the splits.
    source = load_source("amazon2023/All_Beauty")
    assert len(source.find_files(folder)) == 4
    assert [path.name for path in source.find_files(folder / "All_Beauty.jsonl.gz")] == [
        "All_Beauty.jsonl.gz",
        "meta_All_Beauty.jsonl.gz",
    ]


def test_real_files_of_2018(real_data: Callable[[str], Path]) -> None:
    source = load_source("amazon2018/Gift_Cards")
    raw = source.read(source.find_files(real_data("amazon2018-gift-cards")))
    assert raw.interactions.height == 2_972
    assert raw.interactions["user_id"].n_unique() == 458
    assert raw.interactions["item_id"].n_unique() == 148
    assert raw.items.height == 1_547 - raw.counts["items_repeated"]
    assert raw.counts["rows_malformed"] == raw.counts["items_malformed"] == 0
    assert raw.items["title"].str.contains("<|\n|function").sum() == 0


def read_2023(folder: Path) -> RawData:
    source = load_source("amazon2023/All_Beauty")
    return source.read(source.find_files(folder))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id,parent_asin,rating,timestamp,parent_asin", "names parent_asin once"),
        ("user_id,rating,timestamp", "names parent_asin, got"),
    ],
)
def test_invalid_headers_of_tables_are_refused(
    write_dataset: Callable[..., Path], header: str, message: str
) -> None:
    folder = write_dataset("amazon2023/All_Beauty as splits")
    path = folder / "All_Beauty.train.csv.gz"
    rest = gzip.decompress(path.read_bytes()).partition(b"\n")[2]
    path.write_bytes(gzip.compress(header.encode() + b"\n" + rest))
    with pytest.raises(DataError, match=rf"All_Beauty\.train\.csv\.gz .*{message}"):
        read_2023(folder)


def test_columns_that_are_not_read_may_be_called_anything(
    write_dataset: Callable[..., Path],
) -> None:
    folder = write_dataset("amazon2023/All_Beauty as splits")
    for path in folder.glob("*.csv.gz"):
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content.replace(b",history\n", b",line\n", 1)))
    assert read_2023(folder).counts["rows_read"] == 6
