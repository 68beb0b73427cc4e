"""Train RecBole's models on a run's split and evaluate their lists.

    python pipelines/recbole_baselines.py configs/amazon2014-beauty.yaml data.path=/path/to/files
        --models SASRec,GRU4Rec,BPR --budget 600 --out runs/recbole

RecBole trains each model with its own defaults, for the seconds of `--budget` and for at least one
batch. It runs in a separate virtual environment, which the first call makes from
recbole-requirements.txt, or by the interpreter that `--python` names. For every test target the
script checks that RecBole reads the same split. The lists, and their reports by recgrit's
evaluation, go to OUT/MODEL-SEED. A result that is there and up to date is not made again. A warning
is logged if RecBole's own metrics differ from recgrit's on the same lists.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from foreign import ForeignLists, keep_lists, print_reports

from recgrit.config import load_config
from recgrit.data.prepare import PreparedData
from recgrit.disk import write_atomic
from recgrit.errors import ConfigError, DataError, RecgritError
from recgrit.evaluation.foreign_lists import read_lists
from recgrit.experiment import ExperimentConfig
from recgrit.export import LONGEST_HISTORY, export_recbole
from recgrit.pipeline import run_experiment
from recgrit.runs import Run

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "recbole-requirements.txt"
RECBOLE = "recbole==1.2.1"
NAME = "recgrit"


def make_environment(folder: Path) -> Path:
    """Return the interpreter of a virtual environment with RecBole, and make it if it is missing.

    Raises:
        ConfigError: The environment cannot be made.
    """
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


def run_logged(command: Sequence[str | Path], log: Path) -> None:
    """Run a command to its end and write its output to a file.

    Raises:
        ConfigError: The command failed.
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
    """Check that RecBole reads the same items, training samples, test targets and histories.

    Args:
        data: Prepared data of the run.
        folder: Folder with RecBole's ``targets.csv``.
        result: Content of RecBole's ``result.json``.

    Raises:
        DataError: Something differs.
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


def train(
    data: PreparedData, command: Sequence[str | Path], seconds: float, seed: int, folder: Path
) -> ForeignLists:
    """Run RecBole's training of a model and read its lists.

    Args:
        data: Prepared data that RecBole's files were exported from.
        command: Command that calls recbole_lists.py for the model.
        seconds: Time budget of the training.
        seed: Seed of the training.
        folder: Folder for RecBole's output.
    """
    options = ["--seconds", f"{seconds:g}", "--seed", str(seed), "--out", folder]
    run_logged([*command, *options], folder.with_name(f"{folder.name}.log"))
    result = json.loads((folder / "result.json").read_text())
    check_split(data, folder, result)
    ids = data.interactions
    return ForeignLists(
        read_lists(folder / "lists.csv", data.split, "test", ids.user_ids, ids.item_ids),
        masked=result["masked"],
        metrics={f"{name}_at_10": result["metrics"][f"{name}@10"] for name in ("recall", "ndcg")},
        summary={name: result[name] for name in ("fit_seconds", "epochs", "parameters")},
    )


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further settings as key=value.")
    ] = None,
    models: Annotated[str, typer.Option(help="RecBole's names, by commas.")] = "SASRec",
    budget: Annotated[float, typer.Option(help="Seconds to train each model.")] = 60,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/recbole"),
    python: Annotated[Path | None, typer.Option(help="Interpreter with RecBole.")] = None,
) -> None:
    """Train the models without up-to-date lists and print the metrics of all."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    where = [f"run.dir={out / 'run'}", "tracking.backend=none"]
    experiment = load_config(ExperimentConfig, config, [*(overrides or []), *where])
    run_experiment(experiment, until="prepare")
    run, exported = Run(experiment.run.dir), out / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    export_recbole(run.data, exported, NAME)
    interpreter = python or make_environment(out / "environment")
    directories = []
    for seed in map(int, seeds.split(",")):
        for model in models.split(","):
            directory = out / f"{model}-{seed}"
            command = [interpreter, HERE / "recbole_lists.py", exported, NAME, model]
            settings = {"library": RECBOLE, "model": model, "seed": seed, "budget": budget}
            folder = out / "recbole" / directory.name
            make = partial(train, run.data, command, budget, seed, folder)
            keep_lists(run, run.data.split, directory, settings, make)
            directories.append(directory)
    print_reports(directories)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
