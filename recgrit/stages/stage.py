"""What a stage is: settings and parent artifacts in, one artifact on disk out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recgrit.artifacts import ArtifactWriter, is_current
from recgrit.checksums import digest_file
from recgrit.engines.engine import Engine
from recgrit.engines.shards import Shards
from recgrit.errors import DataError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import SHARDS_NAME, stage_directory
from recgrit.manifests import Origin
from recgrit.runs import Run
from recgrit.text import is_text
from recgrit.tracking.tracker import Tracker

Builder = Callable[[ExperimentConfig, ArtifactWriter, Tracker, Engine], None]


def no_check(config: ExperimentConfig) -> None:
    """Refuse nothing."""


def no_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """The files of a stage that reads none."""
    return ()


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        name: What it is called; its folder follows from it (`recgrit.runs.stage_directory`).
        version: Raised when the same start gives another result: older artifacts are made again.
        settings: The settings its result depends on; no paths, no devices, no engines.
        build: Writes its files and a summary.
        describe: The summary in one line.
        parents: Names of the stages whose artifacts it reads.
        inputs: The raw files it reads, in a fixed order. Their content is part of its key.
        check: Refuses settings that do not fit the prepared data, before anything is built on them.
        is_large: Whether its files are too large for the tracking store: the manifest is enough.
    """

    name: str
    version: int
    settings: Callable[[ExperimentConfig], dict[str, Any]]
    build: Builder
    describe: Callable[[dict[str, Any]], str]
    parents: tuple[str, ...] = ()
    inputs: Callable[[ExperimentConfig], tuple[Path, ...]] = no_inputs
    check: Callable[[ExperimentConfig], None] = no_check
    is_large: bool = False

    def directory(self, config: ExperimentConfig) -> Path:
        """Where its artifact is."""
        return stage_directory(config.run.dir, self.name)

    def origin(self, config: ExperimentConfig) -> Origin:
        """What it starts from.

        Raises:
            ArtifactError: A parent is missing, or does not fit its own parents.
            DataError: A raw file cannot be read.
        """
        run = Run(config.run.dir) if self.parents else None
        return Origin(
            self.name,
            self.version,
            self.settings(config),
            {name: run.manifest(name).fingerprint for name in self.parents} if run else {},
            {str(path): _digest_input(path) for path in self.inputs(config)},
        )

    def is_current(self, config: ExperimentConfig) -> bool:
        """Whether its artifact is there, made from what it would start from now."""
        if not all(stage_directory(config.run.dir, name).is_dir() for name in self.parents):
            return False
        return is_current(self.directory(config), self.origin(config).key)


def plan_shards(
    config: ExperimentConfig, name: str, num_rows: int, shard_rows: int, suffix: str
) -> Shards:
    """Shards of so many rows each, in a folder of the run that its stage deletes."""
    return Shards(
        name.partition("-")[0],
        (config.run.dir / SHARDS_NAME / f"{name}-{shard_rows}").absolute(),
        num_rows,
        shard_rows,
        suffix,
    )


def _digest_input(path: Path) -> str:
    """Digest of a raw file."""
    if not is_text(str(path)):
        raise DataError(f"The name of {path} is not UTF-8, and records hold text only: rename it.")
    try:
        return digest_file(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


def as_settings(seed: int, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stage that draws random numbers."""
    return {"seed": seed, **{name: dict(section) for name, section in sections.items()}}
