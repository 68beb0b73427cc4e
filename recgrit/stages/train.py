"""From sequences and IDs to a trained retriever."""

from __future__ import annotations

import logging
import shutil

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.engines.engine import Engine
from recgrit.errors import TrackingError
from recgrit.experiment import ExperimentConfig
from recgrit.jobs import EPOCHS_NAME, TrainRetriever, take_facts, use_absolute_paths
from recgrit.runs import CHECKPOINTS_NAME
from recgrit.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def build_retriever(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """Weights, and what each epoch reached; an interrupted training goes on."""
    from recgrit.retrieval.training import TrainingEpoch, read_epoch

    told = set()

    def log_epoch(epoch: TrainingEpoch) -> None:
        told.add(epoch.epoch)
        metrics = {f"retriever/{name}": value for name, value in epoch.metrics().items()}
        try:
            tracker.log_metrics(metrics, step=epoch.epoch)
        except TrackingError as error:  # Hours of training are worth more than one record.
            logger.warning("%s", error)

    # Named by what is trained on what: another training never goes on from here.
    checkpoint = (config.run.dir / CHECKPOINTS_NAME / f"{writer.key}.safetensors").absolute()
    job = TrainRetriever(use_absolute_paths(config), writer.path.absolute(), checkpoint)
    engine.run_on_ranks(job, log_epoch, writer.path)
    for row in pl.read_parquet(writer.path / EPOCHS_NAME, glob=False).to_dicts():
        if row["epoch"] not in told:  # Trained in another process.
            log_epoch(read_epoch(row))
    writer.summary = take_facts(writer.path)
    shutil.rmtree(checkpoint.parent)
