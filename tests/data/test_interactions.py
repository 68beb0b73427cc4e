from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recgrit.data.interactions import Interactions
from recgrit.errors import DataError


def build(
    users: list[int] | None = None,
    items: list[int | None] | None = None,
    times: list[int] | None = None,
    user_ids: list[str] | None = None,
) -> Interactions:
    frame = pl.DataFrame(
        {
            "user_idx": users or [0, 0, 1],
            "item_idx": items or [1, 0, 1],
            "timestamp": times or [5, 5, 1],
            "weight": [1.0, 2.0, 3.0],
        },
        schema_overrides={
            "user_idx": pl.Int32,
            "item_idx": pl.Int32,
            "timestamp": pl.Int64,
            "weight": pl.Float32,
        },
    )
    return Interactions(frame, pl.Series(user_ids or ["ann", "bob"]), pl.Series(["x", "y"]))


def test_external_ids_come_back() -> None:
    interactions = build()
    assert (interactions.num_users, interactions.num_items, len(interactions)) == (2, 2, 3)
    frame = interactions.to_polars()
    assert frame["user_id"].to_list() == ["ann", "ann", "bob"]
    assert frame["item_id"].to_list() == ["y", "x", "y"]
    assert interactions.to_pandas()["item_id"].tolist() == ["y", "x", "y"]


def test_save_and_load(tmp_path: Path) -> None:
    interactions = build()
    interactions.save(tmp_path)
    loaded = Interactions.load(tmp_path)
    assert loaded.frame.equals(interactions.frame)
    assert loaded.to_polars().equals(interactions.to_polars())


def test_missing_column() -> None:
    with pytest.raises(DataError, match=r"missing: \['timestamp'\]"):
        Interactions(build().frame.drop("timestamp"), pl.Series(["a"]), pl.Series(["x"]))


def test_nulls() -> None:
    with pytest.raises(DataError, match="must not hold nulls"):
        build(items=[1, None, 0])


def test_repeated_ids() -> None:
    with pytest.raises(DataError, match="The user_ids must be unique"):
        build(user_ids=["ann", "ann"])


def test_ids_without_interactions() -> None:
    with pytest.raises(DataError, match="user_idx must be dense from 0 to 2"):
        build(user_ids=["ann", "bob", "eve"])


@pytest.mark.parametrize(("users", "times"), [([0, 1, 0], [1, 2, 3]), ([0, 0, 1], [5, 4, 1])])
def test_rows_out_of_order(users: list[int], times: list[int]) -> None:
    with pytest.raises(DataError, match="sorted by user_idx, then timestamp"):
        build(users=users, times=times)
