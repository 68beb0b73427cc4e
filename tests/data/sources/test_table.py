from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recgrit.data.config import DataConfig, TableConfig
from recgrit.data.prepare import prepare
from recgrit.data.sources.table import Table
from recgrit.errors import DataError

ROWS = pl.DataFrame(
    {
        "uid": [7, 9, 7, 7],
        "sku": ["a", "b", "b", "c"],
        "at": [100, 50, 100, 90],
        "stars": [4.0, 5.0, 3.0, 5.0],
        "channel": ["web", "app", "web", "web"],
    }
)
ITEMS = pl.DataFrame({"sku": ["a", "b"], "name": ["Rose &amp; soap", "Comb"], "price": [4.5, None]})
NAMES = {"user_id": "uid", "item_id": "sku", "timestamp": "at", "weight": "stars"}


def new_table(**columns: Any) -> Table:
    return Table(**TableConfig(**columns).model_dump())


def read(path: Path, table: Table | None = None, **settings: float) -> pl.DataFrame:
    table = table or new_table(**NAMES)
    return table.read(table.find_files(path), **settings).interactions


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz"])
def test_columns_are_mapped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        ROWS.write_parquet(path)
    else:
        ROWS.write_csv(path, compression="gzip" if name.endswith("gz") else "uncompressed")
    assert read(path).rows() == [
        ("7", "a", 100, 4.0),
        ("9", "b", 50, 5.0),
        ("7", "b", 100, 3.0),
        ("7", "c", 90, 5.0),
    ]
    assert read(tmp_path).equals(read(path))


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    ROWS[2:].write_parquet(tmp_path / "2024-02.parquet")
    ROWS[:2].write_parquet(tmp_path / "2024-01.parquet")
    ROWS[:1].write_parquet(tmp_path / "old.parquet")
    assert read(tmp_path / "2024-*.parquet")["user_id"].to_list() == ["7", "9", "7", "7"]
    assert read(tmp_path).height == 5


def test_items_bring_their_own_fields(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "log.parquet")
    ITEMS.write_csv(tmp_path / "items.csv")
    table = new_table(**NAMES, title="name", items_path=tmp_path / "items.csv")
    raw = table.read(table.find_files(tmp_path / "log.parquet"))
    assert raw.items.rows() == [("a", "Rose & soap", 4.5), ("b", "Comb", None)]
    assert raw.items.columns == ["item_id", "title", "price"]
    assert [path.name for path in raw.files] == ["log.parquet", "items.csv"]


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([1.5e9 + 0.7, 1.5e9 + 0.2], "s"),
        ([1_500_000_000_700, 1_500_000_000_200], "ms"),
        ([1_500_000_000_700_000_000, 1_500_000_000_200_000_000], "ns"),
        ([datetime(2017, 7, 14, 2, 40, 0, 700_000), datetime(2017, 7, 14, 2, 40)], "s"),
        (["2017-07-14 02:40:00.700", "2017-07-14 02:40:00.200"], "s"),
    ],
)
def test_times_become_seconds_and_keep_their_order(tmp_path: Path, times: list, unit: str) -> None:
    rows = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["late", "early"], "timestamp": times})
    rows.write_parquet(tmp_path / "log.parquet")
    for table in ({"time_unit": unit}, {}):
        assert read(tmp_path, new_table(**table))["timestamp"].to_list() == [1_500_000_000] * 2
        data = prepare(all_rows(tmp_path, table))
        assert data.interactions.to_polars()["item_id"].to_list() == ["early", "late"]


def all_rows(path: Path, table: dict[str, Any] | None = None, **values: Any) -> DataConfig:
    least = {"min_user_interactions": 1, "min_item_interactions": 1}
    shop = {"source": "table", "path": path, "table": table or {}}
    return DataConfig.model_validate(shop | least | values)


def test_rows_with_gaps_are_counted(tmp_path: Path) -> None:
    many = pl.concat([ROWS] * 25)
    gaps = ROWS[:2].with_columns(
        uid=pl.Series([None, 7], dtype=pl.Int64), at=pl.Series([1, None], dtype=pl.Int64)
    )
    pl.concat([many, gaps]).write_parquet(tmp_path / "log.parquet")
    table = new_table(user_id="uid", item_id="sku", timestamp="at")
    raw = table.read(table.find_files(tmp_path))
    assert raw.counts["rows_malformed"] == 2
    assert raw.counts["rows_without_id"] == 1
    assert raw.interactions.height == 100


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.drop("uid"), r"lacks the column uid; it has sku, at.*data\.table\.user_id=COLUMN"),
        (ROWS.with_columns(pl.col("uid") + 0.0), "ids with decimals"),
        (ROWS.with_columns(at=pl.lit("soon")), "4 of 4 lines are malformed.*time_format"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(
    tmp_path: Path, rows: pl.DataFrame, message: str
) -> None:
    rows.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_missing_damaged_and_mixed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no such file: expected Parquet or CSV"):
        read(tmp_path)
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(tmp_path)
    (tmp_path / "log.csv").write_text("uid,sku,at,stars\n1,a,1,2,3,4\n")
    with pytest.raises(DataError, match=r"line 2 \(1 have too many or too few fields\)"):
        read(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"files of several kinds \(\.parquet, \.csv\)"):
        read(tmp_path)


def test_a_table_is_prepared_by_settings_alone(tmp_path: Path) -> None:
    pl.concat([ROWS] * 2).with_columns(at=pl.int_range(8)).write_parquet(tmp_path / "log.parquet")
    config = DataConfig.model_validate(
        {
            "source": "table",
            "path": tmp_path,
            "table": NAMES,
            "min_user_interactions": 1,
            "min_item_interactions": 1,
        }
    )
    data = prepare(config)
    assert data.interactions.num_users == 2
    assert data.items.titles.to_list() == data.items.item_ids.to_list()


def test_parquet_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    """Some of this damage makes other Parquet readers end the process. This reader must not."""
    path = tmp_path / "log.parquet"
    ROWS.write_parquet(path)
    good = path.read_bytes()
    told = 0
    for place in range(4, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            read(tmp_path, max_malformed_share=0.9)
        except DataError as error:
            told += "log.parquet" in str(error)
    assert told > 100
