"""Metrics of a run's reports with their intervals, over all targets and over groups of them."""

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

# The model whose lists are the same for everybody: what any other has to beat.
FLOOR = "popularity"

# Categories shown, those of the most targets first.
MAX_CATEGORIES = 12


@dataclass(frozen=True)
class Score:
    """A mean over targets and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelScores:
    """What one model reached under one protocol.

    Args:
        key: The model's kind, the split, and whether seen items were filtered out.
        name: The model as it is shown (`name_model`).
        is_own: Whether it is the run's own model, not a baseline.
        num_users: Users whose targets were measured.
        num_targets: These targets.
        search: How its lists were found.
        ks: List lengths.
        scores: By name, such as ``recall_at_10``; all that the report has.
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
    """Targets that have something in common, and what each model reached on them.

    Args:
        label: Such as ``5–9``.
        num_targets: Targets in it.
        scores: By model, as it is shown.
    """

    label: str
    num_targets: int
    scores: dict[str, Score]


@dataclass(frozen=True)
class Breakdown:
    """One metric over groups of targets that together are all targets, or of categories.

    Args:
        key: What the groups differ in: ``history``, ``popularity``, ``cold``, ``new``,
            ``segment: `` and a column, or ``category``.
        metric: Such as ``recall_at_10``.
        groups: Groups without targets are left out.
    """

    key: str
    metric: str
    groups: tuple[Group, ...]


def name_model(kind: str, own: str) -> str:
    """A model as it is shown beside others.

    Args:
        kind: Of the model.
        own: The kind of the run's own model.

    Example:
        >>> name_model("trie", "trie"), name_model("item_knn", "trie")
        ('trie (this run)', 'item_knn')
    """
    return f"{kind} (this run)" if kind == own else kind


def headline_k(ks: Sequence[int]) -> int:
    """The list length to speak of first: 10 where it was evaluated, else the longest."""
    return 10 if 10 in ks else max(ks)


def metric_title(name: str) -> str:
    """A metric as it is shown.

    Example:
        >>> metric_title("ndcg_at_10"), metric_title("mrr_at_5")
        ('NDCG@10', 'MRR@5')
    """
    metric, _, k = name.partition("_at_")
    shown = {key.lower(): key for key in (*METRICS, SERENDIPITY)}
    return f"{shown.get(metric, metric)}@{k}"


def short_number(value: float) -> str:
    """Four decimals without the leading zero, as papers print them.

    Example:
        >>> short_number(0.0765), short_number(1.0)
        ('.0765', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")


def collect_scores(
    reports: Mapping[ReportKey, EvaluationReport], own: str
) -> tuple[ModelScores, ...]:
    """Every report of a run: test before validation, the run's own model first.

    Args:
        reports: A run's reports.
        own: The kind of the run's own model.
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
    """A run's results on test over groups of targets, for each model.

    Args:
        reports: A run's reports; those of test that keep seen items are used.
        split: The split they were measured on.
        own: The kind of the run's own model.
        metric: A name of `METRICS`, at `headline_k`.
        users: What is known of users, row i ``user_idx`` i; None for nothing.
        segments: Columns of it by which targets are grouped too.
        categories: Columns ``item_idx`` and ``tag``, the categories of items; None for none.
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
    """Targets by their category; one that has several is in the group of each."""
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
    """The mean over some of a report's targets, with its bootstrap interval."""
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
    """What models reach on groups of targets.

    Args:
        grouped: By key and label.
        metric: What is measured, such as ``recall_at_10``.
        measure: The scores of some targets, by model.
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
