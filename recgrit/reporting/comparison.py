"""Several runs on one split, compared user by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from recgrit.errors import ArtifactError, ConfigError
from recgrit.evaluation.metrics import METRICS
from recgrit.evaluation.paired import PairedDifference, compare_ranks
from recgrit.reporting.lists import ListQuality, measure_lists
from recgrit.reporting.origin import flat_settings
from recgrit.reporting.scores import (
    OURS,
    Breakdown,
    Group,
    ModelScores,
    break_down,
    collect_scores,
    headline_k,
)
from recgrit.runs import Run, stage_directory

# Places and bookkeeping: two runs that differ in these are alike.
UNIMPORTANT = ("run.", "data.download_dir", "data.path", "data.mirrors", "tracking.")
POPULARITY = "popularity"


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs.

    Args:
        name: Told apart from the others'.
        directory: Its folder.
        scores: Of its own model on test: as it is, and masked.
        tokenizer: The tokenize stage's summary.
        training: The train stage's summary.
        epochs: The retriever's training.
        lists: Quality of its lists; None if nothing was recommended.
        fingerprints: By stage.
    """

    name: str
    directory: str
    scores: tuple[ModelScores, ...]
    tokenizer: dict[str, Any]
    training: dict[str, Any]
    epochs: pl.DataFrame
    lists: ListQuality | None
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """A run less the first run.

    Args:
        run: Name of the run.
        metric: Such as ``recall_at_10``.
        masked: Whether histories were kept out of the lists.
        value: The difference with its interval.
    """

    run: str
    metric: str
    masked: bool
    value: PairedDifference


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, the first being what the others are held against.

    Args:
        runs: In the order given.
        differences: Of every other run from the first.
        breakdowns: Recall over groups of users, by run.
        settings: Values by run of the settings that are not the same in all, as JSON.
        popularity: The popularity baseline on test, as it is and masked.
        data: The summary of the data they share.
        created: When this was computed, UTC.
    """

    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]
    breakdowns: tuple[Breakdown, ...]
    settings: dict[str, tuple[str, ...]]
    popularity: tuple[ModelScores, ...]
    data: dict[str, Any]
    created: str


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Measure the differences of runs from the first of them.

    Raises:
        ConfigError: There are fewer than two, or their splits differ.
        ArtifactError: One of them is not evaluated.
    """
    if len(runs) < 2:
        raise ConfigError("Comparing takes at least two runs: recgrit compare RUN RUN...")
    for run in runs:
        if not stage_directory(run.directory, "evaluate").is_dir():
            raise ArtifactError(
                f"{run.directory} is not evaluated yet: 'recgrit evaluate {run.directory}' does it."
            )
    for other in runs[1:]:
        _require_same_split(runs[0], other)
    names = _name_runs(runs)
    first = collect_scores(runs[0].reports)
    return Comparison(
        runs=tuple(_read_run(name, run) for name, run in zip(names, runs, strict=True)),
        differences=tuple(
            difference
            for name, run in zip(names[1:], runs[1:], strict=True)
            for difference in _differences(name, run, runs[0])
        ),
        breakdowns=_join_breakdowns(names, runs),
        settings=_settings_apart(runs),
        popularity=tuple(s for s in first if s.model == POPULARITY and s.split == "test"),
        data=runs[0].manifest("prepare").summary,
        created=datetime.now(UTC).isoformat(sep=" ", timespec="minutes")[:16],
    )


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
        apart = ["the settings are equal, so the raw files are not"]
    raise ConfigError(
        f"{first.directory} and {other.directory} are measured on different data, so their numbers "
        f"cannot be compared: fingerprints {manifests[0].fingerprint} and "
        f"{manifests[1].fingerprint}; {'; '.join(apart)}. Run both with the same data settings."
    )


def _name_runs(runs: Sequence[Run]) -> tuple[str, ...]:
    """Folder names where they tell runs apart, else the paths, and numbers as a last resort."""
    for names in (
        [run.directory.absolute().name for run in runs],
        [str(run.directory) for run in runs],
    ):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{run.directory} ({place})" for place, run in enumerate(runs, start=1))


def _read_run(name: str, run: Run) -> ComparedRun:
    stages = ("prepare", "embed", "tokenize", "train", "evaluate")
    lists = None
    if stage_directory(run.directory, "recommend").is_dir():
        run.manifest("recommend")
        lists = measure_lists(run, seed=run.config.seed).rows[0]
    return ComparedRun(
        name=name,
        directory=str(run.directory),
        scores=tuple(
            found
            for found in collect_scores(run.reports)
            if found.model == OURS and found.split == "test"
        ),
        tokenizer=run.manifest("tokenize").summary,
        training=run.manifest("train").summary,
        epochs=pl.read_parquet(
            stage_directory(run.directory, "train") / "epochs.parquet", glob=False
        ),
        lists=lists,
        fingerprints={stage: run.manifest(stage).fingerprint for stage in stages},
    )


def _differences(name: str, run: Run, first: Run) -> list[Difference]:
    found = []
    for report in ("test", "test_masked"):
        ours, theirs = run.reports[report], first.reports[report]
        if not np.array_equal(ours.per_user["user_idx"], theirs.per_user["user_idx"]):
            raise ConfigError(
                f"{run.directory} and {first.directory} are evaluated on different users."
            )
        common = sorted(set(ours.ks) & set(theirs.ks))
        if not common:
            raise ConfigError(
                f"{run.directory} and {first.directory} have no list length in common: "
                f"{list(ours.ks)} and {list(theirs.ks)}. Set evaluation.ks."
            )
        k = headline_k(common)
        for metric, function in METRICS.items():
            # Their seeds need not be equal: it is these two trainings that are compared.
            value = compare_ranks({0: ours.ranks}, {0: theirs.ranks}, function, k)
            assert value is not None
            key = f"{metric.lower()}_at_{k}"
            found.append(Difference(name, key, report == "test_masked", value))
    return found


def _join_breakdowns(names: Sequence[str], runs: Sequence[Run]) -> tuple[Breakdown, ...]:
    """The groups of all runs are the same users; popularity is the same in all."""
    parts = [break_down(run.reports, run.data.split) for run in runs]
    joined = []
    for same in zip(*parts, strict=True):
        groups = []
        for group in zip(*(breakdown.groups for breakdown in same), strict=True):
            scores = {
                name: found.scores[OURS] for name, found in zip(names, group, strict=True)
            } | {model: score for model, score in group[0].scores.items() if model != OURS}
            groups.append(Group(group[0].label, group[0].num_users, scores))
        joined.append(Breakdown(same[0].key, same[0].metric, tuple(groups)))
    return tuple(joined)


def _settings_apart(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    values = [dict(flat_settings(run.config.model_dump(mode="json"))) for run in runs]
    names = dict.fromkeys(name for found in values for name in found)
    apart = {}
    for name in names:
        of_runs = tuple(found.get(name, "unset") for found in values)
        if len(set(of_runs)) > 1 and not name.startswith(UNIMPORTANT):
            apart[name] = of_runs
    return apart
