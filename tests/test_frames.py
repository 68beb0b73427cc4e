"""Make runs from data frames, and print runs and their parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

import recgrit
from recgrit.errors import ConfigError, DataError
from recgrit.frames import _set
from recgrit.runs import Run
from recgrit.serving.writing import export_bundle
from tests.conftest import TINY_SETTINGS

FinishedRun = Any
NAMES = {
    "data__table__user_id": "who",
    "data__table__item_id": "sku",
    "data__table__timestamp": "at",
}


@pytest.fixture(scope="module")
def log(tiny_run: FinishedRun) -> pl.DataFrame:
    names = ["who", "sku", "stars", "at"]
    text = (tiny_run.data / "u.data").read_text()
    rows = [tuple(map(int, line.split("\t"))) for line in text.splitlines()]
    return pl.DataFrame(rows, schema=names, orient="row")


def goods() -> pl.DataFrame:
    return pl.DataFrame({"sku": range(1, 41), "title": [f"Soap {i}" for i in range(40)]})


def fit(events: Any, items: Any, folder: Path, **settings: Any) -> Run:
    run: Run = recgrit.fit(
        events, items, **{**TINY_SETTINGS, **NAMES}, run__dir=folder, tracking__backend="none",
        **settings,
    )  # fmt: skip
    return run


def test_frames_of_pandas_and_polars_give_the_same_run(log: pl.DataFrame, tmp_path: Path) -> None:
    first = fit(log, goods(), tmp_path / "polars", retriever__epochs=1)
    assert first.config.retriever.epochs == 1
    assert first.config.retriever.model_dim == 16, "the rest of the section stays"
    listed = first.recommend(["1"], top_k=3)
    assert listed["title"].str.starts_with("Soap").all()
    pandas = log.to_pandas().astype({"who": str}).set_index("who")
    second = fit(pandas, goods().to_pandas(), tmp_path / "pandas", retriever__epochs=1)
    assert second.recommend(["1"], top_k=3).equals(listed)
    before = first.manifest("train").created
    again = fit(log, goods(), tmp_path / "polars", retriever__epochs=1)
    assert again.manifest("train").created == before, "nothing is done twice"


def test_a_frame_of_users_gives_segments(log: pl.DataFrame, tmp_path: Path) -> None:
    users = log["who"].unique(maintain_order=True)
    plans = pl.DataFrame({"who": users, "plan": ["free", "paid"] * (len(users) // 2)})
    run = fit(log, goods(), tmp_path, users=plans, evaluation__segments=["plan"], until="prepare")
    assert run.config.data.table.users_path == tmp_path / "inputs" / "users.parquet"
    assert run.data.users is not None
    with pytest.raises(ConfigError, match="data__table__users_path cannot be set with"):
        recgrit.fit(log, data__table__users_path="a.csv", run__dir=tmp_path)


def test_fit_starts_from_the_settings_of_a_yaml_file(log: pl.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "tracking: {backend: none}\ndata: {path: gone.csv, table: {title: sku}}\n"
    )
    with pytest.raises(DataError, match=r"the columns? user_id|lacks"):
        recgrit.fit(log, config=tmp_path / "a.yaml", run__dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("events", "settings", "error", "text"),
    [
        ([1, 2], {}, DataError, "events is a list: expected a data frame"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, DataError, "two columns 'a'"),
        (pd.DataFrame({"a": [1, "x", 2.5]}), {}, DataError, "'a' holds values of several types"),
        (pl.DataFrame(), {"retriever__epoch": 3}, ConfigError, "retriever.epochs"),
        (pl.DataFrame(), {"data__path": "a.csv"}, ConfigError, "data__path cannot be set with"),
        (pl.DataFrame({"a": [1]}), {}, DataError, r"Name yours as in data\.table\.user_id"),
    ],
)
def test_events_and_settings_that_cannot_be_fitted_are_refused(
    events: Any, settings: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        recgrit.fit(events, run__dir=tmp_path, **settings)


def test_settings_are_nested_in_their_sections() -> None:
    values: dict[str, Any] = {"retriever": {"dropout": 0.1}, "engine": "ray"}
    _set(values, ["retriever"], {"epochs": 3})
    _set(values, ["data", "table", "user_id"], "who")
    _set(values, ["engine", "num_workers"], 2)
    assert values == {
        "retriever": {"dropout": 0.1, "epochs": 3},
        "data": {"table": {"user_id": "who"}},
        "engine": {"kind": "ray", "num_workers": 2},
    }


def test_importing_recgrit_offers_fit_without_torch_or_polars() -> None:
    code = "import json, sys, recgrit; print(json.dumps([*sys.modules])); recgrit.fit"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "polars", "pandas"} & set(json.loads(done.stdout))
    assert not hasattr(recgrit, "fitt")


def test_runs_and_their_parts_print_as_summaries(tiny_run: FinishedRun, tmp_path: Path) -> None:
    run = Run(tiny_run.directory)
    shown = repr(run)
    assert shown.startswith(f"Run {tiny_run.directory}\n")
    assert "interactions of 60 users" in shown
    assert "ndcg@10 0." in shown
    assert not {"data", "semantic_ids", "reports"} & set(vars(run)), "nothing was loaded for it"
    assert "<table>" in run._repr_html_()
    data = run.data.interactions
    assert repr(data).startswith(f"{len(data):,} interactions\n")
    assert data._frame is None, "rows stay unread"
    assert "Semantic IDs of" in repr(run.semantic_ids)
    assert "<a_" in repr(run.semantic_ids)
    assert "&lt;a_" in run.semantic_ids._repr_html_(), "text of others is no markup"
    bundle = export_bundle(run, tmp_path / "bundle")
    assert "trie" in repr(bundle)
    assert "items" not in vars(bundle)
