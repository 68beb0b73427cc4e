"""A bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model`.

One row per user: a list of item ids, or the id of a user whom the bundle knows, in; three lists of
equal length out. The model is kept as code and a bundle, so nothing is pickled; whoever loads it
has recgrit installed.

The signature leaves what a history holds open. Where it says that texts are wanted, MLflow turns
them into arrays of a fixed width, and with pandas 3 a null beside them cuts every id to a letter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array

import recgrit
from recgrit.bounds import LISTED_ITEMS
from recgrit.data.ids import IdList, is_null, list_ids
from recgrit.data.recommendations import Recommendations
from recgrit.disk import MANIFEST_NAME, making_folder, resolve_links
from recgrit.errors import ArtifactError, ConfigError, DataError, RecgritError
from recgrit.recommender import TOP_K, Fallback, check_top_k, list_popular, listed_items
from recgrit.records import BUNDLE
from recgrit.serving.bundle import Bundle
from recgrit.serving.requests import harden_server

logger = logging.getLogger(__name__)

# Between two looks at a bundle that is followed.
LOOK_SECONDS = 1.0
# In place of ids of allowed items: all of them.
ALL_ITEMS = "*"
# Of a request or of the model's config: histories without a known item get empty lists.
NO_FALLBACK = "none"

# What MLflow keeps beside the bundle and runs when the model is loaded.
CODE_PATH = Path(__file__).with_name("pyfunc_code.py")

_TEXTS = Array(DataType.string)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(AnyType(), "history", required=False),
            ColSpec(AnyType(), "user_id", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(_TEXTS, "item_ids"),
            ColSpec(_TEXTS, "titles"),
            ColSpec(Array(DataType.double), "scores"),
            ColSpec(DataType.string, "source"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("top_k", DataType.long, TOP_K),
            ParamSpec("exclude_seen", DataType.boolean, True),
            # A parameter that is a list has a list as its default: an empty one would say nothing.
            ParamSpec("allowed_items", DataType.string, [ALL_ITEMS], shape=(-1,)),
            ParamSpec("blocked_items", DataType.string, [], shape=(-1,)),
            # Left out, the model's config says it.
            ParamSpec("fallback", DataType.string, None),
        ]
    ),
)


class OpenBundle:
    """A bundle with all that answers need: the first request need not wait for it.

    Args:
        bundle: Verified when it is opened.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.fingerprint = bundle.fingerprint
        self.recommender = bundle.recommender()
        self.recommender.ranker()
        self.popular = self.recommender.popular()
        self.users = bundle.users
        items = self.recommender.items
        self.item_ids = np.array(items.item_ids.to_list(), dtype=object)
        self.titles = np.array(items.titles.to_list(), dtype=object)


class FollowedBundle:
    """The bundle behind a path, opened anew when another one lies there.

    Requests use the earlier bundle while the next one is opened, and where that fails.

    Args:
        path: A bundle, or a link to one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tried = self._sign()
        self._open = self._read()
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._said = ""

    def get(self) -> OpenBundle:
        """The bundle to answer with; looks for another one at most once in `LOOK_SECONDS`."""
        is_due = time.monotonic() - self._looked >= LOOK_SECONDS
        if is_due and self._looking.acquire(blocking=False):
            self._looked = time.monotonic()
            threading.Thread(target=self._look, daemon=True).start()
        return self._open

    def _look(self) -> None:
        try:
            signature = self._sign()
            if signature != self._tried:
                self._tried = signature
                self._open = self._read()
                logger.info("answering with the bundle %s now", self._open.fingerprint)
            self._said = ""
        except Exception as error:  # Whatever lies there now: requests go on.
            if self._said != str(error):
                logger.warning("still answering with %s: %s", self._open.fingerprint, error)
            self._said = str(error)
        finally:
            self._looking.release()

    def _sign(self) -> tuple[str, int, int]:
        """What changes when another bundle comes into its place."""
        manifest = resolve_links(self.path) / MANIFEST_NAME
        found = manifest.stat()
        return str(manifest), found.st_ino, found.st_mtime_ns

    def _read(self) -> OpenBundle:
        # Not through the link, which may lead elsewhere before all is read.
        return OpenBundle(Bundle(resolve_links(self.path)))


def _follow(path: Path) -> FollowedBundle:
    """The bundle behind a path.

    Raises:
        ArtifactError: There is none.
    """
    try:
        return FollowedBundle(path)
    except (OSError, ValueError) as error:  # No file may be called like that.
        raise ArtifactError(
            f"Cannot read the bundle {str(path)[:200]!r} of the model's config: "
            f"{getattr(error, 'strerror', None) or error}. Set bundle to the folder of a bundle, "
            "or to a link to one."
        ) from None


def _read_path(value: object) -> Path | None:
    """The bundle to follow, of the model's config; None for the model's own.

    Raises:
        ConfigError: It is no path.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"bundle of the model's config must be a path, got {value!r:.40}.")
    return Path(value)


