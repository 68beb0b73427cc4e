"""Every night: yesterday's bundle, today's items and users; out come a new bundle and all lists.

    python pipelines/nightly_batch.py bundle=bundles/monday out=nights/tuesday
        items=items.parquet removed=gone.txt histories=histories.parquet

`items` has the columns of the catalogue, new items and old ones alike; `removed` is a text file of
item ids; `histories` has user_id, item_id and timestamp. The next night starts from
`nights/tuesday/bundle`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from recgrit.config import Config, load_config
from recgrit.data.items import read_item_list
from recgrit.data.recommendations import write_lists
from recgrit.embedding.vectors import load_vectors
from recgrit.errors import RecgritError
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.files import read_histories, read_items

logger = logging.getLogger(__name__)


class NightConfig(Config):
    """What one night takes, and where it writes.

    Args:
        bundle: Yesterday's bundle.
        histories: What today's users took.
        out: A folder for the new bundle and the lists.
        items: Today's items; None where there are no new ones.
        vectors: Their vectors, where the bundle's items came with vectors of your own.
        removed: Items that are gone; None for none.
        top_k: Items per user.
    """

    bundle: Path
    histories: Path
    out: Path
    items: Path | None = None
    vectors: Path | None = None
    removed: Path | None = None
    top_k: int = 10


def main(config: NightConfig) -> Path:
    """Write the new bundle, then the lists; returns the folder of both."""
    before = Bundle(config.bundle)
    items = read_items(config.items, before.settings.table) if config.items else None
    vectors = load_vectors(config.vectors, items.item_ids) if items and config.vectors else None
    made = append_items(
        before,
        config.out / "bundle",
        items,
        vectors=vectors,
        removed=read_item_list(config.removed) if config.removed else (),
    )
    logger.info("%s", made.describe())
    table = made.bundle.settings.table
    users = read_histories(config.histories, made.bundle.semantic_ids, table)
    recommender = made.bundle.recommender()
    shards = recommender.list_users(users.split, users.user_ids, top_k=config.top_k)
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
