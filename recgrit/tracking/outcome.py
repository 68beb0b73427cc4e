"""What a tracked run records when its stages are done: metrics, data, artifacts, and its model."""

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

# MLflow shows a run's commit by this tag.
COMMIT_TAG = "mlflow.source.git.commit"
COUNTS = ("num_users", "num_items", "num_interactions")


def record_data(tracker: Tracker, prepared: Manifest) -> None:
    """Record which data a run starts from.

    Args:
        tracker: Of the run.
        prepared: Of the prepared data.
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
    """Record metrics by report, such as ``test_masked`` or ``popularity/test``."""
    for name, values in metrics.items():
        tracker.log_metrics({f"{name}/{metric}": value for metric, value in values.items()})


def record_artifacts(
    tracker: Tracker,
    manifests: Mapping[str, Manifest],
    folders: Mapping[str, Path],
    large: set[str],
) -> None:
    """Keep stages' files with the run, and what identifies them.

    Args:
        tracker: Of the run.
        manifests: By stage.
        folders: By stage.
        large: Stages of which the manifest alone is kept.
    """
    tracker.set_tags({f"fingerprint.{name}": m.fingerprint for name, m in manifests.items()})
    for name, folder in folders.items():
        tracker.log_artifact(folder / MANIFEST_NAME if name in large else folder)


def record_origin(tracker: Tracker, command: Sequence[str], config: Path) -> None:
    """Record how a run came about: its command, the commit of the working directory, its settings.

    Args:
        tracker: Of the run.
        command: What was typed, or how the process was started.
        config: The YAML file of its settings.
    """
    tags = {"recgrit.command": shlex.join(command)}
    commit = find_commit()
    if commit is not None:
        tags[COMMIT_TAG] = commit
    tracker.set_tags(tags)
    tracker.log_artifact(config)


def find_commit() -> str | None:
    """The commit that git has checked out in the working directory; None where there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def register_model(tracker: Tracker, name: str, write: Callable[[Path], None]) -> str:
    """Keep a model with the run, as a new version of the registered model of this name.

    Args:
        tracker: Of the run.
        name: Of the registered model.
        write: Writes the model into a folder that does not exist yet.

    Returns:
        Its address, such as ``models:/films/1``; empty where the store took none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write(path)
        try:
            return tracker.register_model(path, name)
        except TrackingError as error:  # The run is whole without, as on a server of runs alone.
            logger.warning("%s Or set tracking.register_model=false.", error)
    return ""
