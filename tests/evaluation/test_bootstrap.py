import tracemalloc

import numpy as np
import pytest

from recgrit.evaluation.bootstrap import bootstrap_intervals
from recgrit.evaluation.metrics import ndcg_at_k, recall_at_k


def test_intervals_match_a_resampling_of_users_one_by_one() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 12, size=400).astype(np.int32)
    values = {"recall_at_5": recall_at_k(ranks, 5), "ndcg_at_10": ndcg_at_k(ranks, 10)}
    intervals = bootstrap_intervals(ranks, values, num_bootstrap=4000, seed=1)
    drawn = rng.integers(0, len(ranks), size=(4000, len(ranks)))
    for name, value in values.items():
        expected = np.quantile(value[drawn].mean(axis=1), (0.025, 0.975))
        assert intervals[name] == pytest.approx(expected, abs=0.006)


def test_width_follows_the_normal_approximation() -> None:
    ranks = (np.arange(20_000) % 10 == 0).astype(np.int32)
    low, high = bootstrap_intervals(ranks, {"r": recall_at_k(ranks, 5)}, 2000, seed=0)["r"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.1 * 0.9 / 20_000), rel=0.06)
    assert low < 0.1 < high


def test_a_seed_repeats_itself() -> None:
    ranks = np.arange(50, dtype=np.int32) % 7
    values = {"r": recall_at_k(ranks, 3)}
    first, again = (bootstrap_intervals(ranks, values, 200, seed=3) for _ in range(2))
    assert first == again
    assert bootstrap_intervals(ranks, values, 200, seed=4) != first


def test_equal_ranks_leave_no_uncertainty() -> None:
    ranks = np.ones(30, dtype=np.int32)
    assert bootstrap_intervals(ranks, {"r": recall_at_k(ranks, 5)}, 100, 0)["r"] == (1.0, 1.0)


def test_a_million_users_need_little_memory() -> None:
    ranks = np.random.default_rng(0).integers(0, 21, size=1_000_000).astype(np.int32)
    values = {"r": recall_at_k(ranks, 10)}
    tracemalloc.start()
    bootstrap_intervals(ranks, values, 1000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One resample of a million indices in int64 would need 8 MB, and a thousand would need 8 GB.
    assert peak < 64e6


def test_users_are_drawn_with_all_their_targets() -> None:
    rng = np.random.default_rng(0)
    # A user's targets are all hits or all misses, so 400 users give 400 independent values.
    hit = rng.random(400) < 0.3
    ranks, owners = np.repeat(hit, 25).astype(np.int32), np.repeat(np.arange(400), 25)
    metrics = {"recall": ranks.astype(np.float64)}
    low, high = bootstrap_intervals(ranks, metrics, 2000, 0, owners=owners)["recall"]
    one_each = bootstrap_intervals(
        hit.astype(np.int32), {"recall": hit.astype(np.float64)}, 2000, 0
    )["recall"]
    assert high - low == pytest.approx(one_each[1] - one_each[0], rel=0.1)
    assert low < hit.mean() < high
    naive = bootstrap_intervals(ranks, metrics, 2000, 0)["recall"]
    assert naive[1] - naive[0] < (high - low) / 4
