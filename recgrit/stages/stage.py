"""The class `Stage`, which describes how a stage turns settings and parents into an artifact."""

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
    """Accept all settings; the default check of a stage."""


def no_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Return no files; the default for a stage that reads no raw files."""
    return ()


@dataclass(frozen=True)
class Stage:
    """One stage of a run, which writes one artifact.

    Args:
        name: Name of the stage. The folder of its artifact follows from it
            (`recgrit.layout.stage_directory`).
        version: Version of the stage's code. It is raised when the same inputs and settings give
            another result, so that older artifacts are built again.
        settings: Function that returns the settings that the result depends on, without paths,
            devices and engines.
        build: Function that writes the files and the summary of the artifact.
        describe: Function that turns the summary into one line of text.
        parents: Names of the stages whose artifacts this stage reads.
        inputs: Function that returns the raw files that the stage reads, in a fixed order. Their
            content is part of the stage's key.
        check: Function that raises an error if settings do not fit the prepared data. It runs
            before the stages that follow ``prepare`` are built.
        is_large: Whether the files of the artifact are too large for the tracking store. If so,
            only the manifest is logged.
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
        """Return the folder of the stage's artifact."""
        return stage_directory(config.run.dir, self.name)

    def origin(self, config: ExperimentConfig) -> Origin:
        """Return everything that the stage's result depends on, from which its key is computed.

        Raises:
            ArtifactError: The artifact of a parent is missing, or does not fit its own parents.
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
        """Return whether the artifact is there and was built from these settings and inputs."""
        if not all(stage_directory(config.run.dir, name).is_dir() for name in self.parents):
            return False
        return is_current(self.directory(config), self.origin(config).key)


def plan_shards(
    config: ExperimentConfig, name: str, num_rows: int, shard_rows: int, suffix: str
) -> Shards:
    """Return the shards of a job, in a folder of the run that the stage deletes afterwards.

    Args:
        config: Settings of all stages.
        name: Name of the job: the stage's name, a hyphen and the key of what is built. The key
            keeps shards of other settings apart.
        num_rows: Number of rows of all shards together.
        shard_rows: Number of rows of each shard. The last shard may have fewer.
        suffix: Suffix of the shards' files, with the dot.
    """
    return Shards(
        name.partition("-")[0],
        (config.run.dir / SHARDS_NAME / f"{name}-{shard_rows}").absolute(),
        num_rows,
        shard_rows,
        suffix,
    )


def _digest_input(path: Path) -> str:
    """Return the digest of a raw file."""
    if not is_text(str(path)):
        raise DataError(f"The name of {path} is not UTF-8 and cannot be recorded: rename the file.")
    try:
        return digest_file(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


def as_settings(seed: int, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage that draws random numbers, as one dictionary.

    Args:
        seed: Seed of the random numbers.
        **sections: Sections of settings by name.
    """
    return {"seed": seed, **{name: dict(section) for name, section in sections.items()}}
