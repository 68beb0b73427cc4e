"""The comparison of several models on the same split, with differences paired by target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from recgrit.errors import ArtifactError, ConfigError
from recgrit.evaluation.groups import Members, group_targets
from recgrit.evaluation.metrics import HEADLINES, METRICS
from recgrit.evaluation.paired import PairedDifference, compare_ranks, mean_over_seeds
from recgrit.evaluation.repeats import Repeats
from recgrit.evaluation.report import EvaluationReport
from recgrit.experiment import flat_settings
from recgrit.layout import stage_directory
from recgrit.reporting.contents import TrainingContents, read_training
from recgrit.reporting.lists import ListQuality, measure_lists
from recgrit.reporting.rows import Row, find_baselines, group_runs, own_stages
from recgrit.reporting.scores import (
    Breakdown,
    Score,
    headline_k,
    measure_groups,
    metric_title,
)
from recgrit.runs import Run

# Settings of paths and bookkeeping. They do not change results, so a comparison ignores them.
UNIMPORTANT = ("run.", "data.download_dir", "data.path", "data.mirrors", "tracking.", "engine.")


@dataclass(frozen=True)
class View:
    """A selection of test targets and of a kind of lists, on which metrics are measured.

    Args:
        masked: Whether seen items are filtered out of the lists.
        new_items: Whether only those targets count whose item is not in the history before them.
    """

    masked: bool
    new_items: bool = False

    @property
    def label(self) -> str:
        """The text that follows a metric's name: ``new items``, ``masked``, or nothing."""
        return "new items" if self.new_items else "masked" if self.masked else ""

    @property
    def key(self) -> str:
        """The name of the view in JSON, such as ``test_masked``."""
        return f"test_{self.label.replace(' ', '_')}".rstrip("_")

    def title(self, metric: str) -> str:
        """Return the title of a metric in this view, such as ``NDCG@10 masked``."""
        return f"{metric_title(metric)} {self.label}".rstrip()


ALL, MASKED = View(masked=False), View(masked=True)
NEW_ITEMS = View(masked=True, new_items=True)


@dataclass(frozen=True)
class RowScores:
    """The scores of a row's model on test: means over targets and seeds.

    Args:
        view: The targets and lists that the scores are measured on.
        search: How the lists were found, such as by beam search.
        scores: Scores by metric, such as ``recall_at_10``, with intervals over users and seeds.
    """

    view: View
    search: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class ComparedRow:
    """One model of a comparison, with its scores and details.

    Args:
        row: Name, kind and runs of the model.
        scores: Scores of each view. If many targets are repeats, the view of new items comes first.
        tokenizer: Summary of the tokenize stage of the first seed. None for a model without IDs.
        training: Training of the first seed. None for a model that is not trained in epochs.
        lists: Quality of the lists of the first seed. None if nothing was recommended.
        fingerprints: Fingerprint of each stage, by seed and stage; empty for a baseline.
    """

    row: Row
    scores: tuple[RowScores, ...]
    tokenizer: dict[str, Any] | None
    training: TrainingContents | None
    lists: ListQuality | None
    fingerprints: dict[int, dict[str, str]]

    @property
    def name(self) -> str:
        """The name of the row."""
        return self.row.name

    def of_view(self, view: View) -> RowScores:
        """Return the scores of one view."""
        return next(found for found in self.scores if found.view == view)

    @property
    def num_parameters(self) -> int | None:
        """The number of trained parameters; None for a model that is not trained in epochs."""
        if self.training is None:
            return None
        return int(sum(self.training.summary["num_parameters"].values()))


@dataclass(frozen=True)
class Difference:
    """The difference between a row's metric and the first row's metric.

    Args:
        row: Name of the row.
        metric: Name of the metric, such as ``recall_at_10``.
        view: The targets and lists that the metric is measured on.
        value: The difference, with its interval over users and seeds.
    """

    row: str
    metric: str
    view: View
    value: PairedDifference


