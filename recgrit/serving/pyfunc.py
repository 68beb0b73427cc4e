"""A bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model`.

One row per user: a list of item ids in, three lists of equal length out. The model is kept as code
and a bundle, so nothing is pickled; whoever loads it has recgrit installed.

The signature leaves what a history holds open. Where it says that texts are wanted, MLflow turns
them into arrays of a fixed width, and with pandas 3 a null beside them cuts every id to a letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

import recgrit
from recgrit.data.recommendations import Recommendations
from recgrit.errors import ArtifactError, DataError, RecgritError
from recgrit.recommender import TOP_K, check_top_k, listed_items
from recgrit.serving.bundle import BUNDLE, Bundle
from recgrit.serving.requests import harden_server

# Items of all lists of one request; `max_listed` of the model's config raises it.
MAX_LISTED = 2_000_000

# What MLflow keeps beside the bundle and runs when the model is loaded.
CODE_PATH = Path(__file__).with_name("pyfunc_code.py")

_TEXTS = Array(DataType.string)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), "history")]),
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
        harden_server()
        bundle = Bundle(context.artifacts[BUNDLE])
        _require_own(bundle)
        self.recommender = bundle.recommender()
        self.recommender.ranker()  # Built now: the first request need not wait for it.
        items = self.recommender.items
        self.item_ids = np.array(items.item_ids.to_list(), dtype=object)
        self.titles = np.array(items.titles.to_list(), dtype=object)
        self.max_listed = int((context.model_config or {}).get("max_listed", MAX_LISTED))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Ranked lists after histories.

        Args:
            context: Not used.
            model_input: Column ``history``: item ids, oldest first. A bare string is one id; nulls
                and ids that are not in the catalogue are passed over, and their number is logged.
            params: ``top_k``, items per list; ``exclude_seen``, whether to keep out what the
                history holds.

        Returns:
            One row per history: ``item_ids``, ``titles`` and ``scores``, best first; empty
            lists after a history without a known item.

        Raises:
            MlflowException: What was asked cannot be answered; over HTTP that is status 400.
        """
        try:
            found = self._rank(model_input, params or {})
        except RecgritError as error:
            # Any other exception would come with a stack trace, and its message would be lost.
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
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

    def _rank(self, model_input: pd.DataFrame, params: Mapping[str, Any]) -> Recommendations:
        values = {"top_k": TOP_K, "exclude_seen": True, **params}
        if not isinstance(values["exclude_seen"], bool):
            raise DataError(f"exclude_seen must be true or false, got {values['exclude_seen']}.")
        top_k = min(check_top_k(values["top_k"]), len(self.item_ids))
        if top_k * len(model_input) > self.max_listed:
            raise DataError(
                f"One request may ask for {self.max_listed:,} items, got {len(model_input):,} "
                f"histories of {top_k:,} items each. Ask in several requests, or raise max_listed "
                "of the model's config."
            )
        return self.recommender.rank_histories(
            list(model_input["history"]),
            top_k=top_k,
            exclude_seen=values["exclude_seen"],
        )


def _require_own(bundle: Bundle) -> None:
    """Refuse another bundle than the model was saved with.

    Raises:
        ArtifactError: The model's own description names another fingerprint.
    """
    description = bundle.directory.parent.parent / "MLmodel"
    if not description.is_file():
        return
    metadata = mlflow.models.Model.load(description).metadata or {}
    if metadata.get("fingerprint", bundle.fingerprint) != bundle.fingerprint:
        raise ArtifactError(
            f"The model {description.parent} was saved with the bundle {metadata['fingerprint']} "
            f"and holds {bundle.fingerprint}. Export the model again."
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
            # What is not saved cannot be set on loading.
            model_config={"max_listed": MAX_LISTED},
        )
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {directory}: {error.strerror}. Choose another folder."
        ) from None
