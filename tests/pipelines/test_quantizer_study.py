"""The study runs, resumes and reports on a small budget. Its numbers have no meaning here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl

PIPELINES = Path(__file__).parents[2] / "pipelines"


def run_script(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(PIPELINES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_study_resumes_and_reports(new_config: Callable[..., Path], tmp_path: Path) -> None:
    config, out = new_config(), tmp_path / "out"
    options = ("--budget", "small", "--seeds", "0,1", "--out", out, "--work", tmp_path / "work")
    run_script("quantizer_study.py", config, *options)
    parts = {path.stem: pl.read_parquet(path) for path in out.glob("*.parquet")}
    assert set(parts) == {"ablation", "scaling", "radius", "cache", "shape"}
    for rows in parts.values():
        # There are two cells with two seeds each.
        assert rows.height == 4
        assert rows["reconstruction_loss"].is_finite().all()
    # A finished fit is not repeated, and a missing fit is.
    pl.read_parquet(out / "radius.parquet")[:-1].write_parquet(out / "radius.parquet")
    again = run_script("quantizer_study.py", config, *options)
    assert again.count("seed=") == 1
    assert "radius=euclidean, surrogate=additive, seed=1" in again
    run_script("quantizer_report.py", out)
    tables = (out / "tables.md").read_text()
    for part in parts:
        assert f"## {part}" in tables
    assert {path.name for path in out.glob("*.png")} == {"scaling.png", "radius.png"}


def test_the_rows_that_docs_quote_give_their_tables(tmp_path: Path) -> None:
    committed = PIPELINES.parent / "docs" / "results" / "quantizer_study"
    for path in committed.glob("*.parquet"):
        shutil.copy(path, tmp_path)
    run_script("quantizer_report.py", tmp_path)
    assert (tmp_path / "tables.md").read_text() == (committed / "tables.md").read_text()


def test_unknown_parts_and_damaged_rows_are_refused(
    new_config: Callable[..., Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "out" / "shape.parquet"
    damaged.parent.mkdir()
    damaged.write_text("no table")
    for options, message in (
        (("--parts", "shapes"), "Unknown part(s) ['shapes']: choose from ablation"),
        (("--parts", "shape", "--out", str(damaged.parent)), "Move it away to begin anew"),
    ):
        command = [sys.executable, str(PIPELINES / "quantizer_study.py"), str(new_config())]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_image_example_beats_a_flat_picture(tmp_path: Path) -> None:
    told = run_script("image_patches.py", "--steps", "60", "--seeds", "0", "--out", tmp_path)
    assert "reconstructions.png" in told
    results = pl.read_parquet(tmp_path / "results.parquet")
    errors = dict(results.select("method", "error").iter_rows())
    # A picture of one colour has the variance of the pixels, .25, as its error.
    assert errors["grit"] < 0.2
    assert (tmp_path / "reconstructions.png").stat().st_size > 10_000
