"""The tracker that records runs in MLflow.

Importing this module imports MLflow, which takes about two seconds. The module uses only MLflow's
client with an explicit URI, and none of MLflow's global state. Results therefore do not depend on
the working directory, on an ``mlruns`` folder in it, or on a run that another library has started.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from recgrit.errors import TrackingError
from recgrit.tracking.names import (
    MAX_TAG_LENGTH,
    clean_name,
    flatten_params,
    hide_password,
    name_metrics,
    shorten,
)
from recgrit.tracking.termination import Terminated
from recgrit.tracking.tracker import DataOrigin

logger = logging.getLogger(__name__)

STAGE_TAG = "recgrit.stage"

# Largest numbers of settings and metrics in one call of MLflow's log_batch.
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000

# Variables for the first request. Otherwise MLflow would retry an unreachable server for minutes
# before a run prints its first line.
FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

T = TypeVar("T")


class MLflowTracker:
    """A tracker of one MLflow run, from the creation of the run to `end`.

    Args:
        uri: MLflow tracking URI of a database, such as ``sqlite:////runs/mlflow.db``, or of a
            server.
        experiment: Name of the experiment. It is created if it does not exist.
        run_name: Name of the run.
        artifact_directory: Folder for the artifacts of a new experiment in a database other than
            SQLite. A SQLite database has its artifacts beside its file, and a server decides for
            itself.
        resume: Id of an unfinished run to resume. If this run is finished or deleted, or with None,
            a new run is created.
        system_metrics: Whether to record the use of processor, memory, disk and network during the
            run.

    Raises:
        TrackingError: The store cannot be reached or refuses the run.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        artifact_directory: Path,
        resume: str | None = None,
        system_metrics: bool = False,
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._run_name = run_name
        try:
            with _environment(FIRST_CONTACT):
                _check_sqlite_folder(uri)
                self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                self._experiment_id = _find_experiment(
                    self._client, experiment, _artifact_location(uri, artifact_directory)
                )
                run = _reopen(self._client, resume) or self._client.create_run(
                    self._experiment_id, run_name=run_name
                )
        except TrackingError:
            raise
        # Each kind of store has its own exceptions, such as those of SQLAlchemy or requests.
        except Exception as error:
            raise TrackingError(
                hide_password(
                    f"Cannot start a run in MLflow at {uri}: {error}\n"
                    "Check that the server runs and that the address is right, or set "
                    "tracking.uri to another store, or tracking.backend=none to run without "
                    "tracking."
                )
            ) from None
        self._run_id: str = run.info.run_id
        # The outer run of a stage, which also gets the metrics of each step.
        self._around: MLflowTracker | None = None
        self._monitor: SystemMetricsMonitor | None = None
        if system_metrics:
            self._monitor = SystemMetricsMonitor(
                self._run_id, tracking_uri=uri, resume_logging=resume is not None
            )
            self._monitor.start()

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    @property
    def location(self) -> str:
        """URL of the run on a server, or the command that shows a local store."""
        uri = hide_password(self._uri)
        if _is_server(uri):
            return f"{uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
        return (
            f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
            f" (experiment {self._experiment}, run {self._run_name})"
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings.

        Args:
            params: Values of settings by name. Names of nested mappings are joined by dots, and
                long text is cut.
        """
        entries = [Param(name, value) for name, value in flatten_params(params).items()]
        with self._refusals("settings"):
            for batch in _batches(entries, PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, params=batch, synchronous=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics, up to `METRICS_PER_BATCH` in one request.

        Args:
            metrics: Values of metrics by name. ``@`` in a name becomes ``_at_``.
            step: Number of the training step or epoch. With a step, the metrics are also recorded
                in the outer run. None records them at step 0.
        """
        now = int(time.time() * 1000)
        entries = [Metric(name, v, now, step or 0) for name, v in name_metrics(metrics).items()]
        with self._refusals("metrics"):
            for batch in _batches(entries, METRICS_PER_BATCH):
                self._client.log_batch(self._run_id, metrics=batch, synchronous=True)
        if self._around is not None and step is not None:
            self._around.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Store a copy of a file, or of a folder under its name, with the run."""
        with self._refusals(f"the artifact {path}"):
            self._client.log_artifact(self._run_id, str(path))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags, by which a user can find the run again; long values are cut."""
        entries = [
            RunTag(clean_name(name), shorten(str(value), MAX_TAG_LENGTH))
            for name, value in tags.items()
        ]
        with self._refusals("tags"):
            for batch in _batches(entries, PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, tags=batch, synchronous=True)

    def log_data(self, origin: DataOrigin) -> None:
        """Record the files, digest and counts of a data set. Its rows are not stored."""
        sources = list(origin.sources) or [origin.name]
        with warnings.catch_warnings():
            # MLflow warns that two of its source classes accept a local path.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(sources[0])
        described: dict[str, str] = MetaDataset(  # type: ignore[abstract]  # its default is None
            source, name=origin.name, digest=origin.digest
        ).to_dict()
        dataset = Dataset(
            name=described["name"],
            digest=described["digest"],
            source_type=described["source_type"],
            source=described["source"],
            profile=json.dumps({**origin.profile, "files": sources}),
        )
        inputs = DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
        with self._refusals(f"the data set {origin.name}"):
            self._client.log_inputs(self._run_id, [inputs])

    def register_model(self, directory: Path, name: str) -> str:
        """Store an MLflow model with the run, as a new version of a registered model.

        Args:
            directory: Folder of the model in MLflow's format.
            name: Name of the registered model. It is created if it does not exist.

        Returns:
            URI of the model version, such as ``models:/films/1``.
        """
        name = clean_name(name).replace("/", "-")
        with self._refusals(f"the model {name}"):
            model = self._client.create_logged_model(
                self._experiment_id, name="model", source_run_id=self._run_id
            )
            self._client.log_model_artifacts(model.model_id, str(directory))
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step=0)])
            with contextlib.suppress(MlflowException):  # It exists, or the next call fails.
                self._client.create_registered_model(name)
            version = self._client.create_model_version(
                name, model.artifact_location, run_id=self._run_id, model_id=model.model_id
            )
        return f"models:/{name}/{version.version}"

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[MLflowTracker]:
        """Track a stage as a run nested in this run, and yield its tracker.

        If an earlier run of the stage is unfinished, that run is resumed.

        Args:
            name: Name of the stage.
        """
        with self._refusals(f"the stage {name}"):
            child = self._find_unfinished(name) or self._client.create_run(
                self._experiment_id,
                tags={
                    MLFLOW_PARENT_RUN_ID: self._run_id,
                    MLFLOW_RUN_NAME: f"{self._run_name}/{name}",
                    STAGE_TAG: name,
                },
            )
        tracker = _nested(self, child)
        with ending(tracker):
            yield tracker

    def _find_unfinished(self, stage: str) -> Run | None:
        found = self._client.search_runs(
            [self._experiment_id],
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._run_id}' AND tags.`{STAGE_TAG}` = '{stage}'"
            " AND attributes.status != 'FINISHED'",
        )
        return _reopen(self._client, found[0].info.run_id) if found else None

    def end(self, status: str) -> None:
        """End the run.

        Args:
            status: Status of the run: ``FINISHED``, ``FAILED`` or ``KILLED``.
        """
        if self._monitor is not None:
            self._monitor.finish()
        with self._refusals(f"the status {status}"):
            self._client.set_terminated(self._run_id, status)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """Raise errors of MLflow and lost connections inside the block as `TrackingError`.

        Args:
            what: What the block records, for the message.
        """
        try:
            yield
        except (MlflowException, OSError) as error:
            raise TrackingError(
                hide_password(
                    f"MLflow at {self._uri} refused {what} of run {self._run_id}: {error}\n"
                    "Repair the store, or set tracking.backend=none to continue without tracking."
                )
            ) from None


