"""Tuning of a run's settings on validation: a resumable study of trials that may stop early.

All files are in one folder: Optuna's study in ``study.db``, a run folder for each trial in
``trials``, and the best configuration so far in ``winner.yaml``. A tuning that was killed resumes
the interrupted trial after its last complete epoch.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from recgrit.checksums import digest_json
from recgrit.disk import hold_lock, refuse_inside_artifact, resolve_links, write_atomic
from recgrit.errors import ArtifactError, ConfigError, TrainingError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import CHECKPOINTS_NAME, TRACKING_NAME, stage_directory
from recgrit.pipeline import run_experiment
from recgrit.proposal.sizes import Kept
from recgrit.runs import Run
from recgrit.tracking.start import start_tracking
from recgrit.tracking.tracker import NullTracker, Tracker
from recgrit.tuning.space import as_setting, override, propose_space
from recgrit.tuning.storage import (
    RECORD,
    SECONDS,
    STUDY_NAME,
    identify,
    open_study,
    record_of,
    require_same,
)
from recgrit.tuning.trial import TrialTracker, measure, share_stages
from recgrit.tuning.winner import describe_winner

logger = logging.getLogger(__name__)

WINNER_NAME = "winner.yaml"
TRIALS_NAME = "trials"

# Attribute of a trial: number of the killed trial that it resumes, with its settings and epochs.
CONTINUES = "continues"

# Number of trials that are drawn at random before the sampler uses the results of earlier trials.
RANDOM_TRIALS = 5


@dataclass(frozen=True)
class TuneResult:
    """The result of a tuning.

    Args:
        folder: Folder of the tuning.
        winner: YAML file of the best trial.
        given: Validation NDCG@10 of the configured settings, which are trial 1.
        best: Validation NDCG@10 of the best trial.
        best_number: Number of the best trial, from 1.
        states: Number of trials that are complete, pruned and failed, by these names.
        seconds: Time spent on all trials in all calls, in seconds.
        is_over: Whether the budget ended before all trials were made.
    """

    folder: Path
    winner: Path
    given: float
    best: float
    best_number: int
    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    is_over: bool = False


class _BudgetSpentError(Exception):
    """Ends a trial between two epochs when the budget is spent; a larger budget resumes it."""


def tune(
    config: ExperimentConfig,
    out: Path,
    *,
    num_trials: int,
    budget: float,
    vary: Sequence[str] = (),
) -> TuneResult:
    """Try settings until all trials are made or the budget is spent, resuming an earlier call.

    The first trial uses the configured settings, so the best trial is never worse on validation.

    Args:
        config: Configuration to tune. Its seed also seeds the choice of trials.
        out: Folder of the tuning.
        num_trials: Number of trials, including those of earlier calls.
        budget: Seconds for all trials, including those of earlier calls.
        vary: Names of the only settings to vary. If empty, all proposed settings are varied.

    Raises:
        ConfigError: There is nothing to tune, or the budget ended within the first trial.
        ArtifactError: The folder holds a tuning of something else, or cannot be written.
        TrainingError: Training fails with the configured settings.
    """
    if config.engine.kind != "local":
        raise ConfigError(
            f"Trials run in this process, one after another: set engine=local (now "
            f"{config.engine.kind})."
        )
    refuse_inside_artifact(resolve_links(out) / STUDY_NAME)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(out, inside=True))
        except OSError as error:
            raise ArtifactError(
                f"Cannot write to {out}: {error.strerror}. Choose another folder with --out."
            ) from None
        return _Tuning(config, out, num_trials, budget, vary).run()


class _Tuning:
    """One call of `tune`: its study, its search space and its remaining budget."""

    def __init__(
        self,
        config: ExperimentConfig,
        out: Path,
        num_trials: int,
        budget: float,
        vary: Sequence[str],
    ) -> None:
        # Trials use the cache of ordinary runs, and thus their embeddings.
        self.config = override(config, {"run.cache_dir": config.run.cache.absolute()})
        self.out, self.num_trials, self.budget = out, num_trials, budget
        first = self._settings(1, {})
        self.study = open_study(out)
        # This check comes before anything is written into the trials of another study.
        require_same(self.study, out, "start", identify(first))
        run_experiment(first, until="prepare", parent=NullTracker())
        self.space = propose_space(self.config, _measure_data(Run(first.run.dir)), vary)
        require_same(self.study, out, "space", digest_json([repr(v) for v in self.space]))
        self._before: float = self.study.user_attrs.get(SECONDS, 0.0)
        self._started = time.perf_counter()

    def run(self) -> TuneResult:
        """Make the trials that are left."""
        self._queue()
        is_over = self.spent >= self.budget
        if is_over or len(self._done()) >= self.num_trials:
            return self._conclude(NullTracker(), is_over=is_over)
        with start_tracking(
            self.config.tracking,
            experiment=self.config.experiment_name,
            run_name=self.out.name,
            default_directory=self.config.run.dir.parent,
            state=self.out / TRACKING_NAME,
            settings=self.config.to_values(),
        ) as tracker:
            tracker.log_params(self.config.to_values())
            while len(self._done()) < self.num_trials and self.spent < self.budget:
                # A trial that the spent budget interrupts is resumed by a call with a larger one.
                with suppress(_BudgetSpentError):
                    self._make_trial(tracker)
                self._save_time()
            is_over = len(self._done()) < self.num_trials
            return self._conclude(tracker, is_over=is_over)

    @property
    def spent(self) -> float:
        """Return the seconds spent in this call and in earlier calls."""
        return self._before + time.perf_counter() - self._started

    def _save_time(self) -> None:
        self.study.set_user_attr(SECONDS, round(self.spent, 1))

    def _settings(self, number: int, values: dict[str, Any]) -> ExperimentConfig:
        return override(self.config, {**values, "run.dir": self._folder(number)})

    def _folder(self, number: int) -> Path:
        return self.out.absolute() / TRIALS_NAME / f"{number:02}"

    def _done(self) -> list[FrozenTrial]:
        """Return the trials that ended, in the order of their numbers, without killed trials."""
        return [
            trial
            for trial in self.study.trials
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            or "error" in trial.user_attrs
        ]

    def _queue(self) -> None:
        """Queue the trial that a killed call left unfinished, or the configured settings."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            drawn = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            waiting = self.study.get_trials(states=(TrialState.WAITING,))
            # The trial is queued again before it is marked as failed, so that a kill between the
            # two steps loses nothing. A trial whose settings were drawn only in part is drawn anew.
            whole = len(drawn) == len(self.space) and "error" not in trial.user_attrs
            if whole and not waiting:
                self.study.enqueue_trial(drawn, user_attrs={CONTINUES: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
        if not self._done() and not self.study.get_trials(states=(TrialState.WAITING,)):
            self.study.enqueue_trial({varied.name: varied.given for varied in self.space})
        num_done = len(self._done())
        if num_done:
            logger.info("resuming after %d trials in %s", num_done, self.out)

    def _make_trial(self, tracker: Tracker) -> None:
        number = len(self._done()) + 1
        # Each trial has its own sampler, so that an interrupted tuning draws the same trials as an
        # uninterrupted one.
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=(self.config.seed * 10_007 + number) % 2**32
        )
        trial = self.study.ask({varied.name: varied.distribution for varied in self.space})
        if CONTINUES in trial.user_attrs:
            # Copy the results of epochs that are not trained again, since the pruner needs them.
            before = self.study.trials[trial.user_attrs[CONTINUES]]
            for epoch, reached in before.intermediate_values.items():
                trial.report(reached, epoch)
        values = {
            varied.name: as_setting(varied, trial.params[varied.name])
            for varied in self.space
            if trial.params[varied.name] != varied.given
        }
        changed = ", ".join(f"{name}={value}" for name, value in values.items())
        logger.info("trial %d of %d: %s", number, self.num_trials, changed or "as configured")
        started = time.perf_counter()
        with tracker.stage(f"trial-{number:02}") as run:
            run.log_params({"trial": number, "changed": changed, **values})
            state, value = self._fit(trial, number, values, run)
            run.set_tags({"trial.state": state.name.lower()})
            if value is not None:
                run.log_metrics({"valid_ndcg_at_10": value})
        trial.set_user_attr(RECORD, record_of(trial.number, trial.params, state, value))
        self.study.tell(trial, value, state=state)
        seconds = time.perf_counter() - started
        self._tell_of(number, state, value, seconds)
        self._tidy(number)
        if state == TrialState.COMPLETE:
            self._write_winner()

    def _fit(
        self, trial: optuna.Trial, number: int, values: dict[str, Any], run: Tracker
    ) -> tuple[TrialState, float | None]:
        """Train a model with some settings and measure it on validation.

        Raises:
            TrainingError: Training fails with the configured settings, which are trial 1.
        """

        def judge(epoch: int, value: float) -> None:
            if epoch not in self.study.trials[trial.number].intermediate_values:
                trial.report(value, epoch)
            self._save_time()
            if number > 1 and trial.should_prune():
                raise optuna.TrialPruned
            if self.spent >= self.budget:
                raise _BudgetSpentError

        settings = self._settings(number, values)
        share_stages(settings, (self._folder(before) for before in range(1, number)))
        try:
            run_experiment(settings, until="train", parent=TrialTracker(run, judge))
        except optuna.TrialPruned:
            return TrialState.PRUNED, None
        except TrainingError as error:
            if number == 1:
                raise
            logger.warning("trial %d failed: %s", number, error)
            trial.set_user_attr("error", str(error))
            return TrialState.FAIL, None
        logger.info("trial %d: measuring on validation", number)
        return TrialState.COMPLETE, measure(settings)

    def _tell_of(self, number: int, state: TrialState, value: float | None, seconds: float) -> None:
        if value is None:
            found = "pruned" if state == TrialState.PRUNED else "failed"
        else:
            found = f"valid NDCG@10 {value:.4f}"
        best = self._best()
        best_number = self._done().index(best) + 1
        logger.info(
            "trial %d of %d: %s (%.0f s); best is %.4f of trial %d, %s of %s spent",
            number,
            self.num_trials,
            found,
            seconds,
            best.value,
            best_number,
            show_duration(self.spent),
            show_duration(self.budget),
        )

    def _best(self) -> FrozenTrial:
        """Return the complete trial with the best result, or the first of several equal ones."""
        complete = [trial for trial in self._done() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))

    def _tidy(self, number: int) -> None:
        """Delete checkpoints and beaten models, which no later trial needs."""
        shutil.rmtree(self._folder(number) / CHECKPOINTS_NAME, ignore_errors=True)
        kept = {1, self._done().index(self._best()) + 1}
        for other in range(1, number + 1):
            folder = self._folder(other)
            # A user may have evaluated the best trial of an earlier call, so its model stays.
            if other not in kept and not stage_directory(folder, "evaluate").is_dir():
                shutil.rmtree(stage_directory(folder, "train"), ignore_errors=True)

    def _states(self) -> dict[str, int]:
        states = [trial.state.name.lower() for trial in self._done()]
        return {
            "complete": states.count("complete"),
            "pruned": states.count("pruned"),
            "failed": states.count("fail"),
        }

    def _write_winner(self) -> None:
        best, done = self._best(), self._done()
        number = done.index(best) + 1
        values = {v.name: as_setting(v, best.params[v.name]) for v in self.space}
        changed = {v.name: values[v.name] for v in self.space if best.params[v.name] != v.given}
        assert best.value is not None
        assert done[0].value is not None
        text = describe_winner(
            self._settings(number, changed),
            self.space,
            place=self.out / WINNER_NAME,
            given=done[0].value,
            best=best.value,
            number=number,
            states=self._states(),
            spent=show_duration(self.spent),
        )
        write_atomic(self.out / WINNER_NAME, text)

    def _conclude(self, tracker: Tracker, *, is_over: bool) -> TuneResult:
        """Write the best trial's configuration and return the result.

        Args:
            tracker: Tracker that records the results of the first and the best trial.
            is_over: Whether the budget ended before all trials were made.

        Raises:
            ConfigError: No trial has ended.
        """
        done = self._done()
        if not done:
            raise ConfigError(
                f"The budget of {show_duration(self.budget)} ended within the first trial, so "
                "there is nothing to compare. The same command with a larger --budget resumes."
            )
        self._write_winner()
        best = self._best()
        assert best.value is not None
        assert done[0].value is not None
        tracker.log_metrics({"given/valid_ndcg_at_10": done[0].value})
        tracker.log_metrics({"best/valid_ndcg_at_10": best.value})
        tracker.log_artifact(self.out / WINNER_NAME)
        return TuneResult(
            folder=self.out,
            winner=self.out / WINNER_NAME,
            given=done[0].value,
            best=best.value,
            best_number=done.index(best) + 1,
            states=self._states(),
            seconds=round(self.spent, 1),
            is_over=is_over,
        )


def _measure_data(run: Run) -> Kept:
    """Return the size of the prepared data."""
    summary, data = run.manifest("prepare").summary, run.config.data
    lengths = np.diff(run.data.split.offsets)
    return Kept(
        min_user=data.min_user_interactions,
        min_item=data.min_item_interactions,
        num_users=summary["num_users"],
        num_items=summary["num_items"],
        num_interactions=summary["num_interactions"],
        long_history=int(np.quantile(lengths, 0.9)) if len(lengths) else 0,
    )


def show_duration(seconds: float) -> str:
    """Return a duration as text in hours, minutes and seconds.

    >>> show_duration(90), show_duration(3600), show_duration(5025)
    ('1m30s', '1h', '1h23m')
    """
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if (left and not hours) or not round(seconds):
        parts.append(f"{left}s")
    return "".join(parts)
