"""Run a grid of experiments, rows of settings times seeds, and compare them in one table.

    python pipelines/grid.py configs/grids/leaderboard.yaml configs/amazon2014-beauty.yaml \
        data.path=FOLDER --seeds 0,1,2 --out runs/leaderboard

A cell is one row with one seed. Each cell is an ordinary run in OUT/ROW/seed-SEED that ends after
the evaluation. A stopped grid therefore resumes with the same command, and every cell can be opened
like any other run. The settings of all cells are checked before the first cell runs. If a cell
fails, the other cells still run, and the failure is printed at the end. OUT/table.md is the table
that `recgrit compare --markdown` prints for the cells. Its differences are from the first row.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, field_validator

from recgrit.config import Config, load_config
from recgrit.disk import write_atomic
from recgrit.errors import ConfigError, RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run

logger = logging.getLogger("grid")


class GridConfig(Config):
    """The rows of a grid.

    Args:
        rows: Overrides of each row, by the name of the row. The name is also the name of a folder.
        overrides: Overrides that all rows share. Overrides of the command line replace them, and a
            row's own overrides replace both.
        seeds: Seeds of every row, unless the command line names others.
    """

    rows: dict[str, tuple[str, ...]] = Field(min_length=1)
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((0,), min_length=1)

    @field_validator("rows")
    @classmethod
    def _check_names(cls, rows: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in rows:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"a row is named by letters, digits, '-', '.' and '_': {name!r}")
        return rows

    def choose(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the named rows in the order of the names, or all rows if no name is given.

        Raises:
            ConfigError: A named row does not exist.
        """
        for name in names:
            if name not in self.rows:
                close = difflib.get_close_matches(name, self.rows, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                known = ", ".join(self.rows)
                raise ConfigError(f"The grid has no row {name!r}.{hint} Its rows are {known}.")
        return {name: self.rows[name] for name in names or self.rows}


def plan_cells(
    grid: GridConfig, rows: Sequence[str], config: Path, overrides: Sequence[str], out: Path
) -> list[ExperimentConfig]:
    """Return the settings of every cell, with all seeds of a row one after another.

    Args:
        grid: Rows and seeds of the grid.
        rows: Names of the rows to run, in order. Empty runs all rows.
        config: YAML file of the experiment that the rows vary.
        overrides: Overrides of the command line.
        out: Folder of the grid.

    Raises:
        ConfigError: A row is unknown, or its settings cannot be used.
    """
    # A registered model per cell would fill the model registry, so none is registered.
    cache = f"run.cache_dir={json.dumps(str(out / '.cache'))}"
    shared = ["tracking.register_model=false", cache, *grid.overrides, *overrides]
    cells = []
    for name, own in grid.choose(rows).items():
        for seed in grid.seeds:
            place = {
                "seed": seed,
                "run.dir": str(out / name / f"seed-{seed}"),
                "tracking.experiment": f"{out.absolute().name}-{name}",
            }
            last = [f"{key}={json.dumps(value)}" for key, value in place.items()]
            try:
                cells.append(load_config(ExperimentConfig, config, [*shared, *own, *last]))
            except ConfigError as error:
                raise ConfigError(f"Row {name}: {error}") from None
    return cells


def run_cells(cells: Sequence[ExperimentConfig]) -> dict[Path, str]:
    """Run the cells that are not up to date and return the failures: message by run folder."""
    failures = {}
    for number, cell in enumerate(cells, start=1):
        directory, started = cell.run.dir, time.monotonic()
        heading = f"{directory.parent.name}, seed {cell.seed} ({number} of {len(cells)})"
        logger.info("%s ...", heading)
        try:
            result = run_experiment(cell, until="evaluate")
        except Exception as error:  # Other cells may succeed, even after a lack of memory.
            failures[directory] = str(error) or type(error).__name__
            # The message of a RecgritError is complete. Other errors need their traceback.
            unknown = not isinstance(error, RecgritError)
            logger.error("%s failed: %s", heading, failures[directory], exc_info=unknown)
            continue
        is_done = len(result.up_to_date) == len(result.artifacts)
        seconds = time.monotonic() - started
        logger.info("%s: %s", heading, "up to date" if is_done else f"done in {seconds:.0f} s")
    return failures


def write_table(runs: Sequence[Run], path: Path) -> None:
    """Compare runs, print the table and write it to a file.

    Raises:
        RecgritError: The runs cannot be compared.
    """
    from recgrit.reporting.comparison import compare_runs
    from recgrit.reporting.markdown import render_markdown

    table = render_markdown(compare_runs(runs))
    write_atomic(path, table)
    print(table)


def main(
    grid_path: Annotated[
        Path, typer.Argument(metavar="GRID", help="YAML file of the grid, as in configs/grids/.")
    ],
    config: Annotated[Path, typer.Argument(help="YAML file that the rows vary.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further settings as key=value.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds in place of the grid's, such as 0,1,2.")] = "",
    rows: Annotated[str, typer.Option(help="Rows to run, in this order; all if empty.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of runs and table.")] = Path("runs/grid"),
) -> None:
    """Run the cells that are not finished and write the table."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    grid = load_config(GridConfig, grid_path, [f"seeds=[{seeds}]"] if seeds else [])
    names = [name.strip() for name in rows.split(",") if name.strip()]
    cells = plan_cells(grid, names, config, overrides or [], out)
    failures = run_cells(cells)
    finished = [Run(cell.run.dir) for cell in cells if cell.run.dir not in failures]
    try:
        if len(finished) > 1:
            write_table(finished, out / "table.md")
    except RecgritError as error:
        failures[out / "table.md"] = str(error)
    for place, reason in failures.items():
        print(f"{place}: {reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
