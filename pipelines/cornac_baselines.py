"""Train cornac's SASRec and TIGER on a run's split and evaluate their lists.

    pip install -e ".[cornac]"
    python pipelines/cornac_baselines.py configs/amazon2014-beauty.yaml data.path=/path/to/files
        --models SASRec,TIGER --budget 600 --out runs/cornac

Each model trains at least one epoch. It starts no further epoch when its seconds are over. The
model after the last epoch counts, and the manifest records the seconds of the training. TIGER gets
the item features, the codebook sizes and the beam width of the experiment. The lists, and their
reports by recgrit's evaluation, go to OUT/MODEL-SEED. A result that is there and up to date is not
made again. A warning is logged if cornac's own metrics differ from recgrit's on the same lists.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cornac
import numpy as np
import typer
from cornac.data import FeatureModality, SequentialDataset
from cornac.metrics import NDCG, Recall
from cornac.models import TIGER, SASRec
from cornac.models.tiger import GRID_CONFIG
from foreign import TOP_K, ForeignLists, keep_lists, print_reports

from recgrit.config import load_config
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run

logger = logging.getLogger(__name__)

# Number of epochs that no training reaches: the time budget ends the training.
ENDLESS = 1_000_000
# cornac gives a score of -1e10 to items that TIGER's beam did not reach.
NOT_REACHED = -1e9
MODELS = ("SASRec", "TIGER")


class TimeIsUpError(Exception):
    """The time budget is spent, so no further epoch starts."""


class TimedSessions(SequentialDataset):
    """Training sequences that end the training when the time is up.

    cornac reads the sessions once per epoch, so an exception there ends the training.

    Attributes:
        ends: Monotonic time in seconds after which no epoch starts.
        epochs: Number of epochs that started.
    """

    ends = 0.0
    epochs = 0

    @property
    def sessions(self) -> dict[int, list[int]]:
        """Return the row numbers of each session.

        Raises:
            TimeIsUpError: The time is up, and at least one epoch started before.
        """
        if self.epochs and time.monotonic() > self.ends:
            raise TimeIsUpError
        self.epochs += 1
        return super().sessions


def build_data(split: SequenceSplit, features: np.ndarray) -> TimedSessions:
    """Build cornac's data set, with one session per user from the training part of the split.

    Args:
        split: Split of the run. Its user and item numbers are kept.
        features: Item features, one row per item.
    """
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
    """Return the split with the targets of randomly drawn users only.

    Args:
        split: Split of the run.
        number: Number of users, drawn with seed 0. None keeps all users.
    """
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
    """Build a model of cornac: SASRec with its defaults, TIGER with the GRID recipe."""
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


def fit(model: Any, data: TimedSessions, split: SequenceSplit, seconds: float) -> ForeignLists:
    """Train a model until its time is up, and list items for the test targets.

    Args:
        model: Model of cornac.
        data: Training sequences.
        split: Split with the test targets.
        seconds: Time budget of the training.
    """
    started = time.monotonic()
    data.ends = started + seconds
    try:
        model.fit(data)
    except TimeIsUpError:
        logger.info("%d epochs in %.0f s", data.epochs, time.monotonic() - started)
    summary = {"epochs": data.epochs, "fit_seconds": time.monotonic() - started}
    summary["parameters"] = sum(p.numel() for p in model.model.parameters())
    users = split.target_users("test")
    best = [best_items(model, split.history(int(user), "test")) for user in users]
    items = np.full((len(users), max(TOP_K, *map(len, best))), NO_ITEM, dtype=np.int32)
    for row, found in zip(items, best, strict=True):
        row[: len(found)] = found
    scores = np.where(items == NO_ITEM, -np.inf, -np.arange(items.shape[1])).astype(np.float32)
    lists = Recommendations(users, items, scores)
    return ForeignLists(lists, False, measure_as_cornac(lists, split), summary)


def best_items(model: Any, history: np.ndarray) -> np.ndarray:
    """Return the best items after a history, enough to keep `TOP_K` without seen items."""
    scores = np.asarray(model.score(None, history.tolist()))
    order = np.argsort(-scores, kind="stable")[: TOP_K + len(np.unique(history))]
    return order[scores[order] > NOT_REACHED]


def measure_as_cornac(lists: Recommendations, split: SequenceSplit) -> dict[str, float]:
    """Compute cornac's own Recall@10 and NDCG@10 of the lists for the test targets."""
    targets = split.targets("test", lists.users)
    pairs = list(zip(targets[:, None], lists.items[:, :TOP_K], strict=True))
    return {
        f"{metric.name.split('@')[0].lower()}_at_10": float(
            np.mean([metric.compute(gt_pos=target, pd_rank=items) for target, items in pairs])
        )
        for metric in (Recall(k=10), NDCG(k=10))
    }


def train(
    name: str, experiment: ExperimentConfig, run: Run, split: SequenceSplit, seconds: float
) -> ForeignLists:
    """Train a model of cornac from scratch and return its lists.

    Args:
        name: Name of the model, one of `MODELS`.
        experiment: Settings of the run.
        run: Run with the item features.
        split: Split with the targets that are evaluated.
        seconds: Time budget of the training.
    """
    data = build_data(split, np.asarray(run.features.vectors))
    return fit(build_model(name, experiment), data, split, seconds)


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further settings as key=value.")
    ] = None,
    models: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(MODELS),
    budget: Annotated[float, typer.Option(help="Seconds to train each model.")] = 60,
    max_users: Annotated[int | None, typer.Option(help="Test users to draw; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/cornac"),
) -> None:
    """Train the models without up-to-date lists and print the metrics of all."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise ConfigError(f"No model(s) {unknown}: choose from {', '.join(MODELS)}.")
    where = [f"run.dir={out / 'run'}", "tracking.backend=none"]
    experiment = load_config(ExperimentConfig, config, [*(overrides or []), *where])
    run_experiment(experiment, until="embed")
    run = Run(experiment.run.dir)
    split = limit_users(run.data.split, max_users)
    directories = [out / f"{name}-{experiment.seed}" for name in names]
    for name, directory in zip(names, directories, strict=True):
        settings = {
            "library": f"cornac=={cornac.__version__}",
            "model": name,
            "seed": experiment.seed,
            "budget": budget,
            "max_users": max_users,
            "features": run.manifest("embed").fingerprint,
            "codebook_sizes": list(experiment.tokenizer.codebook_sizes),
            "beam_width": experiment.evaluation.beam_width,
        }
        keep_lists(
            run, split, directory, settings, partial(train, name, experiment, run, split, budget)
        )
    print_reports(directories)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
