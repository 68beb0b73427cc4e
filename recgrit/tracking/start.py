"""The start and the end of a tracked run, in the store that the settings name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recgrit.checksums import digest_json
from recgrit.disk import write_atomic
from recgrit.tracking.config import TrackingConfig
from recgrit.tracking.names import hide_password
from recgrit.tracking.termination import raise_on_termination
from recgrit.tracking.tracker import NullTracker, Tracker

logger = logging.getLogger(__name__)

# Environment variables that are set before MLflow is imported, because MLflow reads some of them at
# import. Variables that the user has set are kept.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


URI_VARIABLE = "MLFLOW_TRACKING_URI"


def quieten_mlflow() -> None:
    """Switch off MLflow's telemetry, progress bars and messages below warnings.

    It has to be called before MLflow is imported. Environment variables that the user has set stay
    unchanged.
    """
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def start_tracking(
    config: TrackingConfig,
    *,
    experiment: str,
    run_name: str,
    default_directory: Path,
    state: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Tracker]:
    """Track a run inside the block, and yield its tracker.

    At the end of the block the run gets the status FINISHED. An interrupt or SIGTERM gives it
    KILLED, and any other exception FAILED; the exception is raised again.

    Args:
        config: Settings of the tracking.
        experiment: Name of the experiment that contains the run.
        run_name: Name of the run.
        default_directory: Folder for ``mlflow.db`` and ``mlartifacts`` if no URI is set.
        state: File that exists while the run is unfinished. If it is left from an earlier run with
            the same settings, that run is resumed. None always starts a new run.
        settings: All settings of the run, which identify it in ``state``.

    Raises:
        TrackingError: The store cannot be reached or refuses the run.
    """
    if config.backend == "none":
        yield NullTracker()
        return
    quieten_mlflow()
    from recgrit.tracking.mlflow_tracker import MLflowTracker, ending

    directory = default_directory.resolve()
    uri = config.uri
    if uri is None and (uri := os.environ.get(URI_VARIABLE) or None) is not None:
        logger.info(
            "MLflow: this run is recorded at %s (from %s); set tracking.uri to record it elsewhere",
            hide_password(uri),
            URI_VARIABLE,
        )
    if uri is None:
        uri = f"sqlite:///{directory.as_posix()}/mlflow.db"
    identity = digest_json([uri, experiment, settings])
    tracker = MLflowTracker(
        uri=uri,
        resume=_read_state(state, identity),
        system_metrics=config.system_metrics,
        experiment=experiment,
        run_name=run_name,
        artifact_directory=directory / "mlartifacts",
    )
    with raise_on_termination(), ending(tracker):
        if state is not None:
            write_atomic(state, json.dumps({"identity": identity, "run_id": tracker.run_id}))
        yield tracker
    if state is not None:
        state.unlink(missing_ok=True)


def _read_state(path: Path | None, identity: str) -> str | None:
    """Return the id of an unfinished run with the same settings and store, or None without one."""
    if path is None:
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return str(state["run_id"]) if state["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