@contextlib.contextmanager
def ending(tracker: MLflowTracker) -> Iterator[None]:
    """End a run with the block.

    The status is FINISHED, or KILLED after an interrupt or SIGTERM, or FAILED after any other
    exception.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        _end_quietly(tracker, "KILLED")
        raise
    except BaseException:
        _end_quietly(tracker, "FAILED")
        raise
    tracker.end("FINISHED")


def _end_quietly(tracker: MLflowTracker, status: str) -> None:
    """End a run after an exception, and log a warning if this fails.

    An error of the store must not hide the exception that ended the run.
    """
    try:
        tracker.end(status)
    except TrackingError as error:
        logger.warning("%s", error)


def _nested(parent: MLflowTracker, child: Run) -> MLflowTracker:
    """Return a tracker of a run within another run, in the same store."""
    tracker = copy.copy(parent)
    tracker._around = parent
    tracker._run_id, tracker._monitor = child.info.run_id, None
    tracker._run_name = child.info.run_name
    return tracker


def _reopen(client: MlflowClient, run_id: str | None) -> Run | None:
    """Set an unfinished run to running and return it; None if it is finished or does not exist."""
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
        if run.info.status == "FINISHED" or run.info.lifecycle_stage != "active":
            return None
        client.update_run(run_id, status="RUNNING")
    except MlflowException:  # The run was deleted.
        return None
    return run


def _find_experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    Raises:
        TrackingError: The experiment was deleted. MLflow does not allow another one of the same
            name.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException:
            # Another process may have created it meanwhile. Any other error is raised.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        uri = hide_password(client.tracking_uri)
        raise TrackingError(
            f"The MLflow experiment {name!r} at {uri} was deleted, but its name is still reserved. "
            f"Restore it with 'MLFLOW_TRACKING_URI={uri} mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}', or choose another with "
            "tracking.experiment=NAME."
        )
    return experiment.experiment_id


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _artifact_location(uri: str, directory: Path) -> str | None:
    """Return the URI of the artifact folder of a database; None if the store chooses its own place.

    Without this URI, MLflow would use ``mlruns`` in the working directory.
    """
    database = _sqlite_file(uri)
    if database is not None:
        return (database.resolve().parent / "mlartifacts").as_uri()
    if uri.startswith(("postgresql", "mysql", "mssql")):
        return directory.resolve().as_uri()
    return None


def _check_sqlite_folder(uri: str) -> None:
    """Create the folder of a SQLite database, and raise PermissionError if it is not writable.

    Otherwise SQLAlchemy would retry for more than a minute.
    """
    database = _sqlite_file(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(database.parent, os.W_OK):
            raise PermissionError(f"no permission to write to {database.parent}")


def _batches(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block.

    Variables that the user has set stay unchanged.
    """
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
