"""Users whom the filters remove keep their interactions with the items that remain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.data.config import DataConfig
from recgrit.data.prepare import PreparedData, prepare
from recgrit.data.user_histories import UserHistories
from recgrit.errors import DataError

ITEMS = ["a", "b", "c", "d"]


def write_log(folder: Path) -> Path:
    """Write a log of six users with all four items and three users with too few interactions.

    User "few" has two known items and a rare one, "odd" has only a rare item, and "low" has one
    known item with a low rating.
    """
    rows = [(f"u{user}", item, 10 * t) for user in range(6) for t, item in enumerate(ITEMS)]
    rows += [("few", "c", 900), ("few", "rare", 500), ("few", "a", 100), ("odd", "rare", 7)]
    rows += [("low", "a", 40)]
    text = "\n".join(f"{u},{i},{t},{1 if u == 'low' else 5}" for u, i, t in rows)
    path = folder / "log.csv"
    path.write_text(f"user_id,item_id,timestamp,rating\n{text}\n")
    return path


def read(path: Path, **settings: Any) -> PreparedData:
    values: dict[str, Any] = {"min_user_interactions": 3, "min_item_interactions": 3, **settings}
    return prepare(DataConfig(source="table", path=path, **values))


def lists(left_out: UserHistories, item_ids: pl.Series) -> dict[str, list[str]]:
    return {
        user: item_ids.gather(left_out.split.full_sequence(row).tolist()).to_list()
        for row, user in enumerate(left_out.user_ids)
    }


@pytest.mark.parametrize("partition_users", [None, 2])
def test_histories_of_left_out_users_are_kept_in_time_order(
    tmp_path: Path, partition_users: int | None
) -> None:
    data = read(write_log(tmp_path), partition_users=partition_users)
    assert "few" not in data.interactions.user_ids
    assert lists(data.left_out, data.items.item_ids) == {"few": ["a", "c"], "low": ["a"], "odd": []}
    assert data.left_out.user_ids.to_list() == ["few", "low", "odd"], "those with a history first"
    data.save(tmp_path)
    again = PreparedData.load(tmp_path).left_out
    assert lists(again, data.items.item_ids) == lists(data.left_out, data.items.item_ids)


def test_rows_that_a_filter_drops_are_no_history(tmp_path: Path) -> None:
    data = read(write_log(tmp_path), min_weight=3, table={"weight": "rating"})
    assert lists(data.left_out, data.items.item_ids) == {"few": ["a", "c"], "odd": [], "low": []}


def test_no_user_is_left_out_if_all_are_kept(tmp_path: Path) -> None:
    data = read(write_log(tmp_path), min_user_interactions=1, min_item_interactions=1)
    assert data.left_out.user_ids.is_empty()
    assert data.left_out.split.num_users == 0
    data.save(tmp_path)
    assert PreparedData.load(tmp_path).left_out.user_ids.is_empty()


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6))
def test_saving_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("users")
    lengths = [len(items) for items in histories]
    written = UserHistories.of(
        pl.Series([f"u{row}" for row in range(len(histories))], dtype=pl.String),
        np.repeat(np.arange(len(histories)), lengths),
        np.array([item for items in histories for item in items], dtype=np.int32),
        10,
    )
    written.save(folder / "users.parquet")
    read = UserHistories.load(folder / "users.parquet", 10)
    assert read.user_ids.to_list() == written.user_ids.to_list()
    found = [read.split.full_sequence(row).tolist() for row in range(len(histories))]
    assert found == histories


def test_items_that_the_catalogue_lacks_are_refused(tmp_path: Path) -> None:
    UserHistories.of(pl.Series(["u"]), np.array([0]), np.array([7], np.int32), 8).save(
        tmp_path / "u.parquet"
    )
    with pytest.raises(DataError, match="outside the catalogue of 7"):
        UserHistories.load(tmp_path / "u.parquet", 7)
