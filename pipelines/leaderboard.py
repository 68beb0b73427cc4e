"""Who recommends best? All models on one split, read by one evaluation.

    python pipelines/leaderboard.py configs/amazon2014-beauty.yaml data.path=/path/to/files

Parts, in the order they run:

* `choice`: candidate settings of each model by validation, on a seed that is not reported;
* `board`: all models and ablations, on validation and test, the history masked and not;
* `cold`: 5% of the items held out of training, Recall@10 on the targets among them.

Every finished cell is a row of `OUT/PART.parquet` at once: a stopped run goes on where it was, and
several processes may work on different models or seeds. Trainings are kept too: a stopped one goes
on after its last epoch, and rows that read one training in two ways, such as by another beam width,
share it. Token-level models get as much time as recgrit took on the same data, or four times as
much. `leaderboard_report.py` makes the tables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from leaderboard_models import (
    Context,
    Fitted,
    fit_decoder_only,
    fit_fused,
    fit_item_knn,
    fit_ours,
    fit_popularity,
    fit_sasrec,
    fit_tiger,
)

from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import ConfigError, RecgritError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.experiment import ExperimentConfig
from recgrit.running import run_experiment
from recgrit.runs import Run

COLD_SHARE = 0.05
CHOICE_SEED = 100


@dataclass(frozen=True)
class Model:
    """A row of the leaderboard.

    Args:
        fit: Trains it.
        settings: Of the model.
        overrides: Of the stages before it: what is embedded and how it becomes IDs.
        times_ours: Time it may train, relative to recgrit's on the same data; None for as long as
            it improves.
        max_users: Users that are evaluated; None for all.
    """

    fit: Callable[..., Fitted]
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    times_ours: float | None = None
    max_users: int | None = None


SASREC = {"epochs": 30, "patience": 4, "valid_users": 5000}
TIGER = {"batch_targets": 256, "warmup_steps": 500, "valid_users": 1000, "epochs": 200}
DECODER = {"warmup_steps": 200, "valid_users": 1000, "epochs": 200}
OURS = "recgrit"
TEXT_ONLY = ("features.cooccurrence_weight=0",)
# As TIGER is published; its 256 codes a level are for the command to set.
THREE_LEVELS = ("tokenizer.num_levels=3",)
BOARD: dict[str, Model] = {
    "popularity": Model(fit_popularity),
    "item-kNN": Model(fit_item_knn),
    OURS: Model(fit_ours),
    "SASRec": Model(fit_sasrec, SASREC),
    "SASRec with neighbours": Model(fit_sasrec, SASREC | {"neighbours": True}),
    "TIGER, equal time": Model(fit_tiger, TIGER, THREE_LEVELS, times_ours=1, max_users=5000),
    "TIGER, 4 x time": Model(fit_tiger, TIGER, THREE_LEVELS, times_ours=4, max_users=5000),
    "decoder only, equal time": Model(
        fit_decoder_only, DECODER, THREE_LEVELS, times_ours=1, max_users=2000
    ),
    "decoder only, 4 x time": Model(
        fit_decoder_only, DECODER, THREE_LEVELS, times_ours=4, max_users=2000
    ),
    "three fused": Model(fit_fused, {"num_models": 3}),
    "neighbours off": Model(fit_ours, {"neighbours": False}),
    "seen scores off": Model(fit_ours, {"seen_scores": False}),
    "weight averaging off": Model(fit_ours, {"average_decay": 0.0}),
    "trie softmax off": Model(fit_ours, {"trie_softmax": False}),
    "no vectors of single items": Model(fit_ours, {"node_vectors": "shared"}),
    "8,192 node buckets": Model(fit_ours, {"node_buckets": 8192}),
    "no node vectors": Model(fit_ours, {"node_vectors": "none"}),
    "content projected in": Model(fit_ours, {"content": True}),
    "no co-occurrence in the IDs": Model(fit_ours, overrides=TEXT_ONLY),
    "3 levels": Model(fit_ours, overrides=THREE_LEVELS),
    "4 levels": Model(fit_ours, overrides=("tokenizer.num_levels=4",)),
    "64 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=64",)),
    "256 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=256",)),
    "1024 codes": Model(fit_ours, overrides=("tokenizer.codebook_size=1024",)),
    **{
        f"beam {width}": Model(fit_ours, {"beam_width": width}, max_users=2000)
        for width in (10, 20, 50, 100)
    },
    "exact scores": Model(fit_ours, {"beam_width": "exact"}, max_users=2000),
}
# What the final settings were chosen from, by validation.
CANDIDATES: dict[str, Model] = {
    OURS: Model(fit_ours),
    **{
        f"SASRec, dropout {dropout}, dim {dim}": Model(
            fit_sasrec, SASREC | {"dropout": dropout, "model_dim": dim}
        )
        for dropout in (0.3, 0.5)
        for dim in (64, 128, 256)
    },
    "item-kNN, discount .5": Model(fit_item_knn, {"discount": 0.5}),
    "item-kNN, discount .8": Model(fit_item_knn, {"discount": 0.8}),
    "item-kNN, discount 1": Model(fit_item_knn, {"discount": 1.0}),
}
COLD: dict[str, Model] = {
    OURS: Model(fit_ours),
    "neighbours off": Model(fit_ours, {"neighbours": False}),
    "content projected in": Model(fit_ours, {"content": True}),
    "node dropout .3": Model(fit_ours, {"node_dropout": 0.3}),
    "node dropout .3, content": Model(fit_ours, {"content": True, "node_dropout": 0.3}),
    "no co-occurrence in the IDs": Model(fit_ours, overrides=TEXT_ONLY),
}


@dataclass(frozen=True)
class Leaderboard:
    """Where experiments come from and rows go to."""

    config_path: Path
    overrides: tuple[str, ...]
    out: Path
    work: Path

    def table(self, part: str) -> CellTable:
        """The table of a part."""
        return CellTable(self.out / f"{part}.parquet")

    def configure(self, model: Model, seed: int) -> ExperimentConfig:
        """The experiment with a model's changes; IDs are shared by all models that change none."""
        config = load_config(
            ExperimentConfig,
            self.config_path,
            [*self.overrides, *model.overrides, f"seed={seed}", "tracking.backend=none"],
        )
        told = [text for text in self.overrides if not text.startswith("data.path=")]
        name = "-".join([config.data.source, *told, *model.overrides, str(seed)]).replace("/", "-")
        where = {"dir": self.work / name, "cache_dir": self.work / "cache"}
        return ExperimentConfig.model_validate(config.model_dump() | {"run": where})

    def fit(self, model: Model, cell: Cell) -> tuple[Fitted, SequenceSplit]:
        """Train one model, with IDs of its own seed."""
        config = self.configure(model, int(cell["seed"] or 0))
        run_experiment(config, until="tokenize")
        run = Run(config.run.dir)
        context = Context(config, run, run.data.split, self._time(model, str(cell["data"])))
        return model.fit(context, **model.settings), run.data.split

    def _time(self, model: Model, data: str) -> float | None:
        if model.times_ours is None:
            return None
        rows = self.table("board").rows()
        ours = rows.filter(data=data, model=OURS) if not rows.is_empty() else rows
        if ours.is_empty():
            raise ConfigError(
                f"How long {OURS} takes on {data} is not known yet: run its row first."
            )
        return model.times_ours * float(ours["fit_seconds"].to_numpy().mean())


