"""The stage ``prepare``, which reads raw files and writes interactions, items and their split."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from recgrit.artifacts import ArtifactWriter
from recgrit.data.prepare import find_input_files, prepare
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.stages.stage import Stage
from recgrit.tracking.tracker import Tracker


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that the prepared data depend on.

    The places of files and the number of users in memory change no result, so they are left out.
    """
    excluded = {"path", "download_dir", "mirrors", "partition_users"}
    values = config.data.model_dump(mode="json", exclude=excluded)
    for name in ("valid_from", "test_from", "test_until"):
        # Keys of artifacts that were built before this setting existed stay valid.
        if values[name] is None:
            del values[name]
    # The settings record only whether there is an item file or a user file. The content of the
    # files is part of the key through `inputs`.
    for name in ("items_path", "users_path"):
        values["table"][name] = getattr(config.data.table, name) is not None
    # Keys of artifacts that were built before this setting existed stay valid.
    if not values["table"]["users_path"]:
        del values["table"]["users_path"]
    return values


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    # The scratch folder is deleted before the files of the artifact are listed.
    with TemporaryDirectory(prefix=".scratch-", dir=writer.path) as scratch:
        data = prepare(config.data, scratch_dir=Path(scratch))
        data.save(writer.path)
    writer.summary = {
        "source": config.data.source,
        "num_users": data.interactions.num_users,
        "num_items": data.interactions.num_items,
        "num_interactions": len(data.interactions),
        "num_left_out_users": len(data.left_out.user_ids),
        "num_evaluated_users": len(
            np.unique(data.split.owners_of(data.split.target_users("test")))
        ),
        "num_untrained_items": int(np.sum(data.split.train_item_counts() == 0)),
        "funnel": data.funnel.to_dicts(),
    }
    tracker.set_tags({"data.source": config.data.source})


PREPARE = Stage(
    name="prepare",
    version=3,
    settings=_settings,
    inputs=lambda config: find_input_files(config.data),
    build=_build,
    describe=lambda summary: (
        "{num_interactions:,} interactions of {num_users:,} users with {num_items:,} items"
    ).format(**summary),
    is_large=True,
)
