"""The study runs, resumes and reports on a small budget; its numbers mean nothing here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"


def run_script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(PIPELINES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_study_resumes_and_reports(new_config: Callable[..., Path], tmp_path: Path) -> None:
    config, out = new_config(), tmp_path / "out"
    options = ("--budget", "small", "--seeds", "0,1", "--out", out, "--work", tmp_path / "work")
    run_script("quantizer_study.py", config, *options)
    parts = {path.stem: pl.read_parquet(path) for path in out.glob("*.parquet")}
    assert set(parts) == {
        "choice", "recommendation", "ablation", "scaling", "radius", "cache", "shape",
    }  # fmt: skip
    assert parts["recommendation"]["tokenizer"].n_unique() == 3
    again = run_script("quantizer_study.py", config, *options)
    assert "seed=" not in again  # every cell was finished
    run_script("quantizer_report.py", out)
    tables = (out / "tables.md").read_text()
    assert "| against ema |" in tables
    for part in parts:
        assert f"## {part}" in tables
    assert {path.name for path in out.glob("*.png")} == {"scaling.png", "radius.png"}


@pytest.mark.slow
def test_the_image_example_beats_a_flat_picture(tmp_path: Path) -> None:
    told = run_script("image_patches.py", "--steps", "60", "--seeds", "0", "--out", tmp_path)
    assert "reconstructions.png" in told
    results = pl.read_parquet(tmp_path / "results.parquet")
    errors = dict(results.select("method", "error").iter_rows())
    # A picture that is one colour everywhere has the variance of the pixels as its error, .25.
    assert errors["grit"] < 0.2
    assert (tmp_path / "reconstructions.png").stat().st_size > 10_000
