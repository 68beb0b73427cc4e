"""The leaderboard runs, resumes and reports; its numbers mean nothing here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"
MODELS = (
    "popularity;item-kNN;recgrit;SASRec;TIGER, equal time;decoder only, equal time;"
    "trie softmax off;no node vectors;beam 10;three fused"
)


def run_script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(PIPELINES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_leaderboard_resumes_and_reports(
    new_config: Callable[..., Path], tmp_path: Path
) -> None:
    config, out = new_config(), tmp_path / "out"
    options = ("--models", MODELS, "--out", out, "--work", tmp_path / "work")
    run_script("leaderboard.py", config, *options, "--parts", "board,cold")
    board = pl.read_parquet(out / "board.parquet")
    assert board.height == 10
    for name in ("valid", "test", "test_masked"):
        for ranks, users, recall in board.select(
            f"{name}_ranks", "num_users", f"{name}_recall_at_10"
        ).iter_rows():
            assert len(ranks) == users
            assert recall == pytest.approx(sum(0 < r <= 10 for r in ranks) / users)
    cold = pl.read_parquet(out / "cold.parquet")
    assert cold["model"].to_list() == ["recgrit"]
    assert 0 < cold["cold_share_of_targets"][0] < 0.5
    again = run_script("leaderboard.py", config, *options, "--parts", "board,cold")
    assert "seed=" not in again  # every cell was finished
    # Another setting is another training, beside the first.
    options = ("--models", "recgrit", "--out", tmp_path / "narrow", "--work", tmp_path / "work")
    run_script("leaderboard.py", config, "retriever.model_dim=8", *options, "--parts", "board")
    parameters = pl.read_parquet(tmp_path / "narrow" / "board.parquet")["parameters"][0]
    assert parameters < board.filter(model="recgrit")["parameters"][0]
    run_script("leaderboard_report.py", out)
    tables = (out / "tables.md").read_text()
    assert "| against SASRec | list |" in tables
    assert "embeddings of nodes of one item" in tables


def test_a_token_model_waits_for_our_time(new_config: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "leaderboard.py"), str(new_config())]
    command += ["--parts", "board", "--models", "TIGER, equal time", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "work")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "run its row first" in done.stderr
    assert "Traceback" not in done.stderr
