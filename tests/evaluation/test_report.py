import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from recgrit.config import load_config
from recgrit.data.config import DataConfig
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ArtifactError, ConfigError, DataError
from recgrit.evaluation.config import EvaluationConfig
from recgrit.evaluation.repeats import Repeats
from recgrit.evaluation.report import EvaluationReport, evaluate_recommendations


@pytest.fixture
def split() -> SequenceSplit:
    """Build a split of four users. User 2 has two items and no targets.

    Users 0, 1 and 3 have the validation targets 1, 5 and 8, and the test targets 2, 0 and 9.
    """
    return SequenceSplit(
        items=np.array([0, 1, 2, 3, 4, 5, 0, 6, 7, 7, 8, 9], dtype=np.int32),
        offsets=np.array([0, 3, 7, 9, 12]),
        train_ends=np.array([1, 5, 9, 10]),
        valid_targets=np.array([1, 5, -1, 10]),
        test_targets=np.array([2, 6, -1, 11]),
        num_items=10,
    )


def lists(users: list[int], items: list[list[int]]) -> Recommendations:
    array = np.array(items, dtype=np.int32)
    scores = -np.broadcast_to(np.arange(array.shape[1], dtype=np.float32), array.shape)
    return Recommendations(users=np.array(users), items=array, scores=scores)


def evaluate(recommendations: Recommendations, split: SequenceSplit, **changes) -> EvaluationReport:  # type: ignore[no-untyped-def]
    arguments = {
        "masked": True,
        "search": "all items scored",
        "ties": "file order",
        "seed": 0,
        "ks": (1, 3),
    } | changes
    return evaluate_recommendations(recommendations, split, "test", **arguments)


def test_ranks_means_and_missing_lists(split: SequenceSplit) -> None:
    # User 3 is listed before user 0, user 1 has no list, and user 2 has a list but no target.
    report = evaluate(lists([3, 0, 2], [[1, 9, 2], [2, 1, 0], [5, 6, 7]]), split)
    assert report.per_target.to_dict(as_series=False) == {
        "user_idx": [0, 1, 3],
        "sequence": [0, 1, 3],
        "item_idx": [2, 0, 9],
        "rank": [1, 0, 2],
        "popularity_rank": [11, 2, 11],
    }
    assert report.metrics() == pytest.approx(
        {
            "recall_at_1": 1 / 3,
            "recall_at_3": 2 / 3,
            "ndcg_at_1": 1 / 3,
            "ndcg_at_3": (1 + 1 / math.log2(3)) / 3,
            "mrr_at_1": 1 / 3,
            "mrr_at_3": 1.5 / 3,
            # Both hits are missing from training, so their popularity rank is 11. Their ranks are 1
            # and 2, so they are 10 and 9 of 10 places ahead of it.
            "serendipity_at_1": 1.0 / 3,
            "serendipity_at_3": (1.0 + 0.9) / 3 / 3,
        }
    )
    for name, (low, high) in report.intervals().items():
        assert 0 <= low <= report.metrics()[name] <= high <= 1


def test_the_protocol_says_how(split: SequenceSplit) -> None:
    report = evaluate(
        lists([0], [[2, 1, 0]]),
        split,
        ks=[3, 1, 3],
        search="beam of 30",
        ties="shuffled with seed 3",
        masked=False,
    )
    assert report.protocol == {
        "split": "test",
        "masked": False,
        "ks": (1, 3),
        "search": "beam of 30",
        "ties": "shuffled with seed 3",
        "num_items": 10,
        "num_users": 3,
        "num_targets": 3,
        "num_bootstrap": 1000,
        "seed": 0,
    }


def test_a_sample_of_users(split: SequenceSplit) -> None:
    report = evaluate(lists([0, 1], [[2, 1, 3], [1, 2, 3]]), split, sequences=np.array([0]))
    assert report.metrics()["recall_at_1"] == 1.0
    assert report.protocol["num_users"] == 1


