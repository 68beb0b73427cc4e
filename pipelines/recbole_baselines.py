"""RecBole's models on our split, as rows of the leaderboard.

    python pipelines/recbole_baselines.py configs/amazon2014-beauty.yaml data.path=/path/to/files
        --models SASRec,GRU4Rec,BPR --budget 600 --out docs/results/leaderboard

RecBole trains each model, by its own defaults, for so many seconds and at least one batch, in a
virtual environment of its own that the first call makes (recbole-requirements.txt), or by the
interpreter that --python names. That it reads our split is checked for every test target. Lists are
read by our evaluation; what RecBole says of the same lists stands beside it in the row.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer

from recgrit.artifacts import write_atomic
from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.data.prepare import PreparedData
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError, RecgritError
from recgrit.evaluation.foreign_lists import read_lists, without_history
from recgrit.evaluation.report import evaluate_recommendations
from recgrit.experiment import ExperimentConfig
from recgrit.export import LONGEST_HISTORY, export_recbole
from recgrit.running import run_experiment
from recgrit.runs import Run

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "recbole-requirements.txt"
RECBOLE = "recbole==1.2.1"
NAME = "recgrit"
TOP_K = 20
# Of RecBole's metrics, which have six decimals, against ours on the same lists.
TOLERANCE = 1e-6


def make_environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with RecBole, made unless it is there."""
    python, finished = folder / "bin" / "python", folder / REQUIREMENTS.name
    wanted = REQUIREMENTS.read_text()
    if finished.is_file() and finished.read_text() == wanted:
        return python
    if sys.version_info >= (3, 12):
        raise ConfigError(
            f"RecBole needs Python 3.11 or older, and this is {sys.version.split()[0]}. Install "
            f"{REQUIREMENTS} and then {RECBOLE} without its dependencies there, and name that "
            "interpreter with --python."
        )
    logger.info("making an environment for %s in %s", RECBOLE, folder)
    run_logged([sys.executable, "-m", "venv", folder], folder.with_suffix(".log"))
    for what in (["-r", REQUIREMENTS], ["--no-deps", RECBOLE]):
        run_logged([python, "-m", "pip", "install", *what], folder.with_suffix(".log"))
    write_atomic(finished, wanted)
    return python


