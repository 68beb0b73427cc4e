"""Ids are kept unchanged, damaged ids are refused, and ids without a match are reported."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.config import DataConfig
from recgrit.data.id_columns import ITEM_SETTINGS, as_ids, refuse_damaged_ids, require_meeting_ids
from recgrit.data.prepare import PreparedData, prepare
from recgrit.errors import DataError


def prepare_shop(folder: Path, items: Path | None = None) -> PreparedData:
    values = {"source": "table", "path": folder / "log", "table": {"items_path": items}}
    least = {"min_user_interactions": 1, "min_item_interactions": 1}
    return prepare(DataConfig.model_validate(values | least))


def write_log(folder: Path, *parts: list[str]) -> None:
    (folder / "log").mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        lines = [f"7,{item},{1_320_105_600 + 10 * number + n}" for n, item in enumerate(part)]
        text = "\n".join(["user_id,item_id,timestamp", *lines, ""])
        (folder / "log" / f"{number}.csv").write_text(text)


@pytest.mark.parametrize(
    "ids",
    [
        ["1", "7.0"],
        ["17850.0", "17851.0"],
        ["1.5", "2.5"],
        ["a", "7.00"],
        ["1.23E+12", "a"],
        ["-7.0", "x"],
    ],
)
def test_decimals_are_refused_as_in_parquet(tmp_path: Path, ids: list[str]) -> None:
    write_log(tmp_path, ids)
    with pytest.raises(
        DataError, match=r"0\.csv has ids with (decimals|exponents).*column item_id"
    ):
        prepare_shop(tmp_path)
    with pytest.raises(DataError, match="ids with decimals"):
        as_ids(pl.Series([1.0, 2.0]), "log.parquet", "item_id")


@pytest.mark.parametrize("ids", [["7,0", "8,0"], ["7", "8,00"]])
def test_decimals_with_a_comma_are_refused(ids: list[str]) -> None:
    with pytest.raises(DataError, match=r"log\.csv has ids with decimals .*'[78],0"):
        refuse_damaged_ids(pl.Series(ids), "log.csv", "item_id")


def test_decimals_in_one_part_are_refused_with_its_name(tmp_path: Path) -> None:
    write_log(tmp_path, ["100", "101"], ["100.0", "101.0"])
    with pytest.raises(DataError, match=r"1\.csv has ids with decimals"):
        prepare_shop(tmp_path)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["007", "7", "v1.2", "1.2.3", "1.2", "1e5", "A.0", "-", "7,0"])))
def test_other_ids_are_text(ids: list[str]) -> None:
    if set(ids) == {"1.2"} or ("7,0" in ids and set(ids) <= {"007", "7", "7,0"}):
        return
    refuse_damaged_ids(pl.Series(ids, dtype=pl.String), "log.csv", "item_id")


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (pl.Series([["a"]]), "lists"),
        (pl.Series([["a"]], dtype=pl.Array(pl.String, 1)), "lists"),
        (pl.Series([{"id": "a"}]), "structs"),
        (pl.Series([b"a"]), "raw bytes"),
        (pl.Series([True]), "true or false"),
        (pl.Series([datetime.date(2011, 1, 1)]), "Date"),
    ],
)
def test_types_that_are_no_ids(ids: pl.Series, what: str) -> None:
    with pytest.raises(DataError, match=rf"log\.parquet: the column sku holds {what}"):
        as_ids(ids, "log.parquet", "sku")


@pytest.mark.parametrize(
    "dtype", [pl.Int8, pl.UInt64, pl.String, pl.Categorical, pl.Decimal(10, 0), pl.Null]
)
def test_types_that_are_ids(dtype: Any) -> None:
    given_ids = pl.Series([None]) if dtype == pl.Null else pl.Series(["7"]).cast(dtype)
    found = as_ids(given_ids, "log.parquet", "sku").cast(pl.String).to_list()
    assert found == [None if dtype == pl.Null else "7"]


def test_zeros_at_the_start_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_log(tmp_path, ["007", "08"], ["7", "08"])
    data = prepare_shop(tmp_path)
    assert data.interactions.item_ids.to_list() == ["007", "08", "7"]
    assert "with and without leading zeros, such as '007' and '7'" in caplog.text


def test_ids_that_may_mean_a_missing_value_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path, ["a", "nan", "NULL", "b"])
    assert prepare_shop(tmp_path).interactions.num_items == 4, "they are taken as they are"
    assert "item_id has ids that may mean a missing value: 'nan', 'NULL'" in caplog.text


@pytest.mark.parametrize(
    ("log", "described", "why"),
    [
        (["007", "008"], ["7", "8"], "They differ in leading zeros, which one side lost"),
        (["a1", "b2"], ["A1", "B2"], "They differ in upper and lower case"),
        (["SKU-7", "SKU-8"], ["7", "8"], "They differ in the text before the number"),
        (["a", "b"], ["x", "y"], "the item table such as 'x', 'y'"),
    ],
)
def test_an_item_table_that_matches_no_id_is_refused(
    tmp_path: Path, log: list[str], described: list[str], why: str
) -> None:
    write_log(tmp_path, log)
    items = tmp_path / "items.csv"
    items.write_text("\n".join(["item_id,title", *(f"{i},Item" for i in described)]))
    with pytest.raises(DataError, match=rf"None of the 2 items.*'{log[0]}', '{log[1]}'.*{why}"):
        prepare_shop(tmp_path, items)


def test_an_item_table_that_matches_few_ids_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    log = pl.Series(["a", "b", "c"])
    require_meeting_ids(log, pl.Series(["a", "x"]), ITEM_SETTINGS)
    assert "Only 1 of the 3 items" in caplog.text
    assert "such as 'b', 'c', the item table such as 'x'" in caplog.text
    caplog.clear()
    require_meeting_ids(log, pl.Series(["a", "b"]), ITEM_SETTINGS)
    require_meeting_ids(log, pl.Series([], dtype=pl.String), ITEM_SETTINGS)
    assert not caplog.text
    require_meeting_ids(log, pl.Series(["x"]), None)
    assert "None of the 3 items" in caplog.text
