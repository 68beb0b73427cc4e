"""An item has the same text in every format and file, and columns may have any name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.config import TableConfig
from recgrit.data.items import ItemTable
from recgrit.data.sources.item_table import read_item_table
from recgrit.data.sources.table import Table
from recgrit.embedding.text import build_item_texts, choose_text
from recgrit.errors import DataError
from recgrit.serving.files import read_items


def read(path: Path, **names: Any) -> pl.DataFrame:
    table = Table(**TableConfig(**names).model_dump())
    return read_item_table(
        [path],
        item_id=table.item_id,
        title=table.title,
        text=table.text(table.item_columns),
        max_malformed_share=0,
    ).frame


def write(folder: Path, text: str, name: str = "items.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_other_columns_may_have_any_name(tmp_path: Path) -> None:
    text = "item_id,asin,title,name,line,file,timestamp\n0,a,old,New,Home,f,t\n1,b,o,N,H,g,u\n"
    frame = read(write(tmp_path, text), item_id="asin", title="name")
    assert frame.rows(named=True)[0] == {
        "item_id": "a",
        "title": "New",
        "item_id_column": "0",
        "title_column": "old",
        "line": "Home",
        "file": "f",
        "timestamp": "t",
    }


def test_a_named_column_that_is_absent_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "item_id,name\na,A\n")
    with pytest.raises(DataError, match=r"items\.csv lacks the column nmae; it has item_id, name"):
        read(path, title="nmae")
    with pytest.raises(DataError, match=r"lacks the column sku.*data\.table\.items_id=COLUMN"):
        read(path, item_id="sku")
    assert read(path)["title"].to_list() == [None]
    assert "has no column title, so items are titled by their id; it has name" in caplog.text


def test_cells_are_tidied(tmp_path: Path) -> None:
    text = (
        "item_id,title,brand,size,fresh\n"
        ' a ,Oak &amp; Pine,<b>B&amp;O</b>,5.0,True\nb," two \n lines",, 5,False\n'
    )
    assert read(write(tmp_path, text)).rows() == [
        ("a", "Oak & Pine", "B&O", "5", "true"),
        ("b", "two lines", None, "5", "false"),
    ]


@pytest.mark.parametrize(
    ("cells", "prices"),
    [
        (["19.99", "5.0", ""], [19.99, 5.0, None]),
        (["$19.99", "EUR 5", "7 €"], [19.99, 5.0, 7.0]),
        (['"19,99"', '"1.250,00"', "7"], [19.99, 1250.0, 7.0]),
        (['"1,299.00"', "5", "from 3.50"], [1299.0, 5.0, None]),
        (["-1", "nan", "3-5"], [None, None, None]),
    ],
)
def test_prices_are_numbers(tmp_path: Path, cells: list[str], prices: list[float | None]) -> None:
    rows = [f"i{place},{cell}" for place, cell in enumerate(cells)]
    assert read(write(tmp_path, "\n".join(["item_id,price", *rows])))["price"].to_list() == prices


def test_an_odd_cell_late_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"z{place},oak,{place}" for place in range(300)]
    path = write(tmp_path, "\n".join(["item_id,title,price", *rows, "zz,oak,from 3.50"]))
    assert read(path)["price"].to_list()[-2:] == [299.0, None]
    assert "1 prices are not numbers, such as 'from 3.50'" in caplog.text


def test_types_of_parquet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    frame = pl.DataFrame(
        {
            "item_id": [1, 2],
            "title": pl.Series(["A", None], dtype=pl.Categorical),
            "tags": pl.Series([["a &amp; b", "c"], ["d", ""]], dtype=pl.Array(pl.String, 2)),
            "paths": [[["x", "y"]], [["z"]]],
            "stock": [1.0, float("nan")],
            "picture": [b"x", b"y"],
            "maker": [{"name": "m"}, {"name": "n"}],
        }
    )
    frame.write_parquet(tmp_path / "items.parquet")
    assert read(tmp_path / "items.parquet").rows() == [
        ("1", "A", ["a & b", "c"], [["x", "y"]], 1.0),
        ("2", None, ["d", None], [["z"]], None),
    ]
    assert "left out picture (raw bytes), maker (structs of fields)" in caplog.text


@pytest.mark.parametrize(
    ("titles", "found"),
    [
        (pl.Series([float("nan")] * 2), [None, None]),
        (pl.Series([7, 8]), ["7", "8"]),
        (pl.Series([7.0, 8.5]), ["7", "8.5"]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_titles_of_other_types(tmp_path: Path, titles: pl.Series, found: list[Any]) -> None:
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": titles})
    frame.write_parquet(tmp_path / "items.parquet")
    assert read(tmp_path / "items.parquet")["title"].to_list() == found


@pytest.mark.parametrize("titles", [[["A"], ["B"]], [{"en": "A"}, {"en": "B"}], [b"A", b"B"]])
def test_titles_that_are_no_text(tmp_path: Path, titles: list[Any]) -> None:
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": titles})
    frame.write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet: the column title .*cannot be titles"):
        read(tmp_path / "items.parquet")


CELLS = st.one_of(
    st.sampled_from(["5", "5.0", "True", "red", "from 3.50", "", " x ", "A &amp; B", "2001"]),
    st.text(st.characters(codec="ascii", exclude_characters="\r\n", min_codepoint=32), max_size=9),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=2, max_size=8))
def test_an_item_is_the_same_alone_and_among_others(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    """An item's text depends on its own row alone, so equal rows get equal first codes."""
    folder = tmp_path_factory.mktemp("items")
    frame = pl.DataFrame(cells, schema=["title", "size"], orient="row").with_columns(
        item_id=pl.int_range(len(cells)).cast(pl.String) + "x"
    )
    frame.write_csv(folder / "all.csv", quote_style="always")
    frame.write_parquet(folder / "all.parquet")
    whole = read_items(folder / "all.csv")
    template = "{title}; {size}"
    texts = build_item_texts(whole, template)
    assert build_item_texts(read_items(folder / "all.parquet"), template) == texts
    for place in range(len(cells)):
        frame[place : place + 1].write_csv(folder / "one.csv", quote_style="always")
        assert build_item_texts(read_items(folder / "one.csv"), template) == [texts[place]]


