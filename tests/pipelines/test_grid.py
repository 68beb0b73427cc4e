"""A grid makes runs and a table, keeps finished runs, and continues after a failed row."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from recgrit.config import load_config
from recgrit.errors import ConfigError
from recgrit.runs import Run

ROOT = Path(__file__).parents[2]
ROWS: dict[str, list[str]] = {
    "near": ["model.kind=item_knn", "item_knn.discount=0.5"],
    "broken": ["model.kind=popularity", "data.path=/nowhere"],
    "sasrec": ["model.kind=sasrec"],
}
SMALL_SASREC = {"model_dim": 8, "num_layers": 1, "num_heads": 1, "epochs": 1, "device": "cpu"}

Grid = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_grid(new_config: Callable[..., Path], tmp_path: Path) -> Grid:
    config = new_config(sasrec=SMALL_SASREC)

    def run(*arguments: str, rows: object = ROWS) -> subprocess.CompletedProcess[str]:
        grid = tmp_path / "grid.yaml"
        grid.write_text(yaml.safe_dump({"rows": rows, "seeds": [3]}, sort_keys=False))
        command = [sys.executable, ROOT / "pipelines" / "grid.py", grid, config, *arguments]
        return subprocess.run(
            [*map(str, command), "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_rows_times_seeds_become_runs_and_a_table(run_grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_grid("item_knn.num_neighbours=5", "--seeds", "0,1", "--rows", "sasrec,near")
    assert done.returncode == 0, done.stderr
    cells = {path.relative_to(out).as_posix() for path in out.glob("*/seed-*")}
    assert cells == {"sasrec/seed-0", "sasrec/seed-1", "near/seed-0", "near/seed-1"}
    first, near = Run(out / "sasrec" / "seed-1"), Run(out / "near" / "seed-0")
    assert (first.model_kind, first.config.seed) == ("sasrec", 1)
    # The run has the overrides of the row and of the command line.
    assert near.config.item_knn.discount == 0.5
    assert near.config.item_knn.num_neighbours == 5
    table = (out / "table.md").read_text()
    assert done.stdout.strip() == table.strip()
    assert "against sasrec" in table, "the first row is the base"
    assert "| near |" in table
    before = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    again = run_grid("item_knn.num_neighbours=5", "--seeds", "0,1", "--rows", "sasrec,near")
    assert "near, seed 1 (4 of 4): up to date" in again.stderr
    assert "done in" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")} == before


def test_a_failed_row_is_reported_and_the_others_are_run(run_grid: Grid, tmp_path: Path) -> None:
    done = run_grid()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{tmp_path}/out/broken/seed-3: ")
    assert "/nowhere" in last
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| near |" in table
    assert "| sasrec |" in table
    assert "broken" not in table


def test_an_unknown_row_is_refused_before_anything_runs(run_grid: Grid, tmp_path: Path) -> None:
    done = run_grid("--rows", "near,sasrek")
    assert done.returncode == 1
    assert "no row 'sasrek'. Did you mean sasrec?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    return importlib.import_module("grid")


@pytest.mark.parametrize(
    ("rows", "seeds", "message"),
    [
        ({"wide": ["sasrec.model_dimm=8"]}, "0", "Row wide: .*Did you mean sasrec.model_dim?"),
        ({"a/b": []}, "0", "a row is named by letters"),
        ({}, "0", "rows: Dictionary should have at least 1 item"),
        (ROWS, "one", "seeds.0: Input should be a valid integer"),
    ],
)
def test_grids_that_cannot_be_run(
    grid: ModuleType, tmp_path: Path, rows: object, seeds: str, message: str
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"rows": rows}))
    config = ROOT / "configs" / "movielens-100k.yaml"
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        grid.plan_cells(
            load_config(grid.GridConfig, path, [f"seeds=[{seeds}]"]), [], config, [], tmp_path
        )


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "grids").glob("*.yaml")), ids=str)
@pytest.mark.parametrize("config", ["amazon2014-beauty", "movielens-100k"])
def test_committed_grids_can_be_run(
    grid: ModuleType, path: Path, config: str, tmp_path: Path
) -> None:
    found = load_config(grid.GridConfig, path)
    cells = grid.plan_cells(found, [], ROOT / "configs" / f"{config}.yaml", [], tmp_path)
    assert len({cell.run.dir for cell in cells}) == len(found.rows) * len(found.seeds)
