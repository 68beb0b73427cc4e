"""A recgrit model as a component of LensKit pipelines.

    from lenskit.pipeline import topn_pipeline
    from recgrit.adapters.lenskit import RecgritScorer

    pipeline = topn_pipeline(RecgritScorer(settings={"retriever": {"epochs": 5}}), n=10)

LensKit splits the data, calls the training, ranks and evaluates. recgrit learns from the order of
each user's interactions and gives every candidate its exact score.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.types as pat
from pydantic import BaseModel, Field

from recgrit.config import read_yaml
from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import DataError, MissingExtraError
from recgrit.frames import fit
from recgrit.recommender import Recommender
from recgrit.runs import Run

try:
    from lenskit.data import Dataset, ItemList, QueryInput, RecQuery
    from lenskit.pipeline import Component
    from lenskit.training import TrainingOptions
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "LensKit is not installed: install the extra lenskit, pip install -e '.[lenskit]' in a "
        "checkout.",
        name=error.name,
    ) from None

USER, ITEM, TIME, TITLE = "user_id", "item_id", "timestamp", "title"
AS_CONFIGURED = TrainingOptions()
# Defaults for use in LensKit: its split already decided which users and items to keep, and it has
# its own experiment tracking. Settings of the user override these values.
DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"min_user_interactions": 3, "min_item_interactions": 1},
    "tracking": {"backend": "none"},
}


class RecgritScorerConfig(BaseModel, extra="forbid"):
    """Settings of `RecgritScorer`; a value in ``settings`` overrides the one in ``config_file``."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """recgrit's settings by section, such as ``{"model": {"kind": "sasrec"}}``."""
    config_file: Path | None = None
    """A YAML file with settings; `settings` go before."""
    run_dir: Path | None = None
    """Where each training makes a run folder of its own; None for the system's temporary folder."""


class RecgritScorer(Component[ItemList]):  # type: ignore[misc]
    """Scores candidate items with a recgrit model that reads the items of the query as history.

    The history is in the order of the items' times, or in their given order if they have no times.
    Items that are unknown to training get the score NaN. If the history has no known item, all
    candidates get NaN.

    Every training creates a run folder and keeps it. A trained component stores only the path of
    this folder, so the folder has to exist wherever the component is unpickled.
    """

    config: RecgritScorerConfig
    directory: Path

    def train(self, data: Dataset, options: TrainingOptions = AS_CONFIGURED) -> None:
        """Train on the interactions and the item texts of a dataset.

        recgrit holds out the last two interactions of each user, or what ``data.split`` says, to
        choose the best epoch and to test itself. Histories in queries may contain these
        interactions.

        Args:
            data: Dataset with a column ``timestamp`` for its interactions.
            options: Training options of LensKit. ``rng`` gives the seed, unless the settings set
                one. With ``retrain`` false, a trained component is not trained again.

        Raises:
            DataError: The interactions have no times.
            ConfigError: A setting is unknown.
        """
        if hasattr(self, "directory") and not options.retrain:
            return
        events = data.interactions().arrow(ids=True)
        if TIME not in events.column_names:
            raise DataError(
                "recgrit needs the times of interactions, but the interactions of the dataset "
                f"have no column {TIME!r}, only {', '.join(events.column_names)}. Load them with "
                "their times."
            )
        parent = self.config.run_dir
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="lenskit-", dir=parent))
        fit(
            _name_as_text(events.select([USER, ITEM, TIME])).to_pandas(),
            _describe_items(data),
            until="train",
            **self._merge_settings(options),
            run__dir=directory,
        )
        self.directory = directory
        self.__dict__.pop("_opened", None)

    def _merge_settings(self, options: TrainingOptions) -> dict[str, Any]:
        """Return all settings: defaults, overridden by the file, overridden by ``settings``."""
        merged: dict[str, Any] = {name: dict(section) for name, section in DEFAULTS.items()}
        if options.rng is not None:
            merged["seed"] = int(options.random_generator().integers(2**31))
        read = {} if self.config.config_file is None else read_yaml(self.config.config_file)
        for given in (read, self.config.settings):
            for name, value in given.items():
                before = merged.get(name)
                is_section = isinstance(before, dict) and isinstance(value, dict)
                merged[name] = before | value if is_section else value
        return merged

    def __call__(self, query: QueryInput, items: ItemList) -> ItemList:
        """Score candidate items after the history in a query.

        Args:
            query: Query whose ``query_items`` are the history. LensKit's history lookup fills them
                in.
            items: Candidate items.

        Returns:
            The candidate items with their scores.
        """
        history = RecQuery.create(query).query_items
        scores = np.full(len(items), np.nan, dtype=np.float32)
        if history is not None and len(history) and len(items):
            recommender = self._open()
            found = recommender.rank_histories(
                [_order(history)],
                ranker=recommender.ranker(beam_width="exact"),
                top_k=len(recommender.items),
                exclude_seen=False,
            )
            by_item = np.full(len(recommender.items) + 1, np.nan, dtype=np.float32)
            for listed, given in zip(found.items, found.scores, strict=True):
                by_item[listed[listed != NO_ITEM]] = given[listed != NO_ITEM]
            ids = recommender.items.item_ids.to_list()
            places = pd.Index(ids).get_indexer(pd.Index([str(name) for name in items.ids()]))
            scores = by_item[places]  # Unknown items have the index -1, whose score is NaN.
        return ItemList(items, scores=scores)

    def _open(self) -> Recommender:
        if not hasattr(self, "_opened"):
            self._opened = Run(self.directory).recommender()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


def _order(history: ItemList) -> list[str]:
    """Return the item ids of a history as text, oldest first."""
    names = [str(name) for name in history.ids()]
    times = history.field(TIME)
    if times is None:
        return names
    return [names[place] for place in np.argsort(np.asarray(times), kind="stable")]


def _describe_items(data: Dataset) -> pd.DataFrame | None:
    """Return the ids and all columns of texts or text lists of a dataset's items.

    The result is None if there is no such column beside the ids.
    """
    entities = data.entities("item").arrow()
    told = [
        name
        for name, kind in zip(entities.schema.names, entities.schema.types, strict=True)
        if name != ITEM and (_is_text(kind) or (pat.is_list(kind) and _is_text(kind.value_type)))
    ]
    return _name_as_text(entities.select([ITEM, *told])).to_pandas() if told else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind))


def _name_as_text(table: pa.Table) -> pa.Table:
    """Return the table with user and item ids as text, which recgrit never alters."""
    for place, name in enumerate(table.column_names):
        if name in (USER, ITEM):
            table = table.set_column(place, name, table[name].cast(pa.string()))
    return table
