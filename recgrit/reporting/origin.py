"""Where a run comes from: settings, versions, seeds, stages, and the command that repeats it."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recgrit.experiment import CONFIG_NAME, ExperimentConfig, flat_settings
from recgrit.runs import Run

# Settings that name files which a run reads, and where it puts what it fetches.
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
# What results may depend on.
PACKAGES = ("recgrit", "torch", "numpy", "polars", "scipy", "scikit-learn", "faiss-cpu", "plotly")


@dataclass(frozen=True)
class StageRecord:
    """One stage as its manifest has it."""

    name: str
    fingerprint: str
    built_from: tuple[str, ...]
    seconds: float
    created: str
    recgrit_version: str


@dataclass(frozen=True)
class Origin:
    """All that is needed to repeat a run.

    Args:
        command: Repeats it from the settings in its folder, into another one.
        command_elsewhere: Repeats it from a copy of its settings and its files.
        file_name: Of that copy.
        paths: Settings that name files.
        settings: The settings that the artifacts were made with, in full, as YAML.
        changed: Those that differ from the defaults, by dotted name, as JSON.
        waiting: Settings changed since and not run yet: as made, as planned, by dotted name.
        seed: The run's seed.
        stages: In order; those that have not run are left out.
        inputs: SHA-256 of the raw files, by name.
        versions: Of the software that wrote the page.
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
    """Read it from the run's settings and manifests."""
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
    """The command that makes a run anew; without another folder it would find all done."""
    settings = {"run.dir": str(directory), **(others or {})}
    words = [str(config), *(f"{name}={value}" for name, value in settings.items())]
    return f"recgrit run {' '.join(map(shlex.quote, words))}"


def changed_settings(config: ExperimentConfig) -> dict[str, str]:
    """Settings other than the defaults, as JSON by dotted name; places are left out."""
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
        except PackageNotFoundError:  # Such as faiss-cpu where faiss-gpu is.
            continue
    return found
