"""One tracked run from its start to its end, in the store the settings name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recgrit.config import Config
from recgrit.errors import TrackingError
from recgrit.tracking.tracker import NullTracker, Tracker

if TYPE_CHECKING:
    from recgrit.tracking.mlflow_tracker import MLflowTracker

logger = logging.getLogger(__name__)

# Set before MLflow is imported, since it reads some of them then; a user's own settings stay.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingConfig(Config):
    """Where runs are recorded.

    Attributes:
        backend: ``mlflow``, or ``none`` to record nothing.
        uri: MLflow tracking URI; None keeps a SQLite database in the folder of the runs.
        experiment: MLflow experiment to record runs under.
    """

    backend: Literal["mlflow", "none"] = "mlflow"
    uri: str | None = None
    experiment: str = "recgrit"


@contextmanager
def start_tracking(
    config: TrackingConfig, *, run_name: str, default_directory: Path
) -> Iterator[Tracker]:
    """A tracker for the length of a block.

    The run ends as FINISHED; as KILLED on an interrupt, and as FAILED on any other exception,
    which goes on.

    Args:
        config: Which store.
        run_name: Name of the run in it.
        default_directory: Where ``mlflow.db`` and ``mlartifacts`` are kept if no URI is set.

    Raises:
        TrackingError: The store cannot be reached or refuses the run.
    """
    if config.backend == "none":
        yield NullTracker()
        return
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from recgrit.tracking.mlflow_tracker import MLflowTracker

    directory = default_directory.resolve()
    tracker = MLflowTracker(
        uri=config.uri or f"sqlite:///{directory.as_posix()}/mlflow.db",
        experiment=config.experiment,
        run_name=run_name,
        artifact_directory=directory / "mlartifacts",
    )
    try:
        yield tracker
    except KeyboardInterrupt:
        _end_quietly(tracker, "KILLED")
        raise
    except BaseException:
        _end_quietly(tracker, "FAILED")
        raise
    tracker.end("FINISHED")


def _end_quietly(tracker: MLflowTracker, status: str) -> None:
    """Close a run on the way out: a store that fails now must not hide why the run failed."""
    try:
        tracker.end(status)
    except TrackingError as error:
        logger.warning("%s", error)
