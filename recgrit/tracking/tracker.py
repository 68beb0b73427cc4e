"""What stages may say to an experiment tracker, and two trackers that need no service.

Stages take a `Tracker` and know nothing of MLflow. `MemoryTracker` applies the same rules to names
and values as the MLflow one, so that what passes a test with it is what MLflow would store.
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
    """Which data a run starts from.

    Args:
        name: What it is called.
        digest: Hash of its content.
        sources: Files it was read from.
        profile: Counts, by name.
    """

    name: str
    digest: str
    sources: Sequence[str]
    profile: Mapping[str, int] = field(default_factory=dict)


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

    def log_data(self, origin: DataOrigin) -> None:
        """Record what the run starts from."""
        ...

    def register_model(self, directory: Path, name: str) -> str:
        """Keep a model folder with the run, as a new version of a registered model.

        Returns:
            Its address, such as ``models:/films/1``; empty where nothing is kept.
        """
        ...

    def stage(self, name: str) -> AbstractContextManager[Tracker]:
        """A run within the run, for the length of a block.

        What it logs step by step is logged in the run around it too.
        """
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

    def log_data(self, origin: DataOrigin) -> None:
        """Do nothing."""

    def register_model(self, directory: Path, name: str) -> str:
        """Do nothing."""
        return ""

    @contextmanager
    def stage(self, name: str) -> Iterator[Self]:
        """Itself."""
        yield self


class LoggedMetric(NamedTuple):
    """One number as it was logged."""

    name: str
    value: float
    step: int | None


class MemoryTracker:
    """Keeps all it is told as attributes, for tests and notebooks."""

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
        if self._around is not None and step is not None:
            self._around.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Append to ``artifacts``."""
        self.artifacts.append(path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add to ``tags``."""
        self.tags.update(tags)

    def log_data(self, origin: DataOrigin) -> None:
        """Append to ``data``."""
        self.data.append(origin)

    def register_model(self, directory: Path, name: str) -> str:
        """Add to ``models``."""
        self.models[name] = directory
        return f"models:/{name}/1"

    @contextmanager
    def stage(self, name: str) -> Iterator[MemoryTracker]:
        """A tracker of its own, kept in ``stages``."""
        tracker = self.stages.setdefault(name, MemoryTracker())
        tracker._around = self
        yield tracker

    def latest(self) -> dict[str, float]:
        """The last value of each metric."""
        return {metric.name: metric.value for metric in self.metrics}
