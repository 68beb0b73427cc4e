"""The stage ``train``, which fits the run's model, and one such stage for each baseline."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.data.attributes import require_columns
from recgrit.engines.engine import Engine
from recgrit.engines.shards import Report
from recgrit.errors import TrackingError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import CHECKPOINTS_NAME, EPOCHS_NAME, baseline_stage
from recgrit.runs import Run
from recgrit.stages.stage import Stage
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from recgrit.models.model import FitSummary
    from recgrit.models.trie import WarmStart
    from recgrit.training.loop import TrainingEpoch

# Settings that are no part of the key. A device changes no result. The source of a warm start is
# part of the key of the embed stage, by its content.
NO_RESULT = {"device", "init_from"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitModel:
    """A task that fits a model in every process and saves it in the first.

    A fit that was interrupted is resumed from its checkpoint.

    Args:
        config: Settings of all stages, with absolute paths.
        kind: Name or dotted path of the model.
        folder: Folder that the first process saves the model in.
        checkpoint: File that an interrupted fit is resumed from.
    """

    config: ExperimentConfig
    kind: str
    folder: Path
    checkpoint: Path

    def __call__(self, report: Report) -> FitSummary:
        """Fit the model and return the summary of the fit.

        Args:
            report: Function that is called with the results of each epoch.
        """
        from recgrit import distributed
        from recgrit.models.registry import find_model

        run, model = Run(self.config.run.dir), find_model(self.kind)
        start: dict[str, Any] = {}
        if self.kind == "trie" and self.config.retriever.init_from is not None:
            start["start"] = _open_start(run, self.config)
        settings = self.config.settings_of(self.kind)
        fitted = model.fit(
            run.catalogue_inputs(model.needs, settings),
            run.data.split,
            settings,
            seed=self.config.seed,
            on_epoch=report,
            checkpoint=self.checkpoint,
            **start,
        )
        if distributed.is_first():
            fitted.model.save(self.folder)
        return fitted.summary


def _open_start(run: Run, config: ExperimentConfig) -> WarmStart:
    """Return the trained model that the training starts from, out of the bundle in the run.

    Raises:
        ConfigError: The sizes of the run's retriever differ from those of the trained model.
    """
    from recgrit.models.trie import TrieModel, WarmStart
    from recgrit.serving.warm_start import require_fitting
    from recgrit.serving.writing import find_rows, open_source

    source, name = open_source(run), config.retriever.init_from
    assert name is not None
    require_fitting(source, config, name)
    model = source.model
    assert isinstance(model, TrieModel)
    return WarmStart(model.network, find_rows(source, run.data.items))


def train_stage(config: ExperimentConfig) -> Stage:
    """Return the stage that fits the run's model, whose parents depend on the model."""
    return _stage("train", config.model.kind)


def baseline_stages(config: ExperimentConfig) -> list[Stage]:
    """Return one stage for each baseline, a model that is evaluated for comparison."""
    return [_stage(baseline_stage(kind), kind) for kind in config.baselines]


def _stage(name: str, kind: str) -> Stage:
    from recgrit.models.registry import digest_code, find_model

    return Stage(
        name=name,
        version=2,
        parents=("prepare", *find_model(kind).needs),
        settings=lambda config: {
            "seed": config.seed,
            "model": kind,
            "settings": _settings(config, kind),
            "code": digest_code(kind),
        },
        build=partial(_build, kind=kind),
        check=partial(_require_columns, kind=kind),
        describe=partial(_describe, kind),
    )


def _settings(config: ExperimentConfig, kind: str) -> dict[str, Any]:
    """Return the settings of a model that its result depends on."""
    values = config.settings_of(kind).model_dump(mode="json", exclude=NO_RESULT)
    for name in ("item_attributes", "user_attributes"):
        # Keys of artifacts that were built before this setting existed stay valid.
        if not values.get(name, True):
            del values[name]
    return values


def _require_columns(config: ExperimentConfig, *, kind: str) -> None:
    settings, data = config.settings_of(kind), Run(config.run.dir).data
    for name, frame in (("item_attributes", data.items.frame), ("user_attributes", data.users)):
        if names := getattr(settings, name, ()):
            require_columns(frame, names, f"retriever.{name}")


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine, *, kind: str
) -> None:
    # The name contains the key of the artifact, so a training with other settings or data is never
    # resumed from this checkpoint.
    checkpoint = (config.run.dir / CHECKPOINTS_NAME / f"{writer.key}.safetensors").absolute()
    fit = FitModel(config.with_absolute_paths(), kind, writer.path.absolute(), checkpoint)
    prefix = "train" if kind == config.model.kind else f"baselines/{kind}"
    summary = engine.run_on_processes(fit, _epoch_logger(tracker, prefix), writer.path)
    if summary.history:
        epochs = pl.DataFrame([asdict(epoch) for epoch in summary.history])
        epochs.write_parquet(writer.path / EPOCHS_NAME)
    writer.summary = {"model": kind, **summary.to_json()}
    shutil.rmtree(checkpoint.parent, ignore_errors=True)


def _epoch_logger(tracker: Tracker, prefix: str) -> Callable[[TrainingEpoch], None]:
    def log_epoch(epoch: TrainingEpoch) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in epoch.metrics().items()}
        try:
            tracker.log_metrics(metrics, step=epoch.epoch)
        except TrackingError as error:  # A failed log entry must not end a long training.
            logger.warning("%s", error)

    return log_epoch


def _describe(kind: str, summary: dict[str, Any]) -> str:
    if "best_epoch" not in summary:
        return f"{kind}, fitted without epochs"
    return (
        f"{kind}, best epoch {summary['best_epoch']} of {summary['num_epochs']}, valid NDCG@10 "
        f"{summary['best']['valid_ndcg_at_10']:.4f}"
    )
