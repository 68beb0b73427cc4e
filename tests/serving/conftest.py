"""Fixtures of bundles of the tiny run. Its films have words and genres of four groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle


@pytest.fixture(scope="session")
def run(tiny_run: Any) -> Run:
    return Run(tiny_run.directory)


@pytest.fixture(scope="session")
def bundle(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export the first bundle of the run, which tests only read."""
    return export_bundle(run, tmp_path_factory.mktemp("bundles") / "first")


@pytest.fixture(scope="session")
def histories(run: Run) -> dict[str, list[str]]:
    """Return the items that each user of the run interacted with."""
    return {user: run.history(user)["item_id"].to_list() for user in run.data.interactions.user_ids}


@pytest.fixture(scope="session")
def like(run: Run) -> Callable[..., ItemTable]:
    """Return new items with the attributes of old items, so all their IDs collide."""

    def make(item_ids: list[str], prefix: str = "new ") -> ItemTable:
        rows = run.data.items.frame.filter(pl.col("item_id").is_in(item_ids))
        return ItemTable(rows.with_columns((pl.lit(prefix) + pl.col("item_id")).alias("item_id")))

    return make
