"""One trial of a tuning: a run folder that ends after training, and its result on validation.

No trial reads test targets: a trial runs only up to ``train`` and is measured on validation
targets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from recgrit.artifacts import is_current
from recgrit.disk import replace_folder
from recgrit.experiment import ExperimentConfig
from recgrit.layout import stage_directory
from recgrit.retrieval.config import search_width
from recgrit.runs import Run
from recgrit.stages import plan_stages
from recgrit.tracking.tracker import DataOrigin, Tracker
from recgrit.training.validation import choose_valid_users, validate

# Name of the metric that training logs after each epoch of the run's own model.
EPOCH_METRIC = "train/valid_ndcg_at_10"
# Largest number of validation users that trials are compared on. All trials use the same users.
VALID_USERS = 10_000


class TrialTracker:
    """A tracker that records a trial's epochs and ignores what all trials have in common.

    Args:
        run: Tracker of this trial's run.
        on_epoch: Function that is called after each epoch of training with the number of the epoch,
            from 1, and its validation NDCG@10. It may raise an exception to end the trial.
    """

    def __init__(self, run: Tracker, on_epoch: Callable[[int, float], None]) -> None:
        self._run = run
        self._on_epoch = on_epoch

    @property
    def location(self) -> str:
        """Return where a user finds the trial."""
        return self._run.location

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing, because the tuning records the settings in which trials differ."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics, and pass the validation NDCG@10 of an epoch to ``on_epoch``."""
        self._run.log_metrics(metrics, step)
        if step is not None and EPOCH_METRIC in metrics:
            self._on_epoch(step, metrics[EPOCH_METRIC])

    def log_artifact(self, path: Path) -> None:
        """Do nothing, because files stay in the trial's folder."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing, because the tags of one stage would overwrite those of another."""

    def log_data(self, origin: DataOrigin) -> None:
        """Record the data that the trial starts from."""
        self._run.log_data(origin)

    def register_model(self, directory: Path, name: str) -> str:
        """Do nothing, because a model is registered when the best configuration is run."""
        return ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Self]:
        """Yield this tracker for every stage, because a trial is one run."""
        yield self


def measure(config: ExperimentConfig) -> float:
    """Return the NDCG@10 of a trial's model on validation targets.

    Items are ranked as in `evaluate`, and seen items are not filtered out.
    """
    settings = config.settings_of(config.model.kind)
    run = Run(config.run.dir, device=getattr(settings, "device", "auto"))
    split, evaluation = run.data.split, config.evaluation
    users = choose_valid_users(split, VALID_USERS, config.seed)
    # The beam is as wide as for the longest lists that `evaluate` makes.
    width = search_width(evaluation.beam_width, max(evaluation.ks), split.num_items)
    _, ndcg = validate(run.recommender(beam_width=width).ranker(), split, users)
    return ndcg


def share_stages(config: ExperimentConfig, donors: Iterable[Path]) -> None:
    """Copy stages that another trial has built from the same start into a trial's folder.

    Files are hard-linked, or copied if the disk has no hard links. Links are safe because artifacts
    are never changed in place.

    Args:
        config: Settings of the trial.
        donors: Folders of other trials.
    """
    folders = list(donors)
    for stage in plan_stages(config, "train")[:-1]:
        place = stage.directory(config)
        if stage.is_current(config):
            continue
        key = stage.origin(config).key
        found = (stage_directory(folder, stage.name) for folder in folders)
        donor = next((path for path in found if path.is_dir() and is_current(path, key)), None)
        if donor is None:
            return  # Later stages are built from this one, so they differ too.
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(donor, partial, copy_function=_link)
        replace_folder(partial, place)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
