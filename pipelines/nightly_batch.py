"""Make a new bundle and lists for all users from yesterday's bundle and today's items and users.

    python pipelines/nightly_batch.py bundle=bundles/monday out=nights/tuesday
        items=items.parquet removed=gone.txt histories=histories.parquet

Run the script once a night. `items` is a table with the columns of the catalogue, of
new and of old items. `removed` is a text file of item ids. `histories` is a table with the columns
user_id, item_id and timestamp. The next night starts from `nights/tuesday/bundle`.

With `train=config.yaml` the script first continues training from yesterday's bundle on today's log
(`retriever.init_from`). The run of this training is `nights/tuesday/run`. `settings` override
settings of the file:

    python pipelines/nightly_batch.py ... train=config.yaml 'settings=[retriever.epochs=3]'
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from pydantic import Field, model_validator

from recgrit.config import Config, load_config
from recgrit.data.items import read_item_list
from recgrit.data.recommendations import write_lists
from recgrit.embedding.vectors import load_some_vectors, load_vectors
from recgrit.errors import RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.files import read_histories, read_items
from recgrit.serving.writing import export_bundle

logger = logging.getLogger(__name__)


class NightConfig(Config):
    """Inputs and outputs of one night.

    Args:
        bundle: Folder of yesterday's bundle.
        histories: Table of the items that today's users interacted with.
        out: Folder for the new bundle and the lists.
        items: Table of today's items. None if there are no new items.
        vectors: File of vectors of today's items, for a bundle whose items have vectors of your
            own.
        blocks: Files of vectors of today's items, by the name of the block of features.
        pictures: Folder that relative paths of today's pictures start from. None means the working
            folder.
        removed: Text file with the ids of removed items. None removes no items.
        top_k: Number of items per user.
        train: YAML file of the run that continues training from the bundle on today's log. None
            keeps the weights of the bundle.
        settings: Settings that override those of ``train``, such as ``retriever.epochs=3``.
    """

    bundle: Path
    histories: Path
    out: Path
    items: Path | None = None
    vectors: Path | None = None
    blocks: dict[str, Path] = Field(default_factory=dict)
    pictures: Path | None = None
    removed: Path | None = None
    top_k: int = 10
    train: Path | None = None
    settings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_train(self) -> NightConfig:
        if self.settings and self.train is None:
            raise ValueError("settings are put over those of a file: name it with train=FILE")
        return self


def train_on(config: NightConfig) -> Bundle:
    """Continue training from yesterday's bundle and return the new run's bundle.

    The new bundle keeps all IDs of yesterday's bundle.
    """
    places = {"retriever.init_from": config.bundle, "run.dir": config.out / "run"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in places.items()]
    experiment = load_config(ExperimentConfig, config.train, [*config.settings, *overrides])
    run_experiment(experiment, until="train")
    bundle = export_bundle(Run(experiment.run.dir), config.out / "trained")
    logger.info("%s: the model after training, of %s", bundle.directory, bundle.parent)
    return bundle


def main(config: NightConfig) -> Path:
    """Continue training if ``train`` is set, write bundle and lists, and return their folder."""
    before = Bundle(config.bundle) if config.train is None else train_on(config)
    items = read_items(config.items, before.settings.table) if config.items else None
    vectors = load_vectors(config.vectors, items.item_ids) if items and config.vectors else None
    made = append_items(
        before,
        config.out / "bundle",
        items,
        vectors=vectors,
        blocks={
            name: load_some_vectors(path, items.item_ids) for name, path in config.blocks.items()
        }
        if items
        else None,
        pictures=config.pictures,
        removed=read_item_list(config.removed) if config.removed else (),
    )
    logger.info("%s", made.describe())
    logger.info("%s", made.delta.describe())
    table = made.bundle.settings.table
    users = read_histories(config.histories, made.bundle.semantic_ids, table)
    recommender = made.bundle.recommender()
    shards = recommender.list_users(
        users.split,
        users.user_ids,
        top_k=config.top_k,
        source="history",
        popular=recommender.popular(),
    )
    written = write_lists(shards, config.out / "recommendations.parquet")
    logger.info("%d rows for %d users", written.num_rows, written.num_users)
    return config.out


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        print(main(load_config(NightConfig, None, sys.argv[1:])))
    except RecgritError as error:
        sys.exit(str(error))
