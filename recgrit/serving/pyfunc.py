"""A bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model`.

A request has one row per user: a list of item ids, or the id of a user that the bundle knows. The
answer has, for each row, lists of item ids, titles and scores of equal length. The model is saved
as a code file and a bundle, so nothing is pickled. Loading the model needs an installed recgrit.

The signature does not say what type the values of a history have. If it said text, MLflow would
convert them to arrays of fixed width, and with pandas 3 a null among them would cut every id to one
letter.
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

# Seconds between two checks whether another bundle is at a followed path.
LOOK_SECONDS = 1.0
# Value of allowed_items that allows all items.
ALL_ITEMS = "*"
# Value of fallback that gives empty lists for histories without a known item.
NO_FALLBACK = "none"

# MLflow saves this file beside the bundle, and runs it when the model is loaded.
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
            # The default of a list parameter must be a list, and an empty list would allow no item.
            ParamSpec("allowed_items", DataType.string, [ALL_ITEMS], shape=(-1,)),
            ParamSpec("blocked_items", DataType.string, [], shape=(-1,)),
            # If a request does not set the fallback, the model's config decides.
            ParamSpec("fallback", DataType.string, None),
        ]
    ),
)


class OpenBundle:
    """A bundle with everything loaded that answers need, so that the first request does not wait.

    Args:
        bundle: The bundle, whose files were verified when it was opened.
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
    """A bundle at a path that is opened again when another bundle takes its place.

    While the next bundle is being opened, and if it cannot be opened, requests are answered with
    the previous one.

    Args:
        path: Folder of a bundle, or a link to one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tried = self._sign()
        self._open = self._read()
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._said = ""

    def get(self) -> OpenBundle:
        """Return the bundle to answer with.

        At most once in `LOOK_SECONDS`, a background thread checks whether another bundle is at the
        path.
        """
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
        except Exception as error:  # Requests are answered with the previous bundle.
            if self._said != str(error):
                logger.warning("still answering with %s: %s", self._open.fingerprint, error)
            self._said = str(error)
        finally:
            self._looking.release()

    def _sign(self) -> tuple[str, int, int]:
        """Return values of the manifest file that change when another bundle replaces this one."""
        manifest = resolve_links(self.path) / MANIFEST_NAME
        found = manifest.stat()
        return str(manifest), found.st_ino, found.st_mtime_ns

    def _read(self) -> OpenBundle:
        # The link is resolved first, because it may change before everything is read.
        return OpenBundle(Bundle(resolve_links(self.path)))


def _follow(path: Path) -> FollowedBundle:
    """Open the bundle at a path, and follow later changes of the path.

    Raises:
        ArtifactError: The path has no bundle.
    """
    try:
        return FollowedBundle(path)
    except (OSError, ValueError) as error:  # ValueError: the path cannot be a file name.
        raise ArtifactError(
            f"Cannot read the bundle {str(path)[:200]!r} of the model's config: "
            f"{getattr(error, 'strerror', None) or error}. Set bundle to the folder of a bundle, "
            "or to a link to one."
        ) from None


def _read_path(value: object) -> Path | None:
    """Read ``bundle`` from the model's config: the path of a bundle to follow.

    None means that the model answers with the bundle that it was saved with.

    Raises:
        ConfigError: The value is not a path.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"bundle of the model's config must be a path, got {value!r:.40}.")
    return Path(value)


def _read_max_listed(value: object) -> int:
    """Read ``max_listed`` from the model's config: the largest number of items in one answer.

    If it is missing or 0, the limit is `LISTED_ITEMS`, which an environment variable can change.

    Raises:
        ConfigError: The value is not a whole number from 0.
    """
    if value is None:
        return LISTED_ITEMS.allowed()
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"max_listed of the model's config must be a whole number from 0, got {value!r:.40}."
        )
    return value or LISTED_ITEMS.allowed()


