from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.errors import DataError

FRAME = pl.DataFrame(
    {"item_id": ["x", "y"], "title": ["Soap", "y"], "categories": [["A", "B"], None]}
)


def test_rows_follow_item_idx() -> None:
    items = ItemTable(FRAME)
    assert len(items) == 2
    assert items.item_ids.to_list() == ["x", "y"]
    assert items.titles.to_list() == ["Soap", "y"]
    assert items.to_polars().equals(FRAME)
    assert items.to_pandas()["title"].tolist() == ["Soap", "y"]


def test_save_and_load(tmp_path: Path) -> None:
    ItemTable(FRAME).save(tmp_path)
    assert ItemTable.load(tmp_path).frame.equals(FRAME)


@pytest.mark.parametrize("name", ["item_id", "title"])
def test_required_columns(name: str) -> None:
    with pytest.raises(DataError, match=f"needs the column '{name}'"):
        ItemTable(FRAME.drop(name))
    with pytest.raises(DataError, match=f"'{name}' of an item table must not hold nulls"):
        ItemTable(FRAME.with_columns(pl.lit(None, dtype=pl.String).alias(name)))


def test_repeated_ids_are_named() -> None:
    with pytest.raises(DataError, match=r"must be unique; 1 are repeated, the first \['x'\]"):
        ItemTable(pl.concat([FRAME, FRAME.head(1)]))


@pytest.mark.parametrize("item_id", ["", "  ", "\t", "\0", "a\0b"])
def test_ids_without_a_character_are_refused(item_id: str) -> None:
    """Polars reads NUL where JSON has an unpaired surrogate."""
    with pytest.raises(DataError, match="Item ids must be text; 1 are empty"):
        ItemTable(pl.DataFrame({"item_id": ["x", item_id], "title": ["Soap", "y"]}))
