"""Running an experiment: which stages have to run, and in what order.

A stage is skipped if its folder holds an artifact with the same key, and a log line says so. A
changed setting repeats the stage that uses it and the stages that are built from this stage, and no
others.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recgrit.artifacts import require_replaceable, write_artifact
from recgrit.disk import hold_lock
from recgrit.engines.engine import start_engine
from recgrit.errors import ArtifactError, ConfigError, DataError, NewerSchemaError
from recgrit.evaluation.repeats import NEW_ITEMS
from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.experiment import CONFIG_NAME, ExperimentConfig
from recgrit.folds import FoldResults, collect_folds, plan_folds
from recgrit.launch import read_launch
from recgrit.layout import CHECKPOINTS_NAME, FOLDERS, SHARDS_NAME, TRACKING_NAME, stage_directory
from recgrit.manifests import read_manifest
from recgrit.runs import Run
from recgrit.stages import plan_stages
from recgrit.stages.stage import Stage
from recgrit.tracking.outcome import (
    record_artifacts,
    record_data,
    record_metrics,
    record_origin,
    register_model,
)
from recgrit.tracking.start import start_tracking
from recgrit.tracking.tracker import NullTracker, Tracker

logger = logging.getLogger(__name__)


@dataclass
class RunResult:
    """What `run_experiment` returns: evaluation results, times and places of one run.

    Args:
        directory: Run folder.
        model: Kind of the run's own model.
        reports: Evaluation reports by model, split and masking. Empty if the run stopped before
            evaluation.
        groups: Metrics of the run's own model on groups of test targets, by name of the grouping,
            then by label of the group.
        new_items: Report on the test targets that are not yet in the user's history, by model, with
            seen items filtered out. Empty if few targets are in the history, because ``reports``
            then say almost the same, or if all are.
        folds: Results of all folds. None if the settings ask for one fold only, or if the run
            stopped before evaluation.
        seconds: Duration of each stage in this call, in seconds. 0 for a stage that was up to date.
        up_to_date: Names of the stages that did not run because they were up to date.
        artifacts: Folder of each stage's artifact, by name of the stage.
        tracking: Place where the tracker recorded the run. Empty if all stages were up to date.
        model_uri: Address of the registered model, such as ``models:/films/1``. Empty if no model
            was registered.
        is_leader: Whether this process reports the results. It is false in all processes of
            torchrun but the first.
    """

    directory: Path
    model: str = ""
    reports: dict[ReportKey, EvaluationReport] = field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    new_items: dict[str, EvaluationReport] = field(default_factory=dict)
    folds: FoldResults | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    up_to_date: list[str] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    tracking: str = ""
    model_uri: str = ""
    is_leader: bool = True

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each report, by name of the report.

        Reports of the run's own model have names such as ``test_masked``, and reports of baselines
        have names such as ``popularity/test``. If many test targets are already in the user's
        history, the metrics on the other targets come first, under the name ``test_new_items``.
        """
        new = {
            NEW_ITEMS if model == self.model else f"{model}/{NEW_ITEMS}": report.metrics()
            for model, report in self.new_items.items()
        }
        return new | {
            key.lists if key.model == self.model else key.folder: report.metrics()
            for key, report in self.reports.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the results as values that JSON can hold.

        They contain the metrics by split for all models and by group of targets, times, peak
        memory, and the paths of the artifacts.
        """
        values: dict[str, Any] = {"model": self.model, "baselines": {}, "num_users": None}
        for model, report in self.new_items.items():
            of_model = values if model == self.model else values["baselines"].setdefault(model, {})
            of_model[NEW_ITEMS] = report.metrics()
        for key, report in self.reports.items():
            if key.model == self.model:
                values[key.lists] = report.metrics()
                if key.split == "test":
                    values["num_users"] = report.protocol["num_users"]
            else:
                values["baselines"].setdefault(key.model, {})[key.lists] = report.metrics()
        return {
            **values,
            "groups": self.groups,
            **({} if self.folds is None else {"folds": self.folds.to_json()}),
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 2)},
            "up_to_date": self.up_to_date,
            "peak_rss_mb": peak_memory_mb(),
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
            "tracking": self.tracking,
            "model_uri": self.model_uri,
        }


def run_experiment(
    config: ExperimentConfig,
    *,
    until: str = "recommend",
    force: bool = False,
    parent: Tracker | None = None,
) -> RunResult:
    """Run all stages up to ``until`` that are not up to date.

    Args:
        config: Settings of all stages.
        until: Name of the last stage to run.
        force: Run stages again that are up to date.
        parent: Tracker of a run that the caller started and ends, such as a trial of a tuning. None
            starts a tracked run as the settings say.

    Raises:
        RecgritError: An input, setting or artifact cannot be used, or another process writes the
            run. No partly written artifact remains.
    """
    result = RunResult(config.run.dir, config.model.kind)
    with ExitStack() as stack:
        engine = stack.enter_context(start_engine(config.engine))
        result.is_leader = engine.is_leader
        if not engine.is_leader:
            engine.follow()
            return result
        stages = plan_stages(config, until)
        _check_place(config.run.dir)
        _lock(stack, config.run.dir)
        replaces = _check(config, stages, force=force)
        if force:
            _forget_unfinished(config.run.dir)
        if replaces:
            _delete_replaced(config, stages)
        is_idle = (
            not force
            and all(stage.is_current(config) for stage in stages)
            and not _lacks_folds(config, stages)
            and not (parent is None and until == "recommend" and _is_tracking_unfinished(config))
        )
        tracking = _track(config, is_idle=is_idle) if parent is None else nullcontext(parent)
        with tracking as tracker:
            for number, stage in enumerate(stages, start=1):
                heading = f"[{number}/{len(stages)}] {stage.name}"
                if not is_idle and number == 2:
                    _check_against_data(config, stages)
                result.artifacts[stage.name] = stage.directory(config)
                if is_idle or (not force and stage.is_current(config)):
                    logger.info("%s: up to date", heading)
                    result.up_to_date.append(stage.name)
                    result.seconds[stage.name] = 0.0
                    continue
                logger.debug("%s ...", heading)
                with tracker.stage(stage.name) as stage_tracker:
                    stage_tracker.log_params(stage.settings(config))
                    with write_artifact(
                        stage.directory(config),
                        stage.origin(config),
                        elsewhere="run.dir=PATH",
                    ) as writer:
                        stage.build(config, writer, stage_tracker, engine)
                    done = writer.manifest
                    assert done is not None
                    stage_tracker.set_tags({"fingerprint": done.fingerprint, "key": done.key})
                seconds = result.seconds[stage.name] = round(done.seconds, 2)
                logger.info("%s: %s (%.1f s)", heading, stage.describe(done.summary), seconds)
                tracker.log_metrics({f"seconds/{stage.name}": seconds})
                # Settings are saved after the first stage, so that an interrupted first run can be
                # resumed from its folder.
                if not (config.run.dir / CONFIG_NAME).is_file():
                    config.save()
            config.save()
            if "evaluate" in result.artifacts:
                if not is_idle:
                    _run_folds(config, tracker, force=force)
                _read_results(result)
            if not is_idle:
                result.tracking = tracker.location
                _record(config, stages, result, tracker)
    return result


def _check_against_data(config: ExperimentConfig, stages: Sequence[Stage]) -> None:
    """Refuse settings of later stages that do not fit the prepared data."""
    for stage in stages:
        stage.check(config)


def _read_results(result: RunResult) -> None:
    """Fill the result with the reports, groups and folds of an evaluated run."""
    run = Run(result.directory)
    result.reports, result.new_items = run.reports, run.new_items
    result.groups = run.manifest("evaluate").summary["groups"]
    result.folds = collect_folds(run)


def _lacks_folds(config: ExperimentConfig, stages: Sequence[Stage]) -> bool:
    """Return whether a fold that the settings ask for is missing or out of date."""
    if config.evaluation.folds == 1 or all(stage.name != "evaluate" for stage in stages):
        return False
    return any(
        not stage.is_current(fold)
        for fold in plan_folds(config)
        for stage in plan_stages(fold, "evaluate")
    )


def _run_folds(config: ExperimentConfig, tracker: Tracker, *, force: bool) -> None:
    """Run each fold before the last, as a nested run of the tracked run."""
    plans = plan_folds(config)
    for number, fold in enumerate(plans, start=1):
        logger.info("fold %d of %d: test from %s", number, len(plans) + 1, fold.data.test_from)
        with tracker.stage(f"fold-{number}") as of_fold:
            run_experiment(fold, until="evaluate", force=force, parent=of_fold)
    if plans:
        found = collect_folds(Run(config.run.dir))
        assert found is not None
        for name, over in found.means.items():
            tracker.log_metrics({f"folds/{name}": over.mean})


def _lock(stack: ExitStack, directory: Path) -> None:
    """Lock the run folder, so that no other process writes the run.

    Raises:
        ArtifactError: Another process writes the run, or the folder cannot be written.
    """
    try:
        stack.enter_context(hold_lock(directory, inside=True))
    except OSError as error:
        raise ArtifactError(
            f"Cannot write to {directory}: {error.strerror}. Free some space or fix the "
            "permissions, or choose another folder with run.dir=PATH."
        ) from None
    # These lock files were left by killed runs, because this process holds the run's lock.
    for left in (*directory.glob(".*.lock"), *directory.glob("baselines/.*.lock")):
        for path in (left, left.with_suffix(".holder")):
            path.unlink(missing_ok=True)


def require_own_checkpoint(config: ExperimentConfig) -> None:
    """Refuse a run whose model was trained on other artifacts than the run now has.

    Without this check, `run_experiment` would train again. A user who replaced the ID table and
    asks for an evaluation does not expect that.

    Raises:
        ArtifactError: The artifacts differ. The message names both fingerprints and the command
            that rebuilds.
    """
    if stage_directory(config.run.dir, "train").is_dir():
        Run(config.run.dir).manifest("train")


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MiB."""
    try:
        import resource
    except ImportError:  # On Windows, psutil returns the peak.
        import psutil

        info = psutil.Process().memory_info()
        return round(int(getattr(info, "peak_wset", info.rss)) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return round(peak * unit / 2**20, 1)


@contextmanager
def _track(config: ExperimentConfig, *, is_idle: bool) -> Iterator[Tracker]:
    """Start a tracked run, or yield a tracker that does nothing if all stages are up to date."""
    if is_idle:
        yield NullTracker()
        return
    settings = config.model_dump(mode="json")
    with start_tracking(
        config.tracking,
        experiment=config.experiment_name,
        run_name=config.run.dir.name,
        default_directory=config.run.dir.parent,
        state=config.run.dir / TRACKING_NAME,
        settings=settings,
    ) as tracker:
        tracker.log_params(settings)
        yield tracker


def _is_tracking_unfinished(config: ExperimentConfig) -> bool:
    """Return whether a tracked run was interrupted, possibly after its last stage."""
    return config.tracking.backend != "none" and (config.run.dir / TRACKING_NAME).is_file()


def _record(
    config: ExperimentConfig, stages: Sequence[Stage], result: RunResult, tracker: Tracker
) -> None:
    """Record final metrics, tables and the model, so that a tracked run is complete by itself."""
    if config.tracking.backend == "none":
        return
    logger.info("MLflow: saving the report, the tables and the model with the run ...")
    run = Run(config.run.dir)
    record_origin(tracker, sys.argv, config.run.dir / CONFIG_NAME)
    record_data(tracker, run.manifest("prepare"))
    record_artifacts(
        tracker,
        {stage.name: run.manifest(stage.name) for stage in stages},
        result.artifacts,
        {stage.name for stage in stages if stage.is_large},
    )
    if "evaluate" not in result.artifacts:
        return
    record_metrics(tracker, result.metrics())
    _record_report(run, tracker)
    if config.tracking.register_model:
        from recgrit.serving.pyfunc import save_pyfunc
        from recgrit.serving.writing import export_bundle

        def write(path: Path) -> None:
            save_pyfunc(export_bundle(run, path.with_name("bundle")), path)

        result.model_uri = register_model(tracker, config.experiment_name, write)


def _record_report(run: Run, tracker: Tracker) -> None:
    """Record the HTML page that `recgrit report` writes."""
    from recgrit.reporting.contents import gather_contents
    from recgrit.reporting.page import render_report

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(render_report(gather_contents(run)), encoding="utf-8")
        tracker.log_artifact(page)


def _forget_unfinished(directory: Path) -> None:
    """Delete checkpoints, shards and tracking state, so that nothing is resumed."""
    (directory / TRACKING_NAME).unlink(missing_ok=True)
    for name in (CHECKPOINTS_NAME, SHARDS_NAME):
        shutil.rmtree(directory / name, ignore_errors=True)


def _check(config: ExperimentConfig, stages: Sequence[Stage], *, force: bool) -> bool:
    """Refuse a run that cannot succeed, before anything is written or a tracked run is opened.

    Returns:
        Whether the run replaces a run on other data or of another model.
    """
    if config.evaluation.folds > 1 and read_launch() is not None:
        raise ConfigError(
            "evaluation.folds works only in one process: start recgrit without torchrun."
        )
    replaced = _find_replaced(config)
    if replaced and not force:
        raise replaced
    for stage in stages:
        require_replaceable(stage.directory(config), stage.name, "run.dir=PATH")
        try:
            stage.inputs(config)
        except DataError as error:
            if stage.name != "prepare" or not stage.directory(config).is_dir():
                raise
            raise DataError(
                f"{error} If you moved the files of this run, set data.path=PATH. If their content "
                "is the same, everything stays up to date."
            ) from None
    # Moved input files are accepted. Files with other content at another path are refused.
    replaced = replaced or _find_replaced_files(config, stages[0])
    if replaced and not force:
        raise replaced
    if config.engine.kind == "local":  # Workers of Ray have their own devices.
        is_trained = any(stage.name == "train" for stage in stages)
        for kind in (config.model.kind, *config.baselines) if is_trained else ():
            _check_device(kind, getattr(config.settings_of(kind), "device", "cpu"))
    return replaced is not None


def _check_place(directory: Path) -> None:
    """Refuse a run folder that cannot be created or that a newer recgrit wrote."""
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
    for stage in FOLDERS:
        try:
            read_manifest(stage_directory(directory, stage))
        except NewerSchemaError:
            raise
        except ArtifactError:  # A missing or damaged stage runs again.
            continue


def _find_replaced(config: ExperimentConfig) -> ArtifactError | None:
    """Return the error for replacing a run of another data source or model, or None."""
    if not (config.run.dir / CONFIG_NAME).is_file():
        return None
    before = ExperimentConfig.load(config.run.dir)
    for name, old, new in (
        ("data.source", before.data.source, config.data.source),
        ("model.kind", before.model.kind, config.model.kind),
    ):
        if old != new:
            return _refuse_replacing(config.run.dir, name, old, new)
    return None


def _find_replaced_files(config: ExperimentConfig, prepare: Stage) -> ArtifactError | None:
    """Return the error for replacing a run on other files at another path, or None."""
    if not (config.run.dir / CONFIG_NAME).is_file():
        return None
    old, new = _place(ExperimentConfig.load(config.run.dir)), _place(config)
    try:
        before = read_manifest(prepare.directory(config)).inputs
    except ArtifactError:
        return None
    if old == new or list(before.values()) == list(prepare.origin(config).inputs.values()):
        return None
    return _refuse_replacing(config.run.dir, "data.path", old, new)


def _refuse_replacing(directory: Path, name: str, old: str, new: str) -> ArtifactError:
    return ArtifactError(
        f"{directory} holds a run with {name}={old}, but {name}={new} is requested. Choose "
        "another folder with run.dir=PATH, or replace the run with --force."
    )


def _delete_replaced(config: ExperimentConfig, stages: Sequence[Stage]) -> None:
    """Delete the settings of a replaced run, and its stages that the new run does not have."""
    (config.run.dir / CONFIG_NAME).unlink(missing_ok=True)
    folders = [config.run.dir / name for name in FOLDERS.values()]
    kept = {stage.directory(config) for stage in stages}
    for folder in {*folders, *config.run.dir.glob("baselines/*")} - kept:
        require_replaceable(folder, None, "run.dir=PATH")
        shutil.rmtree(folder, ignore_errors=True)


def _place(config: ExperimentConfig) -> str:
    return str(config.data.path.absolute()) if config.data.path is not None else "(fetched)"


def _check_device(kind: str, name: str) -> None:
    if name in ("auto", "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=name)
    # Builds without CUDA raise AssertionError, unknown names RuntimeError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"The device {name} of the model {kind} cannot be used here: {reason} Set its device "
            "to auto."
        ) from None
