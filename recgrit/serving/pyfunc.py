"""A bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model`.

One row per user: a list of item ids in, three lists of equal length out. The model is kept as code
and a bundle, so nothing is pickled; whoever loads it has recgrit installed.
"""

from __future__ import annotations

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
from recgrit.errors import ArtifactError
from recgrit.recommender import TOP_K, listed_items
from recgrit.serving.bundle import BUNDLE, Bundle

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
        self.recommender = Bundle(context.artifacts[BUNDLE]).recommender()
        self.recommender.ranker()  # Built now: the first request need not wait for it.
        items = self.recommender.items
        self.item_ids = np.array(items.item_ids.to_list(), dtype=object)
        self.titles = np.array(items.titles.to_list(), dtype=object)

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
        found = self.recommender.rank_histories(
            list(model_input["history"]),
            top_k=int(values["top_k"]),
            exclude_seen=bool(values["exclude_seen"]),
        )
        listed = dict.fromkeys(range(len(model_input)), np.empty(0, dtype=np.int32))
        scores = dict.fromkeys(range(len(model_input)), np.empty(0, dtype=np.float32))
        for row, items, values_of in zip(found.users, found.items, found.scores, strict=True):
            listed[int(row)] = listed_items(items)
            scores[int(row)] = values_of[: len(listed[int(row)])]
        return pd.DataFrame(
            {
                "item_ids": [self.item_ids[items].tolist() for items in listed.values()],
                "titles": [self.titles[items].tolist() for items in listed.values()],
                "scores": [of_row.tolist() for of_row in scores.values()],
            },
            index=model_input.index,
        )


def save_pyfunc(bundle: Bundle, directory: Path) -> None:
    """Write an MLflow model folder with the bundle in it.

    Raises:
        ArtifactError: The folder is there already, or cannot be written.
    """
    if directory.exists():
        raise ArtifactError(f"{directory} is there already: name a folder that does not exist yet.")
    listed = bundle.items.item_ids.filter(bundle.catalogue.listed)
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