@dataclass(frozen=True)
class Comparison:
    """Several models, of which all others are compared with the first.

    Args:
        rows: One row per model, in the order of the runs; baselines come last.
        ks: List lengths that all rows were evaluated at.
        num_users: Number of users whose targets are measured.
        num_targets: Number of targets that are measured.
        differences: Differences of all other rows from the first.
        breakdowns: Recall of each row over groups of targets.
        settings: Settings that differ between the rows: by setting, the value of each row as JSON,
            without baselines.
        data: Summary of the data that all runs share.
        created: Time when the comparison was computed, in UTC.
        repeats: Targets whose item is in the history before them. None if they are few.
    """

    rows: tuple[ComparedRow, ...]
    ks: tuple[int, ...]
    num_users: int
    num_targets: int
    differences: tuple[Difference, ...]
    breakdowns: tuple[Breakdown, ...]
    settings: dict[str, tuple[str, ...]]
    data: dict[str, Any]
    created: str
    repeats: Repeats | None = None

    @property
    def base(self) -> ComparedRow:
        """The first row, which all others are compared with."""
        return self.rows[0]

    @property
    def views(self) -> tuple[View, ...]:
        """The views that all rows have scores of, in the order in which they are shown."""
        return tuple(found.view for found in self.base.scores)

    @property
    def headline(self) -> tuple[str, ...]:
        """The names of the metrics that are shown first, such as ``recall_at_10``."""
        return tuple(f"{metric.lower()}_at_{headline_k(self.ks)}" for metric in HEADLINES)


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Measure the models of several runs, and their differences from the first run's model.

    Raises:
        ConfigError: There are fewer than two runs, or their splits or targets differ.
        ArtifactError: A run is not evaluated.
    """
    if len(runs) < 2:
        raise ConfigError("Comparing takes at least two runs: recgrit compare RUN RUN...")
    for run in runs:
        if not stage_directory(run.directory, "evaluate").is_dir():
            raise ArtifactError(
                f"{run.directory} is not evaluated yet: run 'recgrit evaluate {run.directory}'."
            )
    for other in runs[1:]:
        _require_same_split(runs[0], other)
    own = group_runs(runs)
    rows = (*own, *find_baselines(own))
    ks, report = _common_protocol(rows)
    repeats = runs[0].repeats
    members = _members_of_views(report, repeats)
    return Comparison(
        rows=tuple(_read_row(row, ks, members) for row in rows),
        ks=ks,
        num_users=report.protocol["num_users"],
        num_targets=report.protocol["num_targets"],
        differences=tuple(
            difference for row in rows[1:] for difference in _differences(row, rows[0], ks, members)
        ),
        breakdowns=_break_down(rows, runs[0], headline_k(ks)),
        settings=_settings_apart(own),
        data=runs[0].manifest("prepare").summary,
        created=datetime.now(UTC).isoformat(sep=" ", timespec="minutes")[:16],
        repeats=repeats if repeats.are_many else None,
    )


def _members_of_views(report: EvaluationReport, repeats: Repeats) -> dict[View, Members]:
    """Return the views to compare by, each with the targets that count.

    Args:
        report: Report with the ranks of T targets.
        repeats: Which targets are repeats.

    Returns:
        For each view, whether each target counts: bool ``[T]``.
    """
    everything = np.ones(len(report.ranks), np.bool_)
    views = {ALL: everything, MASKED: everything}
    if not repeats.are_many or repeats.is_repeat.all():
        return views
    return {NEW_ITEMS: ~repeats.is_repeat, **views}


def _require_same_split(first: Run, other: Run) -> None:
    manifests = [run.manifest("prepare") for run in (first, other)]
    if manifests[0].fingerprint == manifests[1].fingerprint:
        return
    before, after = (dict(flat_settings(manifest.config)) for manifest in manifests)
    apart = [
        f"data.{name} is {before.get(name, 'unset')} and {after.get(name, 'unset')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if not apart:
        apart = ["the settings are equal, so the raw files differ"]
    raise ConfigError(
        f"{first.directory} and {other.directory} are measured on different data, so their numbers "
        f"cannot be compared: fingerprints {manifests[0].fingerprint} and "
        f"{manifests[1].fingerprint}; {'; '.join(apart)}. Run both with the same data settings."
    )


def _common_protocol(rows: Sequence[Row]) -> tuple[tuple[int, ...], EvaluationReport]:
    """Return the list lengths that all rows have, and a report with the measured targets.

    Raises:
        ConfigError: Runs are evaluated on different targets, or have no list length in common.
    """
    base = rows[0].first.report("test")
    ks = set(base.ks)
    for row in rows:
        for run in row.runs.values():
            report = run.report("test", model=row.kind)
            if not np.array_equal(report.sequences, base.sequences):
                raise ConfigError(
                    f"{run.directory} and {rows[0].first.directory} are evaluated on different "
                    "targets. Evaluate both with the same settings."
                )
            if not ks & set(report.ks):
                raise ConfigError(
                    f"{run.directory} and the runs before it have no list length in common: "
                    f"{list(report.ks)} and {sorted(ks)}. Evaluate both with the same "
                    "evaluation.ks."
                )
            ks &= set(report.ks)
    return tuple(sorted(ks)), base


def _read_row(row: Row, ks: Sequence[int], views: Mapping[View, Members]) -> ComparedRow:
    run, lists = row.first, None
    if row.is_baseline:
        return ComparedRow(row, _score(row, ks, views), None, None, None, {})
    if stage_directory(run.directory, "recommend").is_dir():
        run.manifest("recommend")
        lists = measure_lists(run, seed=run.config.seed).rows[0]
    stages = own_stages(run)
    return ComparedRow(
        row=row,
        scores=_score(row, ks, views),
        tokenizer=run.manifest("tokenize").summary if "tokenize" in stages else None,
        training=read_training(run),
        lists=lists,
        fingerprints={
            seed: {stage: of_seed.manifest(stage).fingerprint for stage in stages}
            for seed, of_seed in row.runs.items()
        },
    )


def _score(row: Row, ks: Sequence[int], views: Mapping[View, Members]) -> tuple[RowScores, ...]:
    found = []
    for view, members in views.items():
        reports = row.reports(masked=view.masked)
        scores = {
            f"{metric.lower()}_at_{k}": _mean(row, view.masked, metric, k, members)
            for metric in HEADLINES
            for k in ks
        }
        searches = dict.fromkeys(report.protocol["search"] for report in reports.values())
        found.append(RowScores(view, ", ".join(searches), scores))
    return tuple(found)


def _mean(row: Row, masked: bool, metric: str, k: int, members: Members) -> Score:
    """Return the mean over some targets and all seeds. With a single user it has no interval."""
    reports = list(row.reports(masked=masked).values())
    values = np.stack([METRICS[metric](report.ranks[members], k) for report in reports])
    owners = reports[0].users[members]
    if len(np.unique(owners)) < 2:
        return Score(float(values.mean()), float("nan"), float("nan"))
    found = mean_over_seeds(values, owners=owners)
    return Score(found.mean, found.low, found.high)


def _differences(
    row: Row, base: Row, ks: Sequence[int], views: Mapping[View, Members]
) -> list[Difference]:
    k, found = headline_k(ks), []
    for view, members in views.items():
        reports = [of_row.reports(masked=view.masked) for of_row in (row, base)]
        ranks = [{seed: report.ranks[members] for seed, report in of.items()} for of in reports]
        owners = base.first.report("test", masked=view.masked).users[members]
        for metric in HEADLINES:
            value = compare_ranks(ranks[0], ranks[1], METRICS[metric], k, owners=owners)
            found.append(Difference(row.name, f"{metric.lower()}_at_{k}", view, value))
    return found


def _break_down(rows: Sequence[Row], run: Run, k: int) -> tuple[Breakdown, ...]:
    def measure(members: Members) -> dict[str, Score]:
        return {row.name: _mean(row, False, "Recall", k, members) for row in rows}

    grouped = group_targets(run.report("test"), run.data.split)
    return measure_groups(grouped, f"recall_at_{k}", measure)


def _settings_apart(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Return the settings that differ between rows: by setting, the value of each row.

    The values are those of each row's first run. The seeds are those of all runs of a row.
    """
    values = [
        dict(flat_settings(row.first.config.model_dump(mode="json")))
        | {"seed": ", ".join(map(str, row.runs))}
        for row in rows
    ]
    names = dict.fromkeys(name for found in values for name in found)
    apart = {}
    for name in names:
        of_rows = tuple(found.get(name, "unset") for found in values)
        if len(set(of_rows)) > 1 and not name.startswith(UNIMPORTANT):
            apart[name] = of_rows
    return apart
