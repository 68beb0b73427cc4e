"""From a trained retriever to lists for all users."""

from __future__ import annotations

from dataclasses import asdict

import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.data.recommendations import write_lists
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.jobs import RecommendLists, plan_shards, use_absolute_paths
from recgrit.runs import Run
from recgrit.tracking.tracker import Tracker


def build_recommendations(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """One file of named lists."""
    size = engine.config.shard_users
    num_users = Run(config.run.dir).data.interactions.num_users
    shards = plan_shards(config, f"recommend-{writer.key}", num_users, size, ".parquet")
    engine.map_shards(RecommendLists(use_absolute_paths(config)), shards)
    tables = (pl.read_parquet(path, glob=False) for path in shards.paths())
    written = write_lists(tables, writer.path / "recommendations.parquet")
    shards.remove()
    writer.summary = asdict(written)
