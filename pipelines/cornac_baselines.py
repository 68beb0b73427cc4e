"""cornac's SASRec and TIGER on our split, as rows of the leaderboard.

    pip install -e ".[cornac]"
    python pipelines/cornac_baselines.py configs/amazon2014-beauty.yaml data.path=/path/to/files
        --models SASRec,TIGER --budget 600 --out docs/results/leaderboard

Each begins epochs until its seconds are over, and at least one; the last counts, and how long all
took stands in the row. TIGER gets the item features, the size of codebooks and the beam of the
experiment. Lists are read by our evaluation; what cornac's metrics say of the same lists stands
beside it in the row.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from cornac.data import FeatureModality, SequentialDataset
from cornac.metrics import NDCG, Recall
from cornac.models import TIGER, SASRec
from cornac.models.tiger import GRID_CONFIG
from leaderboard import measure
from leaderboard_models import TOP_K, Fitted

from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import ConfigError, RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.running import run_experiment
from recgrit.runs import Run

logger = logging.getLogger(__name__)

ENDLESS = 1_000_000
# What TIGER's beam did not reach has a score of -1e10.
NOT_REACHED = -1e9
MODELS = ("SASRec", "TIGER")


class TimeIsUpError(Exception):
    """No further epoch begins."""


class TimedSessions(SequentialDataset):
    """Training sequences that end a training: cornac asks for them once an epoch."""

    ends = 0.0
    epochs = 0

    @property
    def sessions(self) -> dict[int, list[int]]:
        """Rows of each sequence."""
        if self.epochs and time.monotonic() > self.ends:
            raise TimeIsUpError
        self.epochs += 1
        return super().sessions


def build_data(split: SequenceSplit, features: np.ndarray) -> TimedSessions:
    """The training part of each user as one session, with our numbers of users and items."""
    rows = [
        (user, user, int(item), place)
        for user in range(split.num_users)
        for place, item in enumerate(split.items[split.offsets[user] : split.train_ends[user]])
    ]
    users = OrderedDict((user, user) for user in range(split.num_users))
    items = OrderedDict((item, item) for item in range(split.num_items))
    data = TimedSessions.build(rows, "USIT", users, OrderedDict(users), items)
    data.add_modalities(item_feature=FeatureModality(features=features))
    return data


def limit_users(split: SequenceSplit, number: int | None) -> SequenceSplit:
    """The same split with the targets of some users alone, as the leaderboard draws them."""
    users = split.target_users("test")
    if number is None or number >= len(users):
        return split
    kept = np.random.default_rng(0).choice(users, number, replace=False)
    targets = np.isin(np.arange(split.num_users), kept)
    return replace(
        split,
        valid_targets=np.where(targets, split.valid_targets, -1),
        test_targets=np.where(targets, split.test_targets, -1),
    )


def build_model(name: str, config: ExperimentConfig) -> Any:
    """One of cornac's models with its own defaults; TIGER's by the GRID recipe."""
    if name == "SASRec":
        return SASRec(n_epochs=ENDLESS, seed=config.seed)
    settings = {
        "rqvae_num_levels": config.tokenizer.num_levels,
        "rqvae_codebook_size": config.tokenizer.codebook_size,
        "n_beams": config.evaluation.beam_width,
        "model_selection": "last",
        "n_epochs": ENDLESS,
        "device": "cpu",
    }
    return TIGER(**(GRID_CONFIG | settings), seed=config.seed)


def fit(model: Any, data: TimedSessions, split: SequenceSplit, seconds: float) -> Fitted:
    """Train a model until its time is up."""
    started = time.monotonic()
    data.ends = started + seconds
    try:
        model.fit(data)
    except TimeIsUpError:
        logger.info("%d epochs in %.0f s", data.epochs, time.monotonic() - started)
    facts = {"epochs": data.epochs, "fit_seconds": time.monotonic() - started}
    facts["parameters"] = sum(p.numel() for p in model.model.parameters())
    scored: dict[str, list[np.ndarray]] = {}

    def recommend(name: Split, users: np.ndarray, masked: bool) -> Recommendations:
        histories = [split.history(int(user), name) for user in users]
        if name not in scored:
            # Long enough to lose what the history holds.
            scored[name] = [best_items(model, history) for history in histories]
        items = np.full((len(users), TOP_K), NO_ITEM, dtype=np.int32)
        for row, history, found in zip(items, histories, scored[name], strict=True):
            kept = (found[~np.isin(found, history)] if masked else found)[:TOP_K]
            row[: len(kept)] = kept
        scores = np.where(items == NO_ITEM, -np.inf, -np.arange(TOP_K)).astype(np.float32)
        return Recommendations(users, items, scores)

    return Fitted(recommend, facts)


def best_items(model: Any, history: np.ndarray) -> np.ndarray:
    """The best items after a history, with as many more as it holds."""
    scores = np.asarray(model.score(None, history.tolist()))
    order = np.argsort(-scores, kind="stable")[: TOP_K + len(np.unique(history))]
    return order[scores[order] > NOT_REACHED]


def measure_as_cornac(fitted: Fitted, split: SequenceSplit) -> dict[str, float]:
    """What cornac's own metrics say of the lists for test."""
    users = split.target_users("test")
    found = fitted.recommend("test", users, False).items
    pairs = list(zip(split.targets("test", users)[:, None], found, strict=True))
    return {
        f"cornac_{metric.name.split('@')[0].lower()}_at_10": float(
            np.mean([metric.compute(gt_pos=target, pd_rank=items) for target, items in pairs])
        )
        for metric in (Recall(k=10), NDCG(k=10))
    }


def main(
    config: Annotated[Path, typer.Argument(help="The experiment whose data are used.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    models: Annotated[str, typer.Option(help="Parted by commas.")] = ",".join(MODELS),
    budget: Annotated[float, typer.Option(help="Seconds to train each.")] = 60,
    max_users: Annotated[int | None, typer.Option(help="Users to evaluate, drawn; or all.")] = None,
    out: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("runs/leaderboard"),
    work: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/cornac"),
) -> None:
    """Add the rows that are not there yet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise ConfigError(f"No model(s) {unknown}: choose from {', '.join(MODELS)}.")
    where = [f"run.dir={work}", "tracking.backend=none"]
    experiment = load_config(ExperimentConfig, config, [*(overrides or []), *where])
    run_experiment(experiment, until="embed")
    run = Run(experiment.run.dir)
    split = limit_users(run.data.split, max_users)

    def fill(cell: Cell) -> dict[str, Any]:
        name = str(cell["model"]).removeprefix("cornac ").split(",")[0]
        data = build_data(split, np.asarray(run.features.vectors))
        fitted = fit(build_model(name, experiment), data, split, budget)
        row = measure(fitted, split, ("valid", "test")) | measure_as_cornac(fitted, split)
        for name in ("recall_at_10", "ndcg_at_10"):
            both = (row[f"cornac_{name}"], row[f"test_{name}"])
            logger.info("%s of the same lists: %.6f by cornac, %.6f by us", name, *both)
        return row

    cells: list[Cell] = [
        {
            "data": experiment.data.source,
            "model": f"cornac {name}, {budget:g} s",
            "seed": experiment.seed,
        }
        for name in names
    ]
    CellTable(out / "board.parquet").fill(cells, fill)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
