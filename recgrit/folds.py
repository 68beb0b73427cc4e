"""Folds of a run: one further run for each window of time before the run's own test window.

A fold is an ordinary run in ``folds/1``, ``folds/2`` and so on, the oldest window first. The run
itself is the last fold. A fold has the run's settings with other cut-off times, and registers no
model. Every stage of a fold is built from interactions before the end of its test window, and
training from those before its first cut-off time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from recgrit.config import validate
from recgrit.evaluation.folds import FoldMean, Window, mean_over_folds, plan_windows
from recgrit.evaluation.report import EvaluationReport
from recgrit.experiment import CONFIG_NAME, ExperimentConfig
from recgrit.layout import FOLDS_NAME
from recgrit.runs import Run


@dataclass(frozen=True)
class Fold:
    """The test results of the run's own model on one window of time.

    Args:
        number: Number of the fold, from 1 for the oldest window.
        test_from: Time at which the test window begins, as ISO 8601 in UTC.
        report: Evaluation report on test, with all items ranked.
    """

    number: int
    test_from: str
    report: EvaluationReport


@dataclass(frozen=True)
class FoldResults:
    """The results of all folds of a run, and their means.

    Args:
        folds: All folds, the oldest window first and the run itself last.
        means: Mean over folds with its interval, by name of the metric.
    """

    folds: tuple[Fold, ...]
    means: dict[str, FoldMean]

    def to_json(self) -> dict[str, Any]:
        """Return the folds and the means as values that JSON can hold."""
        return {
            "folds": [
                {
                    "fold": fold.number,
                    "test_from": fold.test_from,
                    "num_targets": fold.report.protocol["num_targets"],
                    **fold.report.metrics(),
                }
                for fold in self.folds
            ],
            "mean": {name: asdict(found) for name, found in self.means.items()},
        }


def plan_folds(config: ExperimentConfig) -> list[ExperimentConfig]:
    """Return the settings of each fold before the last; the run's data have to be prepared.

    Raises:
        DataError: A fold has an empty part, because too many interactions have the same time.
    """
    if config.evaluation.folds == 1:
        return []
    values = config.to_values()
    return [
        validate(
            ExperimentConfig,
            values
            | {
                "data": values["data"] | dict(zip(_MOMENTS, map(_moment, window), strict=True)),
                "evaluation": values["evaluation"] | {"folds": 1},
                "tracking": values["tracking"] | {"register_model": False},
                "run": {
                    "dir": str(config.run.dir.absolute() / FOLDS_NAME / str(number)),
                    "cache_dir": str(config.run.cache.absolute()),
                },
            },
            f"fold {number}",
        )
        for number, window in enumerate(_windows(config)[:-1], start=1)
    ]


def collect_folds(run: Run) -> FoldResults | None:
    """Return the results of all folds of an evaluated run.

    The result is None if the settings ask for one fold only, if the run is not evaluated, or if a
    fold is missing or out of date.
    """
    config = run.config
    if config.evaluation.folds == 1 or not run.has("evaluate"):
        return None
    reports = []
    for plan in plan_folds(config):
        fold = Run(plan.run.dir)
        is_made = (plan.run.dir / CONFIG_NAME).is_file() and fold.has("evaluate")
        if not is_made or fold.config.to_values() != plan.to_values():
            return None
        reports.append(fold.report("test"))
    reports.append(run.report("test"))
    folds = tuple(
        Fold(number, str(_moment(window.test_from)), report)
        for number, (window, report) in enumerate(
            zip(_windows(config), reports, strict=True), start=1
        )
    )
    means = {
        name: mean_over_folds([report.means[name] for report in reports])
        for name in reports[0].means
    }
    return FoldResults(folds, means)


def _windows(config: ExperimentConfig) -> list[Window]:
    return plan_windows(
        Run(config.run.dir).data.interactions.frame["timestamp"].to_numpy(),
        config.evaluation.folds,
        valid_share=config.data.valid_share,
        test_share=config.data.test_share,
    )


_MOMENTS = ("valid_from", "test_from", "test_until")


def _moment(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