def test_each_target_has_its_user_and_its_sequence() -> None:
    """One user has a training sequence and two copies of it, each of which ends with a target."""
    split = SequenceSplit(
        items=np.array([0, 1, 2, 1, 2, 1, 2, 3], dtype=np.int32),
        offsets=np.array([0, 3, 5, 8]),
        train_ends=np.array([1, 3, 5]),
        valid_targets=np.array([-1, -1, -1]),
        test_targets=np.array([-1, 4, 7]),
        num_items=4,
        owners=np.array([0, 0, 0]),
    )
    report = evaluate(lists([2, 1], [[3, 0, 1], [0, 1, 2]]), split)
    assert report.per_target.drop("popularity_rank").rows() == [(0, 1, 2, 3), (0, 2, 3, 1)]
    assert (report.users.tolist(), report.sequences.tolist()) == ([0, 0], [1, 2])
    assert (report.protocol["num_users"], report.protocol["num_targets"]) == (1, 2)


def test_short_lists_count_as_missed(split: SequenceSplit) -> None:
    report = evaluate(lists([0, 1], [[-1, -1, -1], [3, -1, -1]]), split)
    assert set(report.metrics().values()) == {0.0}


def test_values_of_each_target(split: SequenceSplit) -> None:
    report = evaluate(lists([3, 0], [[1, 9, 2], [2, 1, 0]]), split)
    frame = report.to_polars()
    assert frame.columns[5:] == [
        f"{metric}_at_{k}" for metric in ("recall", "ndcg", "mrr", "serendipity") for k in (1, 3)
    ]
    assert frame["ndcg_at_3"].round(4).to_list() == [1.0, 0.0, 0.6309]
    assert report.to_pandas()["rank"].tolist() == [1, 0, 2]


def test_saved_and_loaded(split: SequenceSplit, tmp_path: Path) -> None:
    report = evaluate(lists([3, 0], [[1, 9, 2], [2, 1, 0]]), split)
    report.save(tmp_path)
    loaded = EvaluationReport.load(tmp_path)
    assert_frame_equal(loaded.per_target, report.per_target)
    assert loaded.protocol == report.protocol
    assert loaded.metrics() == report.metrics()
    assert loaded.intervals() == report.intervals()
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(values["metrics"]["recall_at_3"]) == {"mean", "low", "high"}


