"""A grid of runs: rows that differ in a few settings, times seeds, then one table.

    python pipelines/grid.py configs/grids/leaderboard.yaml configs/amazon2014-beauty.yaml \
        data.path=FOLDER --seeds 0,1,2 --out runs/leaderboard

Each cell is an ordinary run in OUT/ROW/seed-SEED, evaluated and not recommended from, so a stopped
grid goes on where it was and every cell can be looked at like any other run. Settings of all cells
are checked before anything runs; a row that fails later is reported at the end, and the others go
on. OUT/table.md is what `recgrit compare --markdown` prints of the cells; its differences are from
the first row.
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
        rows: Overrides of each row by its name, which names a folder too.
        overrides: What all rows share. Overrides of the command line win over these, and a row's
            own over both.
        seeds: Seeds that every row is run with, unless the command line names others.
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
        """These rows in this order; all if none is named.

        Raises:
            ConfigError: There is no such row.
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
    """Settings of every cell, all seeds of a row one after another.

    Raises:
        ConfigError: A row is unknown, or its settings cannot be used.
    """
    # A registered model for each cell would be one too many.
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
    """Run what is not up to date; returns why cells failed, by run folder."""
    failures = {}
    for number, cell in enumerate(cells, start=1):
        directory, started = cell.run.dir, time.monotonic()
        heading = f"{directory.parent.name}, seed {cell.seed} ({number} of {len(cells)})"
        logger.info("%s ...", heading)
        try:
            result = run_experiment(cell, until="evaluate")
        except Exception as error:  # Also a want of memory: the other rows may have enough.
            failures[directory] = str(error) or type(error).__name__
            # A RecgritError says all that its reader needs.
            unknown = not isinstance(error, RecgritError)
            logger.error("%s failed: %s", heading, failures[directory], exc_info=unknown)
            continue
        is_done = len(result.up_to_date) == len(result.artifacts)
        seconds = time.monotonic() - started
        logger.info("%s: %s", heading, "up to date" if is_done else f"done in {seconds:.0f} s")
    return failures


def write_table(runs: Sequence[Run], path: Path) -> None:
    """Compare runs, print the table and keep it.

    Raises:
        RecgritError: The runs cannot be compared.
    """
    from recgrit.reporting.comparison import compare_runs
    from recgrit.reporting.markdown import render_markdown

    table = render_markdown(compare_runs(runs))
    write_atomic(path, table)
    print(table)


def main(
    grid_path: Annotated[Path, typer.Argument(metavar="GRID", help="A file of configs/grids/.")],
    config: Annotated[Path, typer.Argument(help="The experiment that the rows vary.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    seeds: Annotated[str, typer.Option(help="In place of the grid's own: 0,1,2.")] = "",
    rows: Annotated[str, typer.Option(help="Rows to run, in this order; all if empty.")] = "",
    out: Annotated[Path, typer.Option(help="Where runs and table go.")] = Path("runs/grid"),
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
