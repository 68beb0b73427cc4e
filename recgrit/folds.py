"""Folds of a run: an ordinary run for each window of time before the run's own.

A fold lies in ``folds/1``, ``folds/2`` and so on, the oldest first; the run itself is the last one.
Settings differ in when validation and test begin and end, so that every stage of a fold is built
from what happened before its test ended, and its training from what lies before its first cut-off.
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
    """What the run's own model reached on one window of test.

    Args:
        number: From 1, the oldest.
        test_from: When its test begins, as ISO 8601 in UTC.
        report: On test, all items ranked.
    """

    number: int
    test_from: str
    report: EvaluationReport


@dataclass(frozen=True)
class FoldResults:
    """All folds of a run, and what they say together.

    Args:
        folds: The oldest first, the run itself last.
        means: Over folds, by metric.
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
    """The settings of each fold before the last, once the run's data are prepared.

    Raises:
        DataError: The times leave a part of a fold empty.
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
    """What the folds of an evaluated run reached; None where it has none, or not all of them."""
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
