"""From sequences, and what else a model needs, to a fitted model; likewise for each baseline."""

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

# Settings that change no result. The source of a warm start counts in the embed stage, by content.
NO_RESULT = {"device", "init_from"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitModel:
    """Fits a model in every process, from its last checkpoint on; the first writes it."""

    config: ExperimentConfig
    kind: str
    folder: Path
    checkpoint: Path

    def __call__(self, report: Report) -> FitSummary:
        """The fit summary."""
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
    """The model to train on, over the bundle that the run carries.

    Raises:
        ConfigError: The run's retriever has other sizes.
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
    """The stage that fits the run's model; what it builds on depends on the model."""
    return _stage("train", config.model.kind)


def baseline_stages(config: ExperimentConfig) -> list[Stage]:
    """A stage for each model that is measured beside the run's own."""
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
    """The settings of a model that change its result."""
    values = config.settings_of(kind).model_dump(mode="json", exclude=NO_RESULT)
    for name in ("item_attributes", "user_attributes"):
        if not values.get(name, True):  # As before there were any.
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
    # Named by what is trained on what: another training never goes on from here.
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
        except TrackingError as error:  # Hours of training are worth more than one record.
            logger.warning("%s", error)

    return log_epoch


def _describe(kind: str, summary: dict[str, Any]) -> str:
    if "best_epoch" not in summary:
        return f"{kind} counted"
    return (
        f"{kind}, best epoch {summary['best_epoch']} of {summary['num_epochs']}, valid NDCG@10 "
        f"{summary['best']['valid_ndcg_at_10']:.4f}"
    )
