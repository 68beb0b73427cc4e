"""The origin of a run: settings, versions, seed, stages, and the commands that repeat it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recgrit.experiment import CONFIG_NAME, ExperimentConfig, flat_settings
from recgrit.runs import Run

# Settings with the path of an input file, and the setting with the folder for downloads.
PATHS = (
    "data.path",
    "data.table.items_path",
    "data.table.users_path",
    "embedding.vectors_path",
    "tokenizer.semantic_ids_path",
    "recommendation.allowed_items",
    "recommendation.blocked_items",
)
FETCHED = {"data.download_dir": "downloads"}
# Packages whose versions the page shows, because results may depend on them.
PACKAGES = ("recgrit", "torch", "numpy", "polars", "scipy", "scikit-learn", "faiss-cpu", "plotly")


@dataclass(frozen=True)
class StageRecord:
    """The record of one stage, from the stage's manifest.

    Args:
        name: Name of the stage.
        fingerprint: Fingerprint of the stage's artifact.
        built_from: Names of the parent stages.
        seconds: Duration of the stage in seconds.
        created: Time when the stage was made, in UTC.
        recgrit_version: Version of recgrit that made the stage.
    """

    name: str
    fingerprint: str
    built_from: tuple[str, ...]
    seconds: float
    created: str
    recgrit_version: str


@dataclass(frozen=True)
class Origin:
    """Everything that is needed to repeat a run.

    Args:
        command: Command that repeats the run from the settings in its folder, into another folder.
        command_elsewhere: Command that repeats the run on another machine, from a copy of its
            settings and its input files.
        file_name: File name of the copy of the settings.
        paths: Names of settings that have the path of an input file.
        settings: All settings that the artifacts were made with, as YAML.
        changed: Settings that differ from the defaults: values as JSON by dotted name.
        waiting: Settings that were changed but not run yet: by dotted name, the value that the
            artifacts were made with and the new value.
        seed: Seed of the run.
        stages: Stages that have run, in order.
        inputs: SHA-256 of each raw input file by file name.
        versions: Versions of the software that wrote the page.
    """

    command: str
    command_elsewhere: str
    file_name: str
    paths: tuple[str, ...]
    settings: str
    changed: dict[str, str]
    waiting: dict[str, tuple[str | None, str | None]]
    seed: int
    stages: tuple[StageRecord, ...]
    inputs: dict[str, str]
    versions: dict[str, str]


def trace_origin(run: Run) -> Origin:
    """Return the origin of a run from its settings and manifests."""
    stages: list[StageRecord] = []
    inputs: dict[str, str] = {}
    for stage in run.stages():
        if not run.has(stage):
            continue
        manifest = run.record(stage)
        inputs |= {Path(name).name: digest for name, digest in manifest.inputs.items()}
        stages.append(
            StageRecord(
                stage,
                manifest.fingerprint,
                tuple(manifest.parents),
                manifest.seconds,
                manifest.created[:16].replace("T", " "),
                manifest.recgrit_version,
            )
        )
    directory = run.directory.absolute()
    flat = dict(flat_settings(run.config.model_dump(mode="json")))
    blocks = [
        f"features.blocks.{name}.{setting}"
        for name in run.config.features.blocks_in_use
        for setting in ("path", "folder")
    ]
    paths = tuple(name for name in (*PATHS, *blocks) if flat.get(name, "null") != "null")
    return Origin(
        command=_repeat(directory / CONFIG_NAME, directory.with_name(f"{directory.name}-again")),
        command_elsewhere=_repeat(
            Path(f"{directory.name}.yaml"),
            Path("runs") / directory.name,
            dict.fromkeys(paths, "PATH") | ({} if "data.path" in paths else FETCHED),
        ),
        file_name=f"{directory.name}.yaml",
        paths=paths,
        settings=run.config.to_yaml(),
        changed=changed_settings(run.config),
        waiting=run.waiting_settings(),
        seed=run.seed,
        stages=tuple(stages),
        inputs=inputs,
        versions=_versions(),
    )


def _repeat(config: Path, directory: Path, others: Mapping[str, str] | None = None) -> str:
    """Return the command that makes a run again in another folder.

    In the run's own folder, all stages would be up to date.
    """
    settings = {"run.dir": str(directory), **(others or {})}
    words = [str(config), *(f"{name}={value}" for name, value in settings.items())]
    return f"recgrit run {' '.join(map(shlex.quote, words))}"


def changed_settings(config: ExperimentConfig) -> dict[str, str]:
    """Return settings that differ from the defaults, as JSON by dotted name.

    Settings of output folders are left out.
    """
    defaults = dict(flat_settings(ExperimentConfig().model_dump(mode="json")))
    return {
        name: value
        for name, value in flat_settings(config.model_dump(mode="json"))
        if defaults.get(name) != value and not name.startswith(("run.", "data.download_dir"))
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # For example, faiss-gpu is installed and not faiss-cpu.
            continue
    return found