def run_logged(command: list[str | Path], log: Path) -> None:
    """Run a command to its end; what it says goes to a file.

    Raises:
        ConfigError: It failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w") as said:
            subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=True)
    except OSError as error:
        raise ConfigError(f"Cannot run {command[0]}: {error.strerror}.") from None
    except subprocess.CalledProcessError as error:
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        raise ConfigError(
            f"{' '.join(map(str, command))} ended with {error.returncode}: {last}. All of it is "
            f"in {log}."
        ) from None


def check_split(data: PreparedData, folder: Path, result: dict[str, Any]) -> None:
    """RecBole's catalogue, training samples, test targets and histories are ours.

    Raises:
        DataError: They are not.
    """
    split, ids = data.split, data.interactions
    theirs = read_lists(folder / "targets.csv", split, "test", ids.user_ids, ids.item_ids)
    lengths = split.train_ends - split.offsets[:-1]
    num_train = lengths.sum() if result["masked"] else np.maximum(lengths - 1, 0).sum()
    users = split.target_users("test")
    if not np.array_equal(np.sort(theirs.users), users):
        raise DataError(
            f"RecBole tests {theirs.num_users} targets, and the split has {len(users)}."
        )
    differing = int((theirs.items[:, 0] != split.targets("test", theirs.users)).sum())
    if not result["masked"]:
        seen = pl.read_csv(folder / "targets.csv", infer_schema=False)["history"].fill_null("")
        ours = [split.history(int(user), "test")[-LONGEST_HISTORY:] for user in theirs.users]
        expected = [" ".join(ids.item_ids.gather(history)) for history in ours]
        differing += int((seen != pl.Series(expected)).sum())
    found = (differing, result["num_items"], result["num_train"])
    if found != (0, split.num_items, num_train):
        raise DataError(
            f"RecBole reads another split: {differing} test targets or histories differ, it has "
            f"{found[1]} of {split.num_items} items and {found[2]} of {num_train} samples."
        )
    logger.info("RecBole's %d test targets are ours", len(users))


def build_row(data: PreparedData, folder: Path) -> dict[str, Any]:
    """A row of the leaderboard from what recbole_lists.py wrote."""
    result = json.loads((folder / "result.json").read_text())
    check_split(data, folder, result)
    ids = data.interactions
    found = read_lists(folder / "lists.csv", data.split, "test", ids.user_ids, ids.item_ids)
    own = measure(found, data.split, "recbole", masked=result["masked"])
    for name in ("recall", "ndcg"):
        theirs, ours = result["metrics"][f"{name}@10"], own[f"recbole_{name}_at_10"]
        log = logger.info if abs(theirs - ours) < TOLERANCE else logger.warning
        log("%s@10 of the same lists: %.6f by RecBole, %.6f by us", name, theirs, ours)
        own[f"recbole_{name}_at_10"] = theirs
    row = {name: result[name] for name in ("fit_seconds", "epochs", "parameters")}
    row["num_users"] = len(data.split.target_users("test"))
    if not result["masked"]:
        row |= measure(found, data.split, "test", masked=False)
    masked = without_history(found, data.split, "test")
    if (masked.items != NO_ITEM).sum(axis=1).min() >= TOP_K:
        row |= measure(masked, data.split, "test_masked", masked=True)
    own.pop("recbole_ranks")
    return row | own


def measure(
    found: Recommendations, split: SequenceSplit, label: str, *, masked: bool
) -> dict[str, Any]:
    """Metrics at 10 and ranks of the first 20 of each list."""
    first = Recommendations(found.users, found.items[:, :TOP_K], found.scores[:, :TOP_K])
    report = evaluate_recommendations(
        first, split, "test", masked=masked, beam_width="exact", seed=0, ks=(10,), num_bootstrap=1
    )
    metrics = {f"{label}_{name}": value for name, value in report.metrics().items()}
    return metrics | {f"{label}_ranks": pl.Series(report.ranks, dtype=pl.Int16)}


def main(
    config: Annotated[Path, typer.Argument(help="The experiment whose data are used.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    models: Annotated[str, typer.Option(help="RecBole's names, parted by commas.")] = "SASRec",
    budget: Annotated[float, typer.Option(help="Seconds to train each.")] = 60,
    seeds: Annotated[str, typer.Option(help="Seeds that are reported.")] = "0",
    out: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("runs/leaderboard"),
    work: Annotated[Path, typer.Option(help="Where all else goes.")] = Path("runs/recbole"),
    python: Annotated[Path | None, typer.Option(help="An interpreter that has RecBole.")] = None,
) -> None:
    """Add the rows that are not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    where = [f"run.dir={work / 'run'}", "tracking.backend=none"]
    experiment = load_config(ExperimentConfig, config, [*(overrides or []), *where])
    run_experiment(experiment, until="prepare")
    data, exported = Run(experiment.run.dir).data, work / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    export_recbole(data, exported, NAME)
    interpreter = python or make_environment(work / "environment")

    def run(cell: Cell) -> dict[str, Any]:
        model = str(cell["model"]).removeprefix("RecBole ").split(",")[0]
        folder = work / f"{model}-{cell['seed']}"
        options = ["--seconds", f"{budget:g}", "--seed", str(cell["seed"]), "--out", folder]
        script = [interpreter, HERE / "recbole_lists.py", exported, NAME, model]
        run_logged([*script, *options], work / f"{model}-{cell['seed']}.log")
        return build_row(data, folder)

    cells: list[Cell] = [
        {
            "data": experiment.data.source,
            "model": f"RecBole {model}, {budget:g} s",
            "seed": int(seed),
        }
        for seed in seeds.split(",")
        for model in models.split(",")
    ]
    CellTable(out / "board.parquet").fill(cells, run)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
