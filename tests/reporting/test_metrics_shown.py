"""Compute the further metrics of the pages from the run's files by their definitions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.groups import group_targets
from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.reporting.contents import gather_contents
from recgrit.reporting.lists import measure_lists
from recgrit.reporting.scores import break_down, collect_scores, name_model
from recgrit.reporting.tags import read_tags
from recgrit.runs import Run


@pytest.fixture(scope="module")
def run(tiny_run: Any) -> Run:
    return Run(tiny_run.directory)


@pytest.fixture(scope="module")
def interactions_of_users(run: Run) -> dict[str, list[str]]:
    """Return the training items of each user from the log. The last two items are held out."""
    log = run.data.interactions.to_polars()
    users = log.sort("timestamp", maintain_order=True).group_by("user_id", maintain_order=True)
    return {user: items[:-2] for user, items in users.agg("item_id").iter_rows()}


def test_mrr_is_the_mean_of_reciprocal_ranks(run: Run) -> None:
    ranx = pytest.importorskip("ranx", reason="ranx is not installed")
    report = run.report("test")
    found = next(
        scores
        for scores in collect_scores(run.reports, "trie")
        if scores.key == ReportKey("trie", "test", False)
    )
    ranks = report.ranks.tolist()
    qrels = {str(user): {"target": 1} for user in range(len(ranks))}
    lists = {
        str(user): {"target" if place == rank else f"other {place}": 1 / place for place in PLACES}
        for user, rank in enumerate(ranks)
    }
    for k in report.ks:
        theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(lists), f"mrr@{k}")
        score = found.scores[f"mrr_at_{k}"]
        assert score.mean == pytest.approx(theirs)
        assert score.low <= score.mean <= score.high
    assert {name: found.scores[name].mean for name in report.means} == report.means


PLACES = range(1, 21)


def test_lists_by_the_definitions(run: Run, interactions_of_users: dict[str, list[str]]) -> None:
    frame = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    own, popular, people = measure_lists(run, seed=0).rows
    items, num_users = run.data.items.item_ids.to_list(), len(interactions_of_users)
    counts = Counter(itertools.chain.from_iterable(interactions_of_users.values()))
    takers = Counter(itertools.chain.from_iterable(map(set, interactions_of_users.values())))
    lists = frame.group_by("user_id").agg("item_id")["item_id"].to_list()

    def mean(value: Callable[[str], float]) -> float:
        return float(np.mean([np.mean([value(item) for item in items]) for items in lists]))

    assert own.interactions == pytest.approx(mean(lambda item: counts[item]))
    assert own.novelty == pytest.approx(
        mean(lambda item: -math.log2(max(takers[item], 1) / num_users))
    )
    times = Counter(itertools.chain.from_iterable(lists))
    pairs = [abs(times[a] - times[b]) for a in items for b in items]
    assert own.gini == pytest.approx(np.mean(pairs) / 2 / np.mean([times[item] for item in items]))
    assert people.gini is None
    # Popularity lists better-known items than the model, and fewer different ones.
    assert popular.interactions > own.interactions
    assert popular.novelty < own.novelty
    assert popular.gini is not None
    assert own.gini is not None
    assert popular.gini > own.gini


def test_targets_by_category_are_those_of_its_items(run: Run) -> None:
    tags, own = read_tags(run.data.items), name_model("trie", "trie")
    assert tags.field == "genres"
    found = break_down(run.reports, run.data.split, "trie", categories=tags.pairs)[-1]
    assert found.key == "category"
    table, genres = run.report("test").to_polars(), run.data.items.frame["genres"]
    sizes = []
    for group in found.groups:
        of_genre = [group.label in genres[item] for item in table["item_idx"]]
        values = table.filter(pl.Series(of_genre))["recall_at_10"]
        assert group.num_targets == len(values)
        assert group.scores[own].mean == pytest.approx(values.mean())
        sizes.append(group.num_targets)
    assert sizes == sorted(sizes, reverse=True)
    contents = gather_contents(run).evaluation
    assert contents is not None
    assert contents.breakdowns[-1] == found


def test_new_users_are_those_without_anything_in_training() -> None:
    """Users 0 and 2 have a training part.

    User 2 has two targets. The sequence of the second target has no training part.
    """
    split = SequenceSplit(
        items=np.array([0, 1, 2, 3, 0, 1, 2, 3, 1], dtype=np.int32),
        offsets=np.array([0, 2, 4, 7, 9]),
        train_ends=np.array([1, 2, 5, 7]),
        valid_targets=np.full(4, -1),
        test_targets=np.array([1, 3, 6, 8]),
        num_items=4,
        owners=np.array([0, 1, 2, 2]),
    )
    targets = split.targets("test", np.arange(4))
    frame = {"user_idx": split.owners, "sequence": np.arange(4), "item_idx": targets}
    report = EvaluationReport(pl.DataFrame(frame), {}, {}, {})
    found = group_targets(report, split)["new"]
    assert {label: members.tolist() for label, members in found.items()} == {
        "new": [False, True, False, False],
        "in training": [True, False, True, True],
    }
