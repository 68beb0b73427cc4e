"""Test several time windows: the data that each fold may use, and the combined results."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recgrit.config import load_config
from recgrit.errors import ConfigError, DataError
from recgrit.evaluation.folds import mean_over_folds, plan_windows
from recgrit.experiment import ExperimentConfig
from recgrit.folds import collect_folds
from recgrit.runs import Run

TEMPORAL = {"split": "temporal"}


@given(
    st.lists(st.integers(0, 10**6), min_size=40, max_size=200),
    st.integers(2, 5),
)
def test_windows_follow_one_another_and_each_part_has_something(
    times: list[int], folds: int
) -> None:
    ordered = np.sort(np.array(times))
    try:
        windows = plan_windows(ordered, folds, valid_share=0.1, test_share=0.1)
    except DataError:
        assert len(set(times)) < len(times)
        return
    assert len(windows) == folds
    for before, after in pairwise(windows):
        assert before.test_until == after.test_from
    assert windows[-1].test_until is None
    for window in windows:
        until = np.inf if window.test_until is None else window.test_until
        assert (ordered < window.valid_from).any()
        assert ((ordered >= window.valid_from) & (ordered < window.test_from)).any()
        assert ((ordered >= window.test_from) & (ordered < until)).any()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_interval_is_that_of_students_t(values: list[float]) -> None:
    found = mean_over_folds(values)
    assert found.mean == pytest.approx(np.mean(values))
    if np.std(values) > 1e-9:
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.folds=3"], "data.split=temporal"),
        (["evaluation.folds=9", "data.split=temporal"], "lower the shares"),
        (["evaluation.folds=2", "data.split=temporal", "engine=ray"], "engine=local"),
        (["data.valid_from=2020-01-01"], "split=temporal"),
        (["data.split=temporal", "data.valid_from=2020"], "got the number 2020"),
        (["data.split=temporal", "data.test_until=2020-01-01"], "needs valid_from"),
        (
            [
                "data.split=temporal",
                "data.valid_from=2020-01-02",
                "data.test_from=2020-01-01",
            ],
            "in chronological order",
        ),
    ],
)
def test_settings_that_cut_no_time_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(ExperimentConfig, None, overrides)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, write_config: Any) -> Path:
    from tests.conftest import run_command

    folder = tmp_path_factory.mktemp("folds")
    config = write_config(
        folder / "folds.yaml",
        tiny_data,
        folder / "run",
        data={**TEMPORAL, "min_user_interactions": 2, "min_item_interactions": 1},
        evaluation={"folds": 3},
        model={"kind": "transitions"},
    )
    done = run_command("run", config, "--json")
    assert done.code == 0, done.err
    (folder / "out.json").write_text(json.dumps(done.json()))
    (folder / "out.txt").write_text(done.out)
    return folder


def test_nothing_a_fold_learns_from_is_at_or_after_its_cut_off(folded: Path) -> None:
    whole = Run(folded / "run").data.interactions.to_polars()
    for number in (1, 2):
        run = Run(folded / "run" / "folds" / str(number))
        data, config = run.data, run.config.data
        assert config.cut_off_times is not None
        valid_from, test_from = config.cut_off_times
        assert config.test_until is not None
        times = data.interactions.frame["timestamp"].to_numpy()
        assert times.max() < config.test_until.timestamp()
        split = data.split
        learned = split.train_mask()
        assert learned.any()
        assert times[learned].max() < valid_from
        # Test targets are in the test window, and their histories end before them.
        tested = split.test_targets[split.target_users("test")]
        assert times[tested].min() >= test_from
        # The items also come only from interactions before the end of the window.
        known = whole.filter(whole["timestamp"] < int(config.test_until.timestamp()))
        assert set(data.interactions.item_ids) <= set(known["item_id"])


def test_every_window_is_tested_once_and_the_run_is_the_last(folded: Path) -> None:
    found = json.loads((folded / "out.json").read_text())
    folds = found["folds"]["folds"]
    assert [fold["fold"] for fold in folds] == [1, 2, 3]
    assert [fold["test_from"] for fold in folds] == sorted({f["test_from"] for f in folds})
    assert folds[-1]["ndcg_at_10"] == found["test"]["ndcg_at_10"]
    last = Run(folded / "run").data
    times = last.interactions.frame["timestamp"].to_numpy()
    first = times[last.split.test_targets[last.split.target_users("test")]].min()
    assert first >= datetime.fromisoformat(folds[-1]["test_from"]).timestamp()
    mean = found["folds"]["mean"]["ndcg_at_10"]
    assert mean["mean"] == pytest.approx(np.mean([fold["ndcg_at_10"] for fold in folds]))
    assert mean["low"] <= mean["mean"] <= mean["high"]
    assert "Folds" in (folded / "out.txt").read_text()


def test_folds_that_are_made_are_up_to_date_and_others_are_not_shown(
    folded: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    again = command("run", folded / "run", "--json")
    assert again.code == 0, again.err
    assert "up to date" in again.out
    assert again.json()["folds"] == json.loads((folded / "out.json").read_text())["folds"]
    page = tmp_path / "page.html"
    assert command("report", folded / "run", "--out", page).code == 0
    assert "<h3>Folds</h3>" in page.read_text(encoding="utf-8")
    run = Run(folded / "run")
    assert collect_folds(run) is not None
    made = folded / "run" / "folds" / "1" / "evaluation"
    made.rename(made.with_name("elsewhere"))
    assert collect_folds(run) is None
    made.with_name("elsewhere").rename(made)