def test_columns_may_have_the_names_of_the_run_or_the_default_names(tmp_path: Path) -> None:
    names = TableConfig(item_id="sku", title="name")
    for header in ("sku,name", "item_id,name", "sku,title", "item_id,title"):
        items = read_items(write(tmp_path, f"{header}\na,Oak &amp; Pine\n"), names)
        assert items.frame.rows() == [("a", "Oak & Pine")]
    with pytest.raises(DataError, match="lacks the column name"):
        read_items(write(tmp_path, "sku,nmae\na,A\n"), names)


def shop(**columns: Any) -> ItemTable:
    ids = [f"i{place}" for place in range(3)]
    return ItemTable(pl.DataFrame({"item_id": ids, "title": ["Oak", "Elm", "Fir"]} | columns))


def test_text_uses_what_the_shop_has() -> None:
    long = " ".join(["word"] * 100)
    items = shop(
        colour=["red", "dark brown", None],
        price=[1.5, 2.0, 3.0],
        price_eur=["12.5", "13", "1"],
        stock=[1, 2, 3],
        brand=["A", "B", "C"],
        description=[long, "Short.", "-"],
        image=["https://x.y/1.jpg", "https://x.y/2.jpg", None],
        ean=["A-4006381", "B-4006382", "C-4006383"],
        listed=["2024-01-01", "2024-01-02", "2024-01-03"],
        shop=["web shop"] * 3,
        new=["true", "false", "true"],
        labels=[["a", "b"], ["c"], []],
    )
    chosen = choose_text(items)
    assert chosen.used == ("title", "brand", "price", "colour", "description", "labels")
    assert chosen.template == (
        "{title}. Brand: {brand}. Price: {price}. Colour: {colour:300}. "
        "Description: {description:300}. Labels: {labels:300}."
    )
    assert chosen.left_out == {
        "price_eur": "numbers or dates",
        "stock": "numbers or dates",
        "image": "addresses",
        "ean": "codes",
        "listed": "numbers or dates",
        "shop": "the same for all items",
        "new": "true or false",
    }
    assert "left out: price_eur (numbers or dates); stock" in chosen.describe()
    texts = build_item_texts(items, chosen.template)
    assert texts[0] == (
        "Oak. Brand: A. Price: $1 to $2. Colour: red. "
        f"Description: {' '.join(['word'] * 60)}. Labels: a, b."
    )


def test_lengths_in_a_template() -> None:
    items = shop(description=["one two three", "onetwothree", "one two"])
    assert build_item_texts(items, "{description:7}") == ["one two", "onetwot", "one two"]
