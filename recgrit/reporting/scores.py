"""Metrics of a run's reports with their intervals, over all users and over groups of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.data.splits import SequenceSplit, Split
from recgrit.evaluation.bootstrap import bootstrap_intervals
from recgrit.evaluation.metrics import METRICS
from recgrit.evaluation.report import EvaluationReport

OURS = "recgrit"

_REPORT_NAME = re.compile(r"(?:(?P<model>.+)_)?(?P<split>valid|test)(?P<masked>_masked)?")

# Where a group of users begins and ends, both included.
HISTORY_BINS = ((1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
POPULARITY_BINS = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
COLD_BINS = ((0, 0), (1, None))


@dataclass(frozen=True)
class Score:
    """A mean over users and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelScores:
    """What one model reached under one protocol.

    Args:
        model: `OURS`, or the name of a baseline.
        split: ``valid`` or ``test``.
        masked: Whether the items of a user's history were kept out.
        num_users: Users measured.
        ks: List lengths.
        scores: By name, such as ``recall_at_10``.
    """

    model: str
    split: Split
    masked: bool
    num_users: int
    ks: tuple[int, ...]
    scores: dict[str, Score]


@dataclass(frozen=True)
class Group:
    """Users that have something in common, and what each model reached on them.

    Args:
        label: Such as ``5–9``.
        num_users: Users in it.
        scores: By model.
    """

    label: str
    num_users: int
    scores: dict[str, Score]


@dataclass(frozen=True)
class Breakdown:
    """One metric over groups of users that together are all users.

    Args:
        key: What the groups differ in: ``history``, ``popularity`` or ``cold``.
        metric: Such as ``recall_at_10``.
        groups: Groups without users are left out.
    """

    key: str
    metric: str
    groups: tuple[Group, ...]


def headline_k(ks: Sequence[int]) -> int:
    """The list length to speak of first: 10 where it was evaluated, else the longest."""
    return 10 if 10 in ks else max(ks)


def metric_title(name: str) -> str:
    """A metric as it is shown.

    Example:
        >>> metric_title("ndcg_at_10")
        'NDCG@10'
    """
    metric, _, k = name.partition("_at_")
    shown = {key.lower(): key for key in METRICS}
    return f"{shown.get(metric, metric)}@{k}"


def collect_scores(reports: Mapping[str, EvaluationReport]) -> tuple[ModelScores, ...]:
    """Every report of a run: the run's own model first, test before validation."""
    found = []
    for name, report in reports.items():
        parts = _REPORT_NAME.fullmatch(name)
        if parts is None:
            continue
        scores = {key: Score(mean, *report.bounds[key]) for key, mean in report.means.items()}
        found.append(
            ModelScores(
                model=parts["model"] or OURS,
                split="test" if parts["split"] == "test" else "valid",
                masked=parts["masked"] is not None,
                num_users=report.per_user.height,
                ks=report.ks,
                scores=scores,
            )
        )
    return tuple(
        sorted(found, key=lambda s: (s.split != "test", s.masked, s.model != OURS, s.model))
    )


def break_down(
    reports: Mapping[str, EvaluationReport], split: SequenceSplit, *, metric: str = "Recall"
) -> tuple[Breakdown, ...]:
    """Test results by length of history, by popularity of the target, and by cold and warm targets.

    Popularity is how often the target stands in the training parts; a cold target never does.

    Args:
        reports: A run's reports; those of the unmasked test split are used.
        split: The split they were measured on.
        metric: A name of `METRICS`, taken at `headline_k`.
    """
    models = {"test": OURS} | {
        name: name.removesuffix("_test") for name in reports if name.endswith("_test")
    }
    per_user = reports["test"].per_user
    users, targets = per_user["user_idx"].to_numpy(), per_user["item_idx"].to_numpy()
    lengths = split.test_targets[users] - split.offsets[users]
    counts = split.train_item_counts()[targets]
    k = headline_k(reports["test"].ks)
    seed, num_bootstrap = (reports["test"].protocol[key] for key in ("seed", "num_bootstrap"))

    def score(name: str, members: npt.NDArray[np.bool_]) -> Score:
        ranks = reports[name].ranks[members]
        values = METRICS[metric](ranks, k)
        bounds = bootstrap_intervals(ranks, {metric: values}, num_bootstrap, seed)
        return Score(float(values.mean()), *bounds[metric])

    def group(
        key: str, values: npt.NDArray[np.int64], bins: Sequence[tuple[int, int | None]]
    ) -> Breakdown:
        groups = []
        for low, high in bins:
            members = (values >= low) & (values <= (np.inf if high is None else high))
            if members.any():
                scores = {model: score(name, members) for name, model in models.items()}
                label = _label(key, low, high)
                groups.append(Group(label, int(members.sum()), scores))
        return Breakdown(key, f"{metric.lower()}_at_{k}", tuple(groups))

    return (
        group("history", lengths, HISTORY_BINS),
        group("popularity", counts, POPULARITY_BINS),
        group("cold", counts, COLD_BINS),
    )


def _label(key: str, low: int, high: int | None) -> str:
    if key == "cold":
        return "cold" if high == 0 else "warm"
    if low == high:
        return "never" if low == 0 else str(low)
    return f"{low}+" if high is None else f"{low}–{high}"
