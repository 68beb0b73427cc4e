from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recgrit.data.sources import RawData, load_source
from recgrit.errors import DataError

INTER = "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1.5e9\n"


def read(folder: Path) -> RawData:
    source = load_source("recbole")
    return source.read(source.find_files(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.inter").write_text(INTER)
    return tmp_path


def test_items_and_ratings_are_optional(folder: Path) -> None:
    raw = read(folder)
    assert raw.interactions.rows() == [("u", "i", 1_500_000_000)]
    assert dict(raw.items.schema) == {"item_id": pl.String, "title": pl.String}
    assert raw.items.is_empty()


def test_item_fields_by_type(folder: Path) -> None:
    (folder / "shop.item").write_text(
        "item_id:token\ttitle:token\tgenre:token\tprice:float\ttags:token_seq\tvec:float_seq\t"
        "brand:token\n"
        "i\tA &amp; B\tDrama War\t2.5\tx y\t1 2.5\tO&#39;Hara\n"
        "j\t\t\t\t\t\t\n"
    )
    items = read(folder).items
    assert items.rows(named=True)[0] == {
        "item_id": "i",
        "title": "A & B",
        "genres": ["Drama", "War"],
        "price": 2.5,
        "tags": ["x", "y"],
        "vec": [1.0, 2.5],
        "brand": "O'Hara",
    }
    assert items.rows()[1][:5] == ("j", None, None, None, None)


def test_items_without_any_title_field(folder: Path) -> None:
    (folder / "shop.item").write_text("item_id:token\tyear:float\ni\t1995.0\n")
    items = read(folder).items
    assert items.columns == ["item_id", "title", "year"]
    assert items.rows() == [("i", None, 1995)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem_id:token", "lacks timestamp"),
        ("item_id:token\ttimestamp:float", "lacks user_id"),
        ("user_id,item_id,timestamp", "name:type fields"),
        ("user_id\titem_id\ttimestamp", "name:type fields"),
    ],
)
def test_invalid_headers_are_refused(folder: Path, header: str, message: str) -> None:
    (folder / "shop.inter").write_text(f"{header}\n1\t2\t3\n")
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize("header", ["title:token", "item_id:token\ttitle:token\tname:token"])
def test_invalid_item_headers_are_refused(folder: Path, header: str) -> None:
    (folder / "shop.item").write_text(f"{header}\n1\t2\t3\n")
    with pytest.raises(DataError, match="needs the header field item_id:token and no field twice"):
        read(folder)


def test_two_data_sets_in_one_folder(folder: Path) -> None:
    (folder / "other.inter").write_text(INTER)
    message = r"exactly one \*\.inter file.*; found other\.inter, shop\.inter"
    with pytest.raises(DataError, match=message):
        read(folder)
    assert read(folder / "shop.inter").counts["rows_read"] == 1


def test_long_folders_are_not_listed_in_full(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.txt").touch()
    with pytest.raises(DataError, match=r"07\.txt and 4 more"):
        read(tmp_path)


def test_users_fields_by_type(folder: Path) -> None:
    assert read(folder).users is None
    (folder / "shop.user").write_text(
        "age:float\tuser_id:token\tzip:token\n30\tu\t01234\n\tv\t\n30\tu\t01234\n"
    )
    users = read(folder).users
    assert users is not None
    assert users.rows(named=True) == [
        {"user_id": "u", "age": 30.0, "zip": "01234"},
        {"user_id": "v", "age": None, "zip": None},
    ]


def test_users_described_twice_and_differently(folder: Path) -> None:
    (folder / "shop.user").write_text("user_id:token\tage:float\nu\t30\nu\t31\n")
    with pytest.raises(DataError, match=r"User ids must be unique.*'u' on lines 2 and 3"):
        read(folder)


def test_a_user_header_without_ids(folder: Path) -> None:
    (folder / "shop.user").write_text("age:float\n30\n")
    with pytest.raises(DataError, match="needs the header field user_id:token, got age"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shop.inter", INTER + "17850.0\tj\t1.5e9\n"),
        ("shop.inter", INTER.replace("\ti\t", "\t3.0\t")),
        ("shop.item", "item_id:token\ttitle:token_seq\n17850.0\tA film\n"),
        ("shop.user", "user_id:token\tage:token\n1.0\t33\n2.0\t34\n"),
    ],
)
def test_ids_that_were_written_as_decimals_are_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} has ids with decimals .* in the column \w+_id"):
        read(folder)
