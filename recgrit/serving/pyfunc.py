"""A bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model`.

One row per user: a list of item ids in, three lists of equal length out. The model is kept as code
and a bundle, so nothing is pickled; whoever loads it has recgrit installed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import recgrit
from recgrit.data.recommendations import NO_ITEM
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ArtifactError, DataError
from recgrit.retrieval.recommend import recommend_items
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.serving.bundle import BUNDLE, Bundle

TOP_K = 10
# What MLflow keeps beside the bundle and runs when the model is loaded.
CODE_PATH = Path(__file__).with_name("pyfunc_code.py")

_TEXTS = Array(DataType.string)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(_TEXTS, "history")]),
    outputs=Schema(
        [
            ColSpec(_TEXTS, "item_ids"),
            ColSpec(_TEXTS, "titles"),
            ColSpec(Array(DataType.double), "scores"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("top_k", DataType.long, TOP_K),
            ParamSpec("exclude_seen", DataType.boolean, True),
        ]
    ),
)


class BundleModel(PythonModel):
    """What MLflow calls; its state is in the bundle."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle."""
        bundle = Bundle(context.artifacts[BUNDLE])
        self.ranker = bundle.ranker()
        self.table = bundle.semantic_ids
        self.item_ids = np.array(self.table.item_ids.to_list(), dtype=object)
        self.titles = np.array(self.table.titles.to_list(), dtype=object)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Ranked lists after histories.

        Args:
            context: Not used.
            model_input: Column ``history``: item ids, oldest first; ids that are not in the
                catalogue are passed over.
            params: ``top_k``, items per list; ``exclude_seen``, whether to keep out what the
                history holds.

        Returns:
            One row per history: ``item_ids``, ``titles`` and ``scores``, best first; empty
            lists after a history without a known item.
        """
        values = {"top_k": TOP_K, "exclude_seen": True, **(params or {})}
        top_k = int(values["top_k"])
        if top_k < 1:
            raise DataError(f"top_k must be at least 1, got {top_k}.")
        known = [self.table.find_items(history) for history in model_input["history"]]
        asked = np.flatnonzero([len(items) > 0 for items in known])
        items = np.full((len(known), top_k), NO_ITEM, dtype=np.int64)
        scores = np.full((len(known), top_k), -np.inf)
        if len(asked):
            split = SequenceSplit.of_histories(
                np.concatenate([known[row] for row in asked]).astype(np.int32),
                np.cumsum([0, *(len(known[row]) for row in asked)]),
                len(self.table),
            )
            found = recommend_items(
                self._ranker_for(top_k),
                split,
                "all",
                np.arange(len(asked)),
                top_k=top_k,
                masked=bool(values["exclude_seen"]),
            )
            items[asked], scores[asked] = found.items, found.scores
        listed = [row[row != NO_ITEM] for row in items]
        return pd.DataFrame(
            {
                "item_ids": [self.item_ids[row].tolist() for row in listed],
                "titles": [self.titles[row].tolist() for row in listed],
                "scores": [
                    row[: len(found)].tolist() for row, found in zip(scores, listed, strict=True)
                ],
            },
            index=model_input.index,
        )

    def _ranker_for(self, top_k: int) -> TrieRanker:
        """A beam finds no more items than its width."""
        width = self.ranker.beam_width
        if width is None or top_k <= width:
            return self.ranker
        wider = copy.copy(self.ranker)  # Shares weights and node vectors.
        wider.beam_width = top_k
        return wider


def save_pyfunc(bundle: Bundle, directory: Path) -> None:
    """Write an MLflow model folder with the bundle in it.

    Raises:
        ArtifactError: The folder is there already, or cannot be written.
    """
    if directory.exists():
        raise ArtifactError(f"{directory} is there already: name a folder that does not exist yet.")
    listed = bundle.semantic_ids.item_ids.filter(bundle.catalogue.listed)
    try:
        mlflow.pyfunc.save_model(
            directory,
            python_model=str(CODE_PATH),
            artifacts={BUNDLE: str(bundle.directory.absolute())},
            signature=SIGNATURE,
            input_example=pd.DataFrame({"history": [listed.head(3).to_list()]}),
            # Named, or MLflow would load the model in another process to find them.
            pip_requirements=[f"recgrit=={recgrit.__version__}"],
            metadata={"fingerprint": bundle.fingerprint},
        )
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {directory}: {error.strerror}. Choose another folder."
        ) from None
