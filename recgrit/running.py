"""Running an experiment: which stages have to run, in what order, and what is recorded of it.

A stage whose key is already on disk is skipped and says so; a changed setting redoes the stage it
belongs to and what is built from it, nothing else.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recgrit.artifacts import (
    Manifest,
    build_key,
    digest_file,
    is_current,
    read_manifest,
    write_artifact,
    write_atomic,
)
from recgrit.engines.engine import Engine, start_engine
from recgrit.errors import ArtifactError, ConfigError, DataError, TrackingError
from recgrit.evaluation.report import EvaluationReport
from recgrit.experiment import ExperimentConfig
from recgrit.runs import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    LAYOUT,
    SHARDS_NAME,
    TRACKING_NAME,
    Run,
    stage_directory,
)
from recgrit.stages import STAGES
from recgrit.tracking.start import start_tracking
from recgrit.tracking.tracker import DataOrigin, NullTracker, Tracker

logger = logging.getLogger(__name__)

# Stages whose files are too large to copy into the tracking store: their manifest is enough.
LARGE_STAGES = {"prepare", "embed", "recommend"}


@dataclass
class RunResult:
    """What `run_experiment` leaves.

    Args:
        directory: The run folder.
        reports: Evaluation reports by name; empty if the run stopped before evaluation.
        seconds: Time spent in each stage now; 0 for one that was up to date.
        up_to_date: Stages that were not redone.
        artifacts: Folder of each stage.
        tracking: Where the run was recorded.
        is_leader: False in those processes of torchrun that only helped: they report nothing.
    """

    directory: Path
    reports: dict[str, EvaluationReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    up_to_date: list[str] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    tracking: str = ""
    is_leader: bool = True

    def to_json(self) -> dict[str, Any]:
        """Metrics by split, times, memory and places, as JSON-able values."""
        metrics = {name: report.metrics() for name, report in self.reports.items()}
        if "popularity_test" in metrics:
            metrics["popularity"] = metrics.pop("popularity_test")
            metrics["popularity_masked"] = metrics.pop("popularity_test_masked")
        test = self.reports.get("test")
        return {
            **metrics,
            "num_users": test.protocol["num_users"] if test is not None else None,
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 2)},
            "up_to_date": self.up_to_date,
            "peak_rss_mb": peak_memory_mb(),
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
            "tracking": self.tracking,
        }


def run_experiment(
    config: ExperimentConfig, *, until: str = "recommend", force: bool = False
) -> RunResult:
    """Run all stages up to ``until`` that are not up to date.

    Args:
        config: Settings of all stages.
        until: The last stage to run.
        force: Redo stages that are up to date.

    Raises:
        RecgritError: Some input, setting or artifact cannot be used; nothing half-written is left.
    """
    with start_engine(config.engine) as engine:
        if engine.is_leader:
            return _lead_experiment(config, engine, until=until, force=force)
        engine.follow()
        return RunResult(config.run.dir, is_leader=False)


def _lead_experiment(
    config: ExperimentConfig, engine: Engine, *, until: str, force: bool
) -> RunResult:
    names = list(LAYOUT)[: list(LAYOUT).index(until) + 1]
    result = RunResult(config.run.dir)
    # What can be told before anything is written or a tracked run is opened, is.
    _check_place(config.run.dir)
    for name in names:
        STAGES[name].inputs(config)
    if "train" in names and config.engine.kind == "local":  # Ray's workers have others.
        _check_device(config.retriever.device)
    if not force and all(_is_stage_current(name, config) for name in names):
        _run_stages(names, config, result, NullTracker(), engine, force=False)
    else:
        settings = config.model_dump(mode="json")
        if force:  # Not the run that was interrupted.
            (config.run.dir / TRACKING_NAME).unlink(missing_ok=True)
        with start_tracking(
            config.tracking,
            run_name=config.run.dir.name,
            default_directory=config.run.dir.parent,
            state=config.run.dir / TRACKING_NAME,
            settings=settings,
        ) as tracker:
            tracker.log_params(settings)
            result.tracking = tracker.location
            _run_stages(names, config, result, tracker, engine, force=force)
            _track_outcome(config, result, tracker)
    return result


def require_own_checkpoint(config: ExperimentConfig) -> None:
    """Refuse to go on with a retriever that was trained on other artifacts than the run has.

    `run_experiment` would train again, which is not what someone expects who asks for an
    evaluation after putting another ID table in place.

    Raises:
        ArtifactError: Names both fingerprints and the command that rebuilds.
    """
    if stage_directory(config.run.dir, "train").is_dir():
        Run(config.run.dir).manifest("train")


def _run_stages(
    names: list[str],
    config: ExperimentConfig,
    result: RunResult,
    tracker: Tracker,
    engine: Engine,
    *,
    force: bool,
) -> None:
    if force:  # From the start: not from where a stage was interrupted either.
        for name in (CHECKPOINTS_NAME, SHARDS_NAME):
            shutil.rmtree(config.run.dir / name, ignore_errors=True)
    for number, name in enumerate(names, start=1):
        started = time.perf_counter()
        directory = stage_directory(config.run.dir, name)
        heading = f"[{number}/{len(names)}] {name}"
        if not force and _is_stage_current(name, config):
            logger.info("%s: up to date", heading)
            result.up_to_date.append(name)
            result.seconds[name] = 0.0
        else:
            logger.debug("%s ...", heading)
            with tracker.stage(name) as stage_tracker:
                stage_tracker.log_params(STAGES[name].settings(config))
                manifest = run_stage(name, config, stage_tracker, engine)
                stage_tracker.set_tags({"fingerprint": manifest.fingerprint, "key": manifest.key})
            result.seconds[name] = round(time.perf_counter() - started, 2)
            outcome = STAGES[name].describe(manifest.summary)
            logger.info("%s: %s (%.1f s)", heading, outcome, result.seconds[name])
            tracker.log_metrics({f"seconds/{name}": result.seconds[name]})
        result.artifacts[name] = directory
        # An interrupted first run can go on from its folder too.
        if not (config.run.dir / CONFIG_NAME).is_file():
            _write_config(config)
    _write_config(config)
    if "evaluate" in names:
        result.reports = Run(config.run.dir).reports


def run_stage(name: str, config: ExperimentConfig, tracker: Tracker, engine: Engine) -> Manifest:
    """Run one stage, whatever is on disk; its parents must be there."""
    directory = stage_directory(config.run.dir, name)
    settings, parents, inputs = _starting_point(name, config)
    with write_artifact(directory, name, settings, parents, inputs) as writer:
        STAGES[name].build(config, writer, tracker, engine)
    return read_manifest(directory)


def _starting_point(
    name: str, config: ExperimentConfig
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Settings, fingerprints of parents, and digests of input files of a stage."""
    stage = STAGES[name]
    run = Run(config.run.dir) if LAYOUT[name][1] else None
    parents = {p: run.manifest(p).fingerprint for p in LAYOUT[name][1]} if run else {}
    inputs = {str(path): _digest_input(path) for path in stage.inputs(config)}
    return stage.settings(config), parents, inputs


