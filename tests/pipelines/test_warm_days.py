"""Replay a log by days. Warm-started and newly trained models predict the next interactions."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from recgrit.errors import DataError
from recgrit.runs import Run

FILE = Path(__file__).parents[2] / "pipelines" / "warm_days.py"
DAY = 86_400


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("warm_days", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["warm_days"] = module
    spec.loader.exec_module(module)
    return module


def test_windows_are_the_latest_with_enough_events(pipeline: ModuleType) -> None:
    events_of_days = [9, 3, 4, 3, 1, 3]
    times = np.repeat(np.arange(100, 106), events_of_days) * DAY + 5

    def choose(days: int, length: int, least: int) -> list[int]:
        found = pipeline.choose_days(times, days=days, length=length, least=least)
        assert isinstance(found, list)
        return found

    assert choose(1, 1, 3) == [105, 106]
    assert choose(2, 1, 3) == [102, 103, 104], "the day with one event is in none"
    assert choose(2, 2, 4) == [102, 104, 106]
    with pytest.raises(DataError, match="no 4 successive windows of 1 days with 3 events"):
        choose(4, 1, 3)


def test_histories_have_all_earlier_interactions_of_the_user(pipeline: ModuleType) -> None:
    rows = [("a", 0, "1"), ("a", 1, "2"), ("a", 1, "3"), ("a", 1, "4"), ("a", 2, "5")]
    rows += [("b", 1, "6"), ("b", 1, "7"), ("c", 0, "8"), ("d", 0, "9"), ("d", 1, "1")]
    log = pl.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [item for _, _, item in rows],
            "timestamp": [day * DAY + place for place, (_, day, _) in enumerate(rows)],
            "user_idx": ["abcd".index(user) for user, _, _ in rows],
        }
    )
    window = pipeline.cut_window(log, 1, 2, most=2)
    assert (window.start, window.end) == (dt.date(1970, 1, 2), dt.date(1970, 1, 3))
    asked = list(zip(window.users.tolist(), window.histories, window.targets, strict=True))
    assert asked == [(0, ["1"], "2"), (0, ["1", "2"], "3"), (3, ["9"], "1")]


def test_models_are_trained_measured_and_found_again(
    new_config: Callable[..., Path], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    start = int(dt.datetime(2024, 3, 1, tzinfo=dt.UTC).timestamp())
    rows = ["user_id,item_id,timestamp"]
    for user in range(30):
        item = int(draw.integers(24))
        for day in range(12):
            rows.append(f"u{user},i{item},{start + day * DAY + user}")
            item = (item + 5) % 24
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    data = {"source": "table", "min_user_interactions": 3, "min_item_interactions": 1}
    config, out = new_config(tmp_path / "log.csv", data=data), tmp_path / "days"

    def replay() -> str:
        sizes = ("--days", 2, "--min-events", 20, "--warm-epochs", 1, "--users", 0.9)
        command = [sys.executable, FILE, config, "retriever.epochs=2", *sizes, "--out", out]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    table = replay()
    assert (out / "days.md").read_text().strip() == table.strip()
    *days, total = json.loads((out / "days.json").read_text())
    assert [day["window"] for day in days] == [
        "2024-03-11 to 2024-03-12",
        "2024-03-12 to 2024-03-13",
    ]
    assert total["targets"] == sum(day["targets"] for day in days) == 2 * total["users"]
    assert 20 <= total["users"] < 30, "a share of the users, the same ones each day"
    for record in (*days, total):
        models = record["models"]
        assert set(models) == {"full", "warm", "stale"}
        assert models["full"]["less_full"]["mean"] == 0
        less = models["warm"]["less_full"]
        assert less["low"] <= less["mean"] <= less["high"]
        assert models["full"]["seconds"] > models["stale"]["seconds"] == 0
    full, warm = Run(out / "day-2" / "full"), Run(out / "day-2" / "warm")
    assert full.config.retriever.init_from is None
    assert warm.config.retriever.init_from == out / "day-1" / "warm"
    assert (full.config.retriever.epochs, warm.config.retriever.epochs) == (2, 1)
    assert len(full.data.interactions) == 11 * total["users"], "nothing of the window is learned"
    assert replay() == table, "what is there is not trained again"