class BundleModel(PythonModel):
    """The Python model that MLflow loads and calls. All of its state is in the bundle."""

    def load_context(self, context: Any) -> None:
        """Open and verify the bundle, and read the model's config."""
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
        """Recommend items after histories.

        Args:
            context: Not used.
            model_input: Each row has a value in exactly one of two columns. ``history`` is a list
                of item ids, oldest first; a bare string is one id. Nulls and ids that are not in
                the catalogue are skipped, and their number is logged. ``user_id`` is the id of a
                user that was exported with the bundle.
            params: ``top_k`` is the number of items per list. ``exclude_seen`` says whether items
                of the history are filtered out. ``allowed_items`` are the ids of the only items
                that may be listed; "*" alone allows all. ``blocked_items`` are ids of items that
                are never listed, such as items out of stock. ``fallback`` says what follows a
                history without a known item: "popular" for the most popular items, "none" for an
                empty list. If it is missing, the model's config decides.

        Returns:
            One row per history with ``item_ids``, ``titles`` and ``scores``, best first, and
            ``source``. The source is "history", "popular", or "none" for an empty list. The score
            of a popular item is its number of training interactions.

        Raises:
            MlflowException: The request cannot be answered. Over HTTP this is status 400.
        """
        opened = self._get()
        try:
            found, popular = self._rank(opened, model_input, params or {})
        except RecgritError as error:
            # For any other exception MLflow answers with a stack trace and without the message.
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
        """Rank items after the histories of a request.

        Returns:
            The lists of the model, and the lists of popular items for histories without a known
            item. The latter are empty if the fallback is off.
        """
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
                f"of the model's config or the environment variable {LISTED_ITEMS.variable}."
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
    """Check that the input is a data frame with at most one column per name.

    Raises:
        DataError: The input is no data frame, or has two columns ``history`` or ``user_id``.
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
    """Return the history of each row, and the row number of its user in the bundle.

    The history is the row's own, or that of the user that the row names. The number is -1 if the
    row names no user.

    Raises:
        DataError: A row has both a history and a user or neither, or the bundle knows no users.
    """
    if "user_id" not in model_input.columns:
        if "history" not in model_input.columns:
            raise DataError("Expected a column history or user_id, got neither.")
        return list(model_input["history"]), np.full(len(model_input), -1)
    if not len(opened.users.user_ids):
        raise DataError(
            "This bundle has no users: send the column history, or export it with 'recgrit "
            "export bundle --users'."
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
    """Read which list follows a history without a known item: "popular", or None for an empty list.

    Raises:
        DataError: The value is neither "popular" nor "none".
    """
    if isinstance(value, str) and value == NO_FALLBACK:
        return None
    if isinstance(value, str) and value == "popular":
        return "popular"
    raise DataError(f"fallback must be 'popular' or 'none', got {value!r:.40}.")


def _read_filters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the filters ``allowed_items`` and ``blocked_items`` of a request.

    A filter that the request does not set is left out. An empty list of allowed items allows none.
    """
    allowed = list_ids(values.get("allowed_items", [ALL_ITEMS]), "allowed_items")
    blocked = list_ids(values.get("blocked_items", []), "blocked_items")
    found = {} if allowed == [ALL_ITEMS] else {"allowed_items": allowed}
    return found | ({"blocked_items": blocked} if blocked else {})


def _require_own(bundle: Bundle) -> None:
    """Check that the model folder holds the bundle that it was saved with.

    Raises:
        ArtifactError: The model's metadata names another fingerprint.
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
    """Write an MLflow model folder that contains the bundle.

    Raises:
        ArtifactError: The folder exists already, or cannot be written.
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
                # Without named requirements, MLflow would load the model in another process to
                # find them.
                pip_requirements=[f"recgrit=={recgrit.__version__}"],
                metadata={"fingerprint": bundle.fingerprint},
                # MLflow lets a user set only those values on loading that are saved here.
                model_config={"max_listed": 0, "fallback": NO_FALLBACK, "bundle": ""},
            )
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {directory}: {error.strerror}. Choose another folder."
        ) from None
