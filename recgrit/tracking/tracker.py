"""What stages may say to an experiment tracker, and two trackers that need no service.

Stages take a `Tracker` and know nothing of MLflow. `MemoryTracker` applies the same rules to names
and values as the MLflow one, so that what passes a test with it is what MLflow would store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from recgrit.tracking.names import flatten_params, name_metrics


class Tracker(Protocol):
    """One run of one experiment."""

    @property
    def location(self) -> str:
        """Where a user finds this run."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become dotted names."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers, of one step of a training where ``step`` is given."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file or folder."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record what helps to find the run again."""
        ...


class NullTracker:
    """Records nothing."""

    @property
    def location(self) -> str:
        """Says that nothing is recorded."""
        return "not tracked (tracking.backend=none)"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""


class LoggedMetric(NamedTuple):
    """One number as it was logged."""

    name: str
    value: float
    step: int | None


class MemoryTracker:
    """Keeps all it is told as attributes, for tests and notebooks."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}
        self.metrics: list[LoggedMetric] = []
        self.artifacts: list[Path] = []
        self.tags: dict[str, str] = {}

    @property
    def location(self) -> str:
        """Says that the run is in this object only."""
        return "in memory"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add to ``params``."""
        self.params.update(flatten_params(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append to ``metrics``."""
        self.metrics.extend(
            LoggedMetric(name, value, step) for name, value in name_metrics(metrics).items()
        )

    def log_artifact(self, path: Path) -> None:
        """Append to ``artifacts``."""
        self.artifacts.append(path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add to ``tags``."""
        self.tags.update(tags)

    def latest(self) -> dict[str, float]:
        """The last value of each metric."""
        return {metric.name: metric.value for metric in self.metrics}
