"""Metrics of a run's reports with their intervals, over all targets and over groups of targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.bootstrap import bootstrap_intervals
from recgrit.evaluation.groups import Members, group_by_segments, group_targets
from recgrit.evaluation.metrics import METRICS, SERENDIPITY
from recgrit.evaluation.report import EvaluationReport, ReportKey

# The model whose lists are the same for all users. Any other model has to beat it.
FLOOR = "popularity"

# Largest number of categories to show. Categories with the most targets come first.
MAX_CATEGORIES = 12


@dataclass(frozen=True)
class Score:
    """A mean over targets with its 95% interval.

    Args:
        mean: Mean over targets.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model on one split, for lists with or without seen items.

    Args:
        key: Kind of the model, split, and whether seen items were filtered out.
        name: Name of the model on the page (`name_model`).
        is_own: Whether the model is the run's own model and not a baseline.
        num_users: Number of users whose targets are measured.
        num_targets: Number of targets that are measured.
        search: How the lists were found, such as by beam search.
        ks: List lengths.
        scores: Scores by metric, such as ``recall_at_10``, for all metrics of the report.
    """

    key: ReportKey
    name: str
    is_own: bool
    num_users: int
    num_targets: int
    search: str
    ks: tuple[int, ...]
    scores: dict[str, Score]


@dataclass(frozen=True)
class Group:
    """A group of targets that have a property in common, and the score of each model on them.

    Args:
        label: Label of the group, such as ``5–9``.
        num_targets: Number of targets in the group.
        scores: Scores by the model's name on the page.
    """

    label: str
    num_targets: int
    scores: dict[str, Score]


@dataclass(frozen=True)
class Breakdown:
    """One metric over groups of targets, such as recall by the length of the history.

    The groups together are all targets, except those of ``category``, which may overlap.

    Args:
        key: The property that targets are grouped by. ``history``: number of items before the
            target. ``popularity``: training interactions of the target's item. ``cold``: whether
            the item is in training. ``new``: whether the user is in training. ``segment: `` and a
            column: value of a column of the users' table. ``category``: category of the item.
        metric: Name of the metric, such as ``recall_at_10``.
        groups: The groups. Groups without targets are left out.
    """

    key: str
    metric: str
    groups: tuple[Group, ...]


def name_model(kind: str, own: str) -> str:
    """Return the name of a model on the page, which marks the run's own model.

    Args:
        kind: Kind of the model.
        own: Kind of the run's own model.

    Example:
        >>> name_model("trie", "trie"), name_model("item_knn", "trie")
        ('trie (this run)', 'item_knn')
    """
    return f"{kind} (this run)" if kind == own else kind


def headline_k(ks: Sequence[int]) -> int:
    """Return the list length that a page shows first: 10 if it was evaluated, else the longest."""
    return 10 if 10 in ks else max(ks)


def metric_title(name: str) -> str:
    """Return the title of a metric from its name.

    Example:
        >>> metric_title("ndcg_at_10"), metric_title("mrr_at_5")
        ('NDCG@10', 'MRR@5')
    """
    metric, _, k = name.partition("_at_")
    shown = {key.lower(): key for key in (*METRICS, SERENDIPITY)}
    return f"{shown.get(metric, metric)}@{k}"


def short_number(value: float) -> str:
    """Return a number with four decimals and without the leading zero, as papers print it.

    Example:
        >>> short_number(0.0765), short_number(1.0)
        ('.0765', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")


def collect_scores(
    reports: Mapping[ReportKey, EvaluationReport], own: str
) -> tuple[ModelScores, ...]:
    """Return the scores of all reports of a run: test before validation, the run's own model first.

    Args:
        reports: Reports of a run.
        own: Kind of the run's own model.
    """
    found = [
        ModelScores(
            key=key,
            name=name_model(key.model, own),
            is_own=key.model == own,
            num_users=report.protocol["num_users"],
            num_targets=report.protocol["num_targets"],
            search=report.protocol["search"],
            ks=report.ks,
            scores={name: Score(mean, *report.bounds[name]) for name, mean in report.means.items()},
        )
        for key, report in reports.items()
    ]
    return tuple(sorted(found, key=lambda s: (s.key.split != "test", s.key.masked, not s.is_own)))


def break_down(
    reports: Mapping[ReportKey, EvaluationReport],
    split: SequenceSplit,
    own: str,
    *,
    metric: str = "Recall",
    users: pl.DataFrame | None = None,
    segments: Sequence[str] = (),
    categories: pl.DataFrame | None = None,
) -> tuple[Breakdown, ...]:
    """Return a run's results on test over groups of targets, for each model.

    Args:
        reports: Reports of a run. Those on test that keep seen items are used.
        split: The split that the reports were measured on.
        own: Kind of the run's own model.
        metric: A name of `METRICS`. Its list length is `headline_k`.
        users: Table of users; row i describes ``user_idx`` i. None if there is no such table.
        segments: Columns of ``users`` to group targets by.
        categories: Columns ``item_idx`` and ``tag`` with the categories of items. None adds no
            groups by category.
    """
    models = {
        name_model(key.model, own): report
        for key, report in sorted(reports.items(), key=lambda entry: entry[0].model != own)
        if key.split == "test" and not key.masked
    }
    report = reports[ReportKey(own, "test", False)]
    k = headline_k(report.ks)

    def measure(members: Members) -> dict[str, Score]:
        return {name: _score(found, members, metric, k) for name, found in models.items()}

    name = f"{metric.lower()}_at_{k}"
    grouped = group_targets(report, split) | group_by_segments(report, users, segments)
    found = measure_groups(grouped, name, measure)
    if categories is not None:
        found = (*found, _group_by_category(report, categories, name, measure))
    return found


def _group_by_category(
    report: EvaluationReport,
    categories: pl.DataFrame,
    metric: str,
    measure: Callable[[Members], dict[str, Score]],
) -> Breakdown:
    """Group targets by the categories of their items, and measure the models on each group.

    A target whose item has several categories is in several groups.
    """
    targets = report.per_target.select("item_idx").with_row_index("target")
    pairs = targets.join(categories, on="item_idx")
    largest = pairs["tag"].value_counts().sort(["count", "tag"], descending=[True, False])
    groups = []
    for tag, count in largest.head(MAX_CATEGORIES).iter_rows():
        members = np.zeros(len(targets), dtype=bool)
        members[pairs.filter(tag=tag)["target"].to_numpy()] = True
        groups.append(Group(tag, count, measure(members)))
    return Breakdown("category", metric, tuple(groups))


def _score(report: EvaluationReport, members: Members, metric: str, k: int) -> Score:
    """Return the mean over some of a report's targets, with its bootstrap interval."""
    ranks = report.ranks[members]
    values = METRICS[metric](ranks, k)
    bounds = bootstrap_intervals(
        ranks,
        {metric: values},
        report.protocol["num_bootstrap"],
        report.protocol["seed"],
        owners=report.users[members],
    )
    return Score(float(values.mean()), *bounds[metric])


def measure_groups(
    grouped: Mapping[str, Mapping[str, Members]],
    metric: str,
    measure: Callable[[Members], dict[str, Score]],
) -> tuple[Breakdown, ...]:
    """Measure models on groups of targets.

    Args:
        grouped: For each property and each label, the targets of the group.
        metric: Name of the metric, such as ``recall_at_10``.
        measure: Function that returns the score of each model on some targets.
    """
    return tuple(
        Breakdown(
            key,
            metric,
            tuple(
                Group(label, int(members.sum()), measure(members))
                for label, members in groups.items()
            ),
        )
        for key, groups in grouped.items()
    )
