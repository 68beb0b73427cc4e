"""The `Tracker` protocol, through which stages record a run, and two trackers that need no service.

Stages use a `Tracker` and do not depend on MLflow. `MemoryTracker` applies the same rules to names
and values as `MLflowTracker`, so that a test with it shows what MLflow would store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from recgrit.tracking.names import flatten_params, name_metrics


@dataclass(frozen=True)
class DataOrigin:
    """A description of the data that a run starts from.

    Args:
        name: Name of the data set.
        digest: Digest of its content.
        sources: Paths of the files it was read from.
        profile: Counts, such as the number of users, by name.
    """

    name: str
    digest: str
    sources: Sequence[str]
    profile: Mapping[str, int] = field(default_factory=dict)


class Tracker(Protocol):
    """The interface of a tracker, which records one run of one experiment."""

    @property
    def location(self) -> str:
        """Where a user finds the run, such as a URL or a command."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings.

        Args:
            params: Values of settings by name. Names of nested mappings are joined by dots.
        """
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics.

        Args:
            metrics: Values of metrics by name.
            step: Number of the training step or epoch that the metrics belong to. None for metrics
                of the whole run.
        """
        ...

    def log_artifact(self, path: Path) -> None:
        """Store a copy of a file or folder with the run."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags, by which a user can find the run again."""
        ...

    def log_data(self, origin: DataOrigin) -> None:
        """Record the data that the run starts from."""
        ...

    def register_model(self, directory: Path, name: str) -> str:
        """Store a model with the run, as a new version of a registered model.

        Args:
            directory: Folder of the model.
            name: Name of the registered model.

        Returns:
            URI of the model version, such as ``models:/films/1``; empty if nothing is stored.
        """
        ...

    def stage(self, name: str) -> AbstractContextManager[Tracker]:
        """Track a stage as a run within this run, and yield its tracker.

        Metrics of a step are also recorded in the outer run.

        Args:
            name: Name of the stage.
        """
        ...


class NullTracker:
    """A tracker that records nothing."""

    @property
    def location(self) -> str:
        """A text that says that nothing is recorded."""
        return "not tracked (tracking.backend=none)"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Ignore settings; nothing is recorded."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Ignore metrics; nothing is recorded."""

    def log_artifact(self, path: Path) -> None:
        """Ignore a file or folder; nothing is stored."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Ignore tags; nothing is recorded."""

    def log_data(self, origin: DataOrigin) -> None:
        """Ignore a description of data; nothing is recorded."""

    def register_model(self, directory: Path, name: str) -> str:
        """Ignore a model and return an empty URI; nothing is stored."""
        return ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Self]:
        """Yield this tracker, which records nothing for the stage either."""
        yield self


class LoggedMetric(NamedTuple):
    """One recorded value of a metric, with its step."""

    name: str
    value: float
    step: int | None


class MemoryTracker:
    """A tracker that keeps everything it records as attributes, for tests and notebooks."""

    def __init__(self) -> None:
        self._around: MemoryTracker | None = None
        self.params: dict[str, str] = {}
        self.metrics: list[LoggedMetric] = []
        self.artifacts: list[Path] = []
        self.tags: dict[str, str] = {}
        self.data: list[DataOrigin] = []
        self.models: dict[str, Path] = {}
        self.stages: dict[str, MemoryTracker] = {}

    @property
    def location(self) -> str:
        """A text that says that the run is in memory only."""
        return "in memory"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add settings to ``params``, with dotted names."""
        self.params.update(flatten_params(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append metrics to ``metrics``, and those of a step to the outer tracker too."""
        self.metrics.extend(
            LoggedMetric(name, value, step) for name, value in name_metrics(metrics).items()
        )
        if self._around is not None and step is not None:
            self._around.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Append the path of a file or folder to ``artifacts``."""
        self.artifacts.append(path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags to ``tags``."""
        self.tags.update(tags)

    def log_data(self, origin: DataOrigin) -> None:
        """Append a description of data to ``data``."""
        self.data.append(origin)

    def register_model(self, directory: Path, name: str) -> str:
        """Add the folder of a model to ``models``, and return a URI with version 1."""
        self.models[name] = directory
        return f"models:/{name}/1"

    @contextmanager
    def stage(self, name: str) -> Iterator[MemoryTracker]:
        """Yield the tracker of a stage, which is kept in ``stages`` by name."""
        tracker = self.stages.setdefault(name, MemoryTracker())
        tracker._around = self
        yield tracker

    def latest(self) -> dict[str, float]:
        """Return the last recorded value of each metric, by name."""
        return {metric.name: metric.value for metric in self.metrics}