def measure(
    fitted: Fitted, split: SequenceSplit, names: tuple[Split, ...], max_users: int | None = None
) -> dict[str, Any]:
    """Metrics at 10 and ranks, the history masked and not."""
    row: dict[str, Any] = dict(fitted.facts)
    for name in names:
        users = split.target_users(name)
        if max_users is not None and max_users < len(users):
            users = np.sort(np.random.default_rng(0).choice(users, max_users, replace=False))
        row["num_users"] = len(users)
        for masked in (False, True):
            found = fitted.recommend(name, users, masked)
            ranks = ranks_of_targets(found.items, split.targets(name, users))
            label = f"{name}_masked" if masked else name
            row[f"{label}_recall_at_10"] = float(recall_at_k(ranks, 10).mean())
            row[f"{label}_ndcg_at_10"] = float(ndcg_at_k(ranks, 10).mean())
            row[f"{label}_ranks"] = pl.Series(ranks, dtype=pl.Int16)
    return row


def choose(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Validation metrics of candidates, on one seed of their own."""

    def run(cell: Cell) -> dict[str, Any]:
        fitted, split = board.fit(CANDIDATES[str(cell["model"])], cell)
        row = measure(fitted, split, ("valid",))
        return {key: value for key, value in row.items() if not key.endswith("ranks")}

    cells = [{"model": name, "seed": CHOICE_SEED} for name in CANDIDATES if chosen(name, models)]
    board.table("choice").fill([_with_data(board, cell) for cell in cells], run)


def compare(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Validation and test metrics of all models."""

    def run(cell: Cell) -> dict[str, Any]:
        model = BOARD[str(cell["model"])]
        fitted, split = board.fit(model, cell)
        return measure(fitted, split, ("valid", "test"), model.max_users)

    cells = [
        {"model": name, "seed": seed} for seed in seeds for name in BOARD if chosen(name, models)
    ]
    board.table("board").fill([_with_data(board, cell) for cell in cells], run)


def start_cold(board: Leaderboard, models: list[str], seeds: list[int]) -> None:
    """Test targets among items that training never saw, in the list of the whole catalogue."""

    def run(cell: Cell) -> dict[str, Any]:
        model = COLD[str(cell["model"])]
        held_out = (f"data.cold_item_share={COLD_SHARE}", f"data.cold_item_seed={cell['seed']}")
        model = replace(model, overrides=(*model.overrides, *held_out))
        fitted, split = board.fit(model, cell)
        cold = split.train_item_counts() == 0
        users = split.target_users("test")
        targets = split.targets("test", users)
        found = fitted.recommend("test", users, True).items[:, :10]
        ranks = ranks_of_targets(found, targets)
        recall = recall_at_k(ranks, 10)
        return fitted.facts | {
            "cold_targets": int(cold[targets].sum()),
            "cold_recall_at_10": float(recall[cold[targets]].mean()),
            "warm_recall_at_10": float(recall[~cold[targets]].mean()),
            "cold_share_of_lists": float(cold[found[found >= 0]].mean()),
            "cold_share_of_targets": float(cold[targets].mean()),
        }

    cells = [
        {"model": name, "seed": seed} for seed in seeds for name in COLD if chosen(name, models)
    ]
    board.table("cold").fill([_with_data(board, cell) for cell in cells], run)


def chosen(name: str, models: list[str]) -> bool:
    """Whether a row is asked for, by its name or what stands there before a comma."""
    return not models or any(f"{name},".startswith(f"{model},") for model in models)


def _with_data(board: Leaderboard, cell: dict[str, Any]) -> Cell:
    return {"data": board.configure(BOARD[OURS], 0).data.source, **cell}


PARTS = {"choice": choose, "board": compare, "cold": start_cold}


def main(
    config: Annotated[Path, typer.Argument(help="The experiment whose data are used.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    parts: Annotated[str, typer.Option(help="Parts to run.")] = ",".join(PARTS),
    models: Annotated[str, typer.Option(help="Rows to run, parted by semicolons.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds that are reported.")] = "0",
    out: Annotated[Path, typer.Option(help="Where tables go.")] = Path("runs/leaderboard"),
    work: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs/leaderboard"),
) -> None:
    """Run the rows that are not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise typer.BadParameter(f"Unknown part(s) {unknown}: choose from {', '.join(PARTS)}.")
    board = Leaderboard(config, tuple(overrides or ()), out, work)
    for name in names:
        PARTS[name](
            board,
            [model.strip() for model in models.split(";") if model],
            [int(seed) for seed in seeds.split(",")],
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
