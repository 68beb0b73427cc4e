"""Functions that record the results of a tracked run: metrics, data, artifacts and model."""

from __future__ import annotations

import logging
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recgrit.disk import MANIFEST_NAME
from recgrit.errors import TrackingError
from recgrit.manifests import Manifest
from recgrit.tracking.tracker import DataOrigin, Tracker

logger = logging.getLogger(__name__)

# MLflow shows the value of this tag as the commit of a run.
COMMIT_TAG = "mlflow.source.git.commit"
COUNTS = ("num_users", "num_items", "num_interactions")


def record_data(tracker: Tracker, prepared: Manifest) -> None:
    """Record the data that a run starts from.

    Args:
        tracker: Tracker of the run.
        prepared: Manifest of the prepared data.
    """
    source = str(prepared.summary["source"])
    tracker.log_data(
        DataOrigin(
            name=source.replace("/", "-"),
            digest=prepared.fingerprint,
            sources=list(prepared.inputs),
            profile={name: prepared.summary[name] for name in COUNTS},
        )
    )
    tracker.set_tags({"data.source": source})


def record_metrics(tracker: Tracker, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Record the metrics of all evaluation reports.

    Args:
        tracker: Tracker of the run.
        metrics: Values by report and metric. Names of reports are such as ``test_masked`` or
            ``popularity/test``.
    """
    for name, values in metrics.items():
        tracker.log_metrics({f"{name}/{metric}": value for metric, value in values.items()})


def record_artifacts(
    tracker: Tracker,
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    large: set[str],
) -> None:
    """Store the files of stages with a run, and their fingerprints as tags.

    Args:
        tracker: Tracker of the run.
        manifests: Manifest of each stage, by name of the stage.
        folders: Folder of each stage, by name of the stage.
        large: Names of the stages whose files are too large for the store. Only their manifest is
            stored.
    """
    tracker.set_tags({f"fingerprint.{name}": m.fingerprint for name, m in manifests.items()})
    for name, folder in folders.items():
        tracker.log_artifact(folder / MANIFEST_NAME if name in large else folder)


def record_origin(tracker: Tracker, command: Sequence[str], config: Path) -> None:
    """Record the command of a run, the commit of the working directory, and the settings.

    Args:
        tracker: Tracker of the run.
        command: Program and arguments that started the process.
        config: The YAML file of the run's settings.
    """
    tags = {"recgrit.command": shlex.join(command)}
    commit = find_commit()
    if commit is not None:
        tags[COMMIT_TAG] = commit
    tracker.set_tags(tags)
    tracker.log_artifact(config)


def find_commit() -> str | None:
    """Return the git commit of the working directory, or None if there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def register_model(tracker: Tracker, name: str, write: Callable[[Path], None]) -> str:
    """Store a model with a run, as a new version of a registered model.

    If the store refuses the model, a warning is logged, because the run is complete without it.

    Args:
        tracker: Tracker of the run.
        name: Name of the registered model.
        write: Function that writes the model into a folder that does not exist yet.

    Returns:
        URI of the model version, such as ``models:/films/1``; empty if the store refused the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write(path)
        try:
            return tracker.register_model(path, name)
        except TrackingError as error:  # Some servers store runs only.
            logger.warning("%s Or set tracking.register_model=false.", error)
    return ""