def _digest_input(path: Path) -> str:
    """Digest of a raw file, read once a process as long as the file does not change."""
    try:
        state = path.stat()
        return _digest_unchanged(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None


@functools.cache
def _digest_unchanged(path: Path, *state: int) -> str:
    """Cached by path and state: a changed file is read again."""
    return digest_file(path)


def _is_stage_current(name: str, config: ExperimentConfig) -> bool:
    directory = stage_directory(config.run.dir, name)
    parents = [stage_directory(config.run.dir, parent) for parent in LAYOUT[name][1]]
    if any(not parent.is_dir() for parent in parents):
        return False
    settings, parent_fingerprints, inputs = _starting_point(name, config)
    return is_current(directory, build_key(name, settings, parent_fingerprints, inputs))


def _check_place(directory: Path) -> None:
    """Refuse a run folder that cannot be made, or that a newer recgrit wrote."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"no permission to write to {existing}"
    else:
        reason = ""
    if reason:
        raise ArtifactError(
            f"Cannot write the run to {directory}: {reason}. Choose another folder with "
            "run.dir=PATH."
        )
    for stage in LAYOUT:
        is_current(stage_directory(directory, stage), key="")  # Refuses a newer schema.


def _check_device(name: str) -> None:
    if name in ("auto", "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=name)
    # Builds without CUDA raise AssertionError, unknown names RuntimeError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"retriever.device={name} cannot be used here: {reason} Set retriever.device=auto."
        ) from None


def _track_outcome(config: ExperimentConfig, result: RunResult, tracker: Tracker) -> None:
    """Final metrics, the tables and the settings, so that a tracked run stands on its own."""
    for name, report in result.reports.items():
        tracker.log_metrics({f"{name}/{key}": value for key, value in report.metrics().items()})
    run = Run(config.run.dir)
    prepared = run.manifest("prepare")
    counts = ("num_users", "num_items", "num_interactions")
    tracker.log_data(
        DataOrigin(
            name=config.data.source.replace("/", "-"),
            digest=prepared.fingerprint,
            sources=list(prepared.inputs),
            profile={name: prepared.summary[name] for name in counts},
        )
    )
    tracker.set_tags({"data.source": config.data.source})
    tracker.set_tags(
        {f"fingerprint.{name}": run.manifest(name).fingerprint for name in result.artifacts}
    )
    for name, directory in result.artifacts.items():
        tracker.log_artifact(directory / "manifest.json" if name in LARGE_STAGES else directory)
    if "evaluate" in result.artifacts and config.tracking.register_model:
        _register_model(run, config, tracker)


def _register_model(run: Run, config: ExperimentConfig, tracker: Tracker) -> None:
    """The run's bundle as a model that MLflow can serve, under the name of the experiment."""
    if config.tracking.backend == "none":
        return
    from recgrit.serving.bundle import export_bundle
    from recgrit.serving.pyfunc import save_pyfunc

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pyfunc(export_bundle(run, folder / "bundle"), folder / "model")
        try:
            tracker.register_model(folder / "model", config.tracking.experiment)
        except TrackingError as error:  # The run is whole without, as on a server of runs alone.
            logger.warning("%s Or set tracking.register_model=false.", error)


def _write_config(config: ExperimentConfig) -> None:
    """Keep the settings in the run folder; a file that already holds them stays untouched."""
    path, text = config.run.dir / CONFIG_NAME, _dump_config(config)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ArtifactError(f"Cannot write {path}: {error.strerror}.") from None


def _dump_config(config: ExperimentConfig) -> str:
    """The settings as YAML, with absolute paths: the run can be repeated from any folder."""
    return yaml.safe_dump(_absolute(config.model_dump()), sort_keys=False)


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, Path):
        return str(value.absolute())
    return json.loads(json.dumps(value))


def peak_memory_mb() -> float:
    """Most memory this process has held at once, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return round(peak * unit / 2**20, 1)
