"""The stage ``recommend``, which writes recommendation lists for all users."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.data.items import read_item_list
from recgrit.data.recommendations import write_lists
from recgrit.engines.engine import Engine
from recgrit.engines.shards import ShardFunction
from recgrit.experiment import ExperimentConfig
from recgrit.layout import LISTS_NAME
from recgrit.runs import Run
from recgrit.stages.stage import Stage, plan_shards
from recgrit.tracking.tracker import Tracker

# Names of the settings that hold the path of a list of items.
LISTS = ("allowed_items", "blocked_items")


def _find_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Return the files that list allowed and blocked items, after checking that they are valid."""
    paths = tuple(path for name in LISTS if (path := getattr(config.recommendation, name)))
    for path in paths:
        read_item_list(path)  # An invalid file is an error before the training, not after it.
    return paths


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    recommendation = config.recommendation
    return {
        "beam_width": config.evaluation.beam_width,
        "recommendation": recommendation.model_dump(mode="json", exclude=set(LISTS)),
        # The settings record only which of the two lists are given. The content of the files is
        # part of the key through `inputs`.
        "lists": [name for name in LISTS if getattr(recommendation, name) is not None],
    }


@dataclass(frozen=True)
class RecommendLists:
    """A task that writes recommendation lists with item names, as `Run.recommend` returns them.

    The rows are the users of the training, followed by the users that the filters left out of it.

    Args:
        config: Settings of all stages, with absolute paths.
    """

    config: ExperimentConfig

    def __call__(self) -> ShardFunction:
        """Load the model, and return the function that writes the lists of a range of users."""
        config, settings = self.config, self.config.recommendation
        device = str(getattr(config.settings_of(config.model.kind), "device", "auto"))
        run = Run(config.run.dir, device=device)
        recommender = run.recommender(beam_width=config.evaluation.beam_width)
        allowed, blocked = (
            read_item_list(path) if path else None
            for path in (settings.allowed_items, settings.blocked_items)
        )
        ranker = recommender.ranker(allowed_items=allowed, blocked_items=blocked or ())
        popular = recommender.popular(allowed_items=allowed, blocked_items=blocked or ())

        def recommend(rows: slice, path: Path) -> None:
            trained, left_out = run.data.interactions, run.data.left_out
            behind = slice(
                max(0, rows.start - trained.num_users), max(0, rows.stop - trained.num_users)
            )
            own = slice(rows.start, min(rows.stop, trained.num_users))
            options: dict[str, Any] = {
                "ranker": ranker,
                "top_k": settings.top_k,
                "exclude_seen": settings.exclude_seen,
            }
            lists = [
                *recommender.list_users(
                    run.data.split, trained.user_ids, _places(own), source="model", **options
                ),
                *recommender.list_users(
                    left_out.split,
                    left_out.user_ids,
                    _places(behind),
                    source="history",
                    popular=popular,
                    **options,
                ),
            ]
            pl.concat(lists).write_parquet(path)

        return recommend


def _places(rows: slice) -> npt.NDArray[np.int64]:
    return np.arange(rows.start, max(rows.start, rows.stop))


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    size = engine.config.shard_users
    data = Run(config.run.dir).data
    num_users = data.interactions.num_users
    if config.recommendation.left_out_users:
        num_users += len(data.left_out.user_ids)
    shards = plan_shards(config, f"recommend-{writer.key}", num_users, size, ".parquet")
    engine.map_shards(RecommendLists(config.with_absolute_paths()), shards)
    tables = (pl.read_parquet(path, glob=False) for path in shards.paths())
    written = write_lists(tables, writer.path / LISTS_NAME)
    shards.remove()
    left_out = num_users - data.interactions.num_users
    writer.summary = {**asdict(written), "num_left_out_users": left_out}


RECOMMEND = Stage(
    name="recommend",
    version=2,
    parents=("prepare", "train"),
    settings=_settings,
    inputs=_find_inputs,
    build=_build,
    describe=lambda summary: (
        "{num_rows:,} recommendations for {num_users:,} users, {num_left_out_users:,} of them left "
        "out of training"
    ).format(**summary),
    is_large=True,
)
