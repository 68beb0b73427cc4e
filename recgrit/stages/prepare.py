"""From raw files to interactions, items and their split."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recgrit.artifacts import ArtifactWriter
from recgrit.data.prepare import prepare
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.tracking.tracker import Tracker


def build_data(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """All that `prepare` returns."""
    # Gone before the artifact's files are counted.
    with TemporaryDirectory(prefix=".scratch-", dir=writer.path) as scratch:
        data = prepare(config.data, scratch_dir=Path(scratch))
        data.save(writer.path)
    writer.summary = {
        "source": config.data.source,
        "num_users": data.interactions.num_users,
        "num_items": data.interactions.num_items,
        "num_interactions": len(data.interactions),
        "num_evaluated_users": len(
            np.unique(data.split.owners_of(data.split.target_users("test")))
        ),
        "num_untrained_items": int(np.sum(data.split.train_item_counts() == 0)),
        "funnel": data.funnel.to_dicts(),
    }
    tracker.set_tags({"data.source": config.data.source})
