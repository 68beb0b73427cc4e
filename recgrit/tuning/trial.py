"""One trial: a run folder of its own that ends with the training, and its value on validation.

Nothing here reads test: a trial runs no further than ``train``, and is measured on validation
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

# What the training reports of an epoch of the run's own model.
EPOCH_METRIC = "train/valid_ndcg_at_10"
# Validation users by whom trials are compared; the same in all of them.
VALID_USERS = 10_000


class TrialTracker:
    """A trial in a tracked run: what each epoch reached, and nothing that trials have in common.

    Args:
        run: Of this trial.
        on_epoch: Called with the number of each epoch of training, from 1, and its validation
            NDCG@10; may raise to end the trial there.
    """

    def __init__(self, run: Tracker, on_epoch: Callable[[int, float], None]) -> None:
        self._run = run
        self._on_epoch = on_epoch

    @property
    def location(self) -> str:
        """Where a user finds the trial."""
        return self._run.location

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing: what a trial varies is recorded by the tuning."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, and pass those of an epoch on."""
        self._run.log_metrics(metrics, step)
        if step is not None and EPOCH_METRIC in metrics:
            self._on_epoch(step, metrics[EPOCH_METRIC])

    def log_artifact(self, path: Path) -> None:
        """Do nothing: files stay in the folder of the trial."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing: stages would overwrite each other's."""

    def log_data(self, origin: DataOrigin) -> None:
        """Record what the trial starts from."""
        self._run.log_data(origin)

    def register_model(self, directory: Path, name: str) -> str:
        """Do nothing: the winner is registered when it is run."""
        return ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Self]:
        """Itself: a trial is one run."""
        yield self


def measure(config: ExperimentConfig) -> float:
    """NDCG@10 of a trial's model on validation targets, nothing masked, as `evaluate` ranks."""
    settings = config.settings_of(config.model.kind)
    run = Run(config.run.dir, device=getattr(settings, "device", "auto"))
    split, evaluation = run.data.split, config.evaluation
    users = choose_valid_users(split, VALID_USERS, config.seed)
    # As wide as for the longest lists that are evaluated.
    width = search_width(evaluation.beam_width, max(evaluation.ks), split.num_items)
    _, ndcg = validate(run.recommender(beam_width=width).ranker(), split, users)
    return ndcg


def share_stages(config: ExperimentConfig, donors: Iterable[Path]) -> None:
    """Put stages that another trial has made of the same start into a trial's folder.

    Files are linked, or copied where the disk has no links; artifacts are never changed in place.

    Args:
        config: Of the trial.
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
            return  # What is built from it differs too.
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(donor, partial, copy_function=_link)
        replace_folder(partial, place)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