def _read_max_listed(value: object) -> int:
    """The most items of one request, of the model's config; the environment's where it is 0.

    Raises:
        ConfigError: It is no whole number from 0.
    """
    if value is None:
        return LISTED_ITEMS.allowed()
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"max_listed of the model's config must be a whole number from 0, got {value!r:.40}."
        )
    return value or LISTED_ITEMS.allowed()


class BundleModel(PythonModel):
    """What MLflow calls; its state is in the bundle."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle."""
        harden_server()
        config = context.model_config or {}
        if followed := _read_path(config.get("bundle")):
            self._get: Callable[[], OpenBundle] = _follow(followed).get
        else:
            bundle = Bundle(context.artifacts[BUNDLE])
            _require_own(bundle)
            opened = OpenBundle(bundle)
            self._get = lambda: opened
        self.max_listed = _read_max_listed(config.get("max_listed"))
        self.fallback = _read_fallback(config.get("fallback", NO_FALLBACK))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Ranked lists after histories.

        Args:
            context: Not used.
            model_input: Column ``history``: item ids, oldest first. A bare string is one id; nulls
                and ids that are not in the catalogue are passed over, and their number is logged.
                Or column ``user_id``: a user whom the bundle knows, where it was exported with
                users. Of the two, each row has one.
            params: ``top_k``, items per list; ``exclude_seen``, whether to keep out what the
                history holds; ``allowed_items``, ids of the only items that may be listed, "*"
                alone for all; ``blocked_items``, ids of items that are never listed, such as those
                out of stock; ``fallback``, "popular" for the most popular items after a history
                without a known item, "none" for empty lists, the model's config if left out.

        Returns:
            One row per history: ``item_ids``, ``titles`` and ``scores``, best first, and
            ``source``: "history", "popular", or "none" for empty lists, which follow a history
            without a known item. The score of popular items is how often they stand in training.

        Raises:
            MlflowException: What was asked cannot be answered; over HTTP that is status 400.
        """
        opened = self._get()
        try:
            found, popular = self._rank(opened, model_input, params or {})
        except RecgritError as error:
            # Any other exception would come with a stack trace, and its message would be lost.
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        listed = dict.fromkeys(range(len(model_input)), np.empty(0, dtype=np.int32))
        scores = dict.fromkeys(range(len(model_input)), np.empty(0, dtype=np.float32))
        sources = dict.fromkeys(range(len(model_input)), NO_FALLBACK)
        for source, lists in (("history", found), ("popular", popular)):
            for row, items, values_of in zip(lists.users, lists.items, lists.scores, strict=True):
                listed[int(row)] = listed_items(items)
                scores[int(row)] = values_of[: len(listed[int(row)])]
                sources[int(row)] = source
        return pd.DataFrame(
            {
                "item_ids": [opened.item_ids[items].tolist() for items in listed.values()],
                "titles": [opened.titles[items].tolist() for items in listed.values()],
                "scores": [of_row.tolist() for of_row in scores.values()],
                "source": list(sources.values()),
            },
            index=model_input.index,
        )

    def _rank(
        self, opened: OpenBundle, model_input: pd.DataFrame, params: Mapping[str, Any]
    ) -> tuple[Recommendations, Recommendations]:
        """Lists of the model, and of popular items where they are asked for."""
        _require_table(model_input)
        values = {"top_k": TOP_K, "exclude_seen": True, **params}
        if not isinstance(values["exclude_seen"], bool):
            raise DataError(f"exclude_seen must be true or false, got {values['exclude_seen']}.")
        asked = values.get("fallback")
        fallback = self.fallback if asked is None else _read_fallback(asked)
        top_k = min(check_top_k(values["top_k"]), len(opened.item_ids))
        if top_k * len(model_input) > self.max_listed:
            raise DataError(
                f"One request may ask for {self.max_listed:,} items, got {len(model_input):,} "
                f"histories of {top_k:,} items each. Ask in several requests, or raise max_listed "
                f"of the model's config or {LISTED_ITEMS.variable} of the environment."
            )
        filters = _read_filters(values)
        histories, people = _read_histories(opened, model_input)
        found = opened.recommender.rank_histories(
            histories,
            people=people,
            ranker=opened.recommender.ranker(**filters),
            top_k=top_k,
            exclude_seen=values["exclude_seen"],
        )
        without = np.setdiff1d(np.arange(len(model_input)), found.users)
        if fallback is None:
            without = without[:0]
        popular = opened.recommender.popular(**filters) if filters else opened.popular
        return found, list_popular(popular, without, top_k)


def _require_table(model_input: object) -> None:
    """Refuse what is no table, or one with two columns of a name.

    Raises:
        DataError: It is.
    """
    if not isinstance(model_input, pd.DataFrame):
        raise DataError(
            "Expected a data frame with a column history or user_id, got "
            f"a {type(model_input).__name__}."
        )
    for name in ("history", "user_id"):
        if (found := int((model_input.columns == name).sum())) > 1:
            raise DataError(f"Expected one column {name}, got {found}.")


def _read_histories(
    opened: OpenBundle, model_input: pd.DataFrame
) -> tuple[list[IdList], npt.NDArray[np.int64]]:
    """The history of each row: its own, or that of the user it names; and the place of that user.

    Raises:
        DataError: A row has both or neither, or the bundle knows no users.
    """
    if "user_id" not in model_input.columns:
        if "history" not in model_input.columns:
            raise DataError("Expected a column history or user_id, got neither.")
        return list(model_input["history"]), np.full(len(model_input), -1)
    if not len(opened.users.user_ids):
        raise DataError(
            "This bundle knows no users: send the column history, or export it with "
            "'recgrit export bundle --users'."
        )
    histories: list[IdList] = []
    people = np.full(len(model_input), -1)
    rows = model_input.reindex(columns=["history", "user_id"])
    for number, (history, user_id) in enumerate(rows.itertuples(index=False)):
        has_history = not is_null(history)
        named = [] if is_null(user_id) else list_ids([user_id], f"user_id of row {number}")
        if has_history == bool(named):
            both = "both" if named else "neither"
            raise DataError(f"Row {number} needs a history or a user_id, got {both}.")
        items = opened.users.history(named[0]) if named else None
        if named:
            people[number] = opened.users.row(named[0])
        histories.append(history if items is None else opened.item_ids[items].tolist())
    return histories, people


def _read_fallback(value: object) -> Fallback | None:
    """What a request or a config says of histories without a known item.

    Raises:
        DataError: It says something else than "popular" or "none".
    """
    if isinstance(value, str) and value == NO_FALLBACK:
        return None
    if isinstance(value, str) and value == "popular":
        return "popular"
    raise DataError(f"fallback must be 'popular' or 'none', got {value!r:.40}.")


def _read_filters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Which items may be listed: all where a request does not say, none of an empty list."""
    allowed = list_ids(values.get("allowed_items", [ALL_ITEMS]), "allowed_items")
    blocked = list_ids(values.get("blocked_items", []), "blocked_items")
    found = {} if allowed == [ALL_ITEMS] else {"allowed_items": allowed}
    return found | ({"blocked_items": blocked} if blocked else {})


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
    listed = bundle.items.item_ids.filter(bundle.catalogue.listed)
    try:
        with making_folder(directory) as temporary:
            mlflow.pyfunc.save_model(
                temporary,
                python_model=str(CODE_PATH),
                artifacts={BUNDLE: str(bundle.directory.absolute())},
                signature=SIGNATURE,
                input_example=pd.DataFrame({"history": [listed.head(3).to_list()]}),
                # Named, or MLflow would load the model in another process to find them.
                pip_requirements=[f"recgrit=={recgrit.__version__}"],
                metadata={"fingerprint": bundle.fingerprint},
                # What is not saved cannot be set on loading.
                model_config={"max_listed": 0, "fallback": NO_FALLBACK, "bundle": ""},
            )
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {directory}: {error.strerror}. Choose another folder."
        ) from None
