"""Where a run comes from: settings, versions, seeds, stages, and the command that repeats it."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recgrit.experiment import CONFIG_NAME, ExperimentConfig
from recgrit.layout import stage_directory
from recgrit.manifests import read_manifest
from recgrit.runs import Run

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
        command: Repeats it from the settings in its folder.
        settings: The settings in full, as YAML.
        changed: Those that differ from the defaults, by dotted name, as JSON.
        seed: The run's seed.
        stages: In order; those that have not run are left out.
        inputs: SHA-256 of the raw files, by name.
        versions: Of the software that wrote the page.
    """

    command: str
    settings: str
    changed: dict[str, str]
    seed: int
    stages: tuple[StageRecord, ...]
    inputs: dict[str, str]
    versions: dict[str, str]


def trace_origin(run: Run) -> Origin:
    """Read it from the run's settings and manifests."""
    stages: list[StageRecord] = []
    inputs: dict[str, str] = {}
    for stage in run.stages():
        directory = stage_directory(run.directory, stage)
        if not directory.is_dir():
            continue
        manifest = read_manifest(directory)
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
    return Origin(
        command=f"recgrit run {shlex.quote(str(run.directory / CONFIG_NAME))}",
        settings=(run.directory / CONFIG_NAME).read_text(encoding="utf-8"),
        changed=changed_settings(run.config),
        seed=run.seed,
        stages=tuple(stages),
        inputs=inputs,
        versions=_versions(),
    )


def changed_settings(config: ExperimentConfig) -> dict[str, str]:
    """Settings other than the defaults, as JSON by dotted name; places are left out."""
    defaults = dict(flat_settings(ExperimentConfig().model_dump(mode="json")))
    return {
        name: value
        for name, value in flat_settings(config.model_dump(mode="json"))
        if defaults.get(name) != value and not name.startswith(("run.", "data.download_dir"))
    }


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and JSON values.

    Example:
        >>> list(flat_settings({"seed": 0, "evaluation": {"ks": [5, 10]}}))
        [('seed', '0'), ('evaluation.ks', '[5, 10]')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Such as faiss-cpu where faiss-gpu is.
            continue
    return found