@pytest.mark.parametrize("name", ["evaluation.json", "per_target.parquet"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_reports_are_refused(
    split: SequenceSplit, tmp_path: Path, name: str, damage: str
) -> None:
    evaluate(lists([0], [[2, 1, 0]]), split).save(tmp_path)
    if damage == "gone":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ArtifactError, match="run the evaluation again"):
        EvaluationReport.load(tmp_path)


def test_lists_that_do_not_fit_are_refused(split: SequenceSplit) -> None:
    with pytest.raises(DataError, match="Lists of 2 items cannot be evaluated at k=3"):
        evaluate(lists([0], [[1, 2]]), split)
    with pytest.raises(DataError, match="more than one list"):
        evaluate(lists([0, 0], [[1, 2, 3], [1, 2, 3]]), split)
    with pytest.raises(DataError, match="item_idx 10, but the split has 10 items"):
        evaluate(lists([0], [[1, 2, 10]]), split)
    with pytest.raises(DataError, match="user_idx 4, but the split has 4 users"):
        evaluate(lists([4], [[1, 2, 3]]), split)
    with pytest.raises(DataError, match=r"1 of 2 users have no test target, the first \[2\]"):
        evaluate(lists([0], [[1, 2, 3]]), split, sequences=np.array([0, 2]))


def test_a_catalogue_smaller_than_k_can_be_evaluated(split: SequenceSplit) -> None:
    items = [[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]
    report = evaluate(lists([0], items), split, ks=(20,), sequences=np.array([0]))
    assert report.metrics()["recall_at_20"] == 1.0


def test_a_split_without_targets_is_refused() -> None:
    empty = SequenceSplit(
        items=np.array([0, 1], dtype=np.int32),
        offsets=np.array([0, 2]),
        train_ends=np.array([2]),
        valid_targets=np.array([-1]),
        test_targets=np.array([-1]),
        num_items=2,
    )
    with pytest.raises(DataError, match="at least three interactions"):
        evaluate(lists([0], [[0, 1, -1]]), empty)


def test_random_lists_reach_chance_only() -> None:
    num_users, num_items = 4000, 200
    rng = np.random.default_rng(0)
    split = SequenceSplit(
        items=rng.integers(0, num_items, size=3 * num_users).astype(np.int32),
        offsets=np.arange(0, 3 * num_users + 1, 3),
        train_ends=np.arange(1, 3 * num_users, 3),
        valid_targets=np.arange(1, 3 * num_users, 3),
        test_targets=np.arange(2, 3 * num_users, 3),
        num_items=num_items,
    )
    items = rng.permuted(np.tile(np.arange(num_items, dtype=np.int32), (num_users, 1)), axis=1)
    scores = np.zeros((num_users, 10), dtype=np.float32)
    noise = Recommendations(users=np.arange(num_users), items=items[:, :10], scores=scores)
    report = evaluate(noise, split, ks=(10,))
    assert report.metrics()["recall_at_10"] == pytest.approx(10 / num_items, abs=0.012)


def test_config_sorts_and_validates() -> None:
    assert EvaluationConfig().ks == (5, 10, 20)
    assert load_config(EvaluationConfig, overrides=["ks=[20, 5, 5]"]).ks == (5, 20)
    with pytest.raises(ConfigError, match="must be positive"):
        load_config(EvaluationConfig, overrides=["ks=[0, 5]"])
    with pytest.raises(ConfigError, match="must be positive"):
        load_config(EvaluationConfig, overrides=["ks=[]"])
    with pytest.raises(ConfigError, match="num_bootstrap"):
        load_config(EvaluationConfig, overrides=["num_bootstrap=0"])


def test_evaluation_does_without_torch() -> None:
    code = "import sys, recgrit.evaluation.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_changes_of_returned_metrics_do_not_change_the_report(split: SequenceSplit) -> None:
    report = evaluate(lists([0], [[2, 1, 0]]), split)
    report.metrics().clear()
    report.intervals().clear()
    assert report.metrics()
    assert report.intervals()


def test_the_report_of_some_targets_is_that_of_their_lists(split: SequenceSplit) -> None:
    found = lists([3, 0, 1], [[1, 9, 2], [2, 1, 0], [5, 6, 7]])
    some = evaluate(found, split).of_targets(np.array([True, False, True]))
    expected = evaluate(found, split, sequences=np.array([0, 3]))
    assert_frame_equal(some.per_target, expected.per_target)
    assert (some.means, some.bounds) == (expected.means, expected.bounds)
    assert some.protocol == expected.protocol


def test_targets_that_repeat_the_history_are_reported(split: SequenceSplit) -> None:
    # Only the test target of user 1 repeats an item of its history.
    items = split.items.copy()
    items[3] = items[6]
    split = dataclasses.replace(split, items=items)
    report = evaluate(lists([3, 0, 1], [[1, 9, 2], [2, 1, 0], [5, 6, 7]]), split)
    repeats = Repeats.of(report, split, DataConfig())
    assert repeats.is_repeat.tolist() == [False, True, False]
    assert repeats.are_many
    new = repeats.of_new_items(report)
    assert new is not None
    assert new.metrics()["recall_at_3"] == 1.0
    for text in ("33.3% of 3 test targets", "data.repeats=keep", "The other 2", "masked"):
        assert text in repeats.explain()
    everything = Repeats(np.ones(3, np.bool_), "keep")
    assert everything.of_new_items(report) is None
    assert "None is new" in everything.explain()
    assert not Repeats(np.arange(100) < 5, "keep").are_many
