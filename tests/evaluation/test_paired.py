from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recgrit.errors import DataError
from recgrit.evaluation.metrics import recall_at_k
from recgrit.evaluation.paired import compare_ranks, mean_over_seeds, paired_difference


def test_one_seed_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random((1, 50)), draw.random((1, 50))
    oracle = stats.ttest_rel(first[0], second[0]).confidence_interval(0.95)
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.baseline == pytest.approx(second.mean())


@pytest.mark.parametrize(("seed_effect", "user_effect"), [(0.1, 0.0), (0.0, 1.0), (0.05, 0.5)])
def test_intervals_cover_the_truth(seed_effect: float, user_effect: float) -> None:
    """About 95% of the intervals contain the true difference if seeds and users are drawn anew."""
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        difference = (
            0.02
            + seed_effect * draw.normal(size=(3, 1))
            + user_effect * draw.normal(size=(1, 200))
            + draw.normal(size=(3, 200))
        )
        found = paired_difference(difference, np.zeros_like(difference))
        covered += found.low <= 0.02 <= found.high
    assert 0.92 <= covered / 400 <= 0.995


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    draw = np.random.default_rng(2)
    noise = draw.normal(size=(300, 1, 400))
    effect = paired_difference(noise[0], np.zeros((1, 400))).detectable
    found = [paired_difference(n + effect, np.zeros((1, 400))).is_significant for n in noise]
    assert 0.7 <= np.mean(found) <= 0.9


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(DataError, match="same seeds"):
        paired_difference(np.zeros((2, 5)), np.zeros((3, 5)))
    with pytest.raises(DataError, match="at least two users, got 1"):
        paired_difference(np.zeros((1, 3)), np.zeros((1, 3)), owners=np.zeros(3, np.int64))


def draw_targets(draw: np.random.Generator, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the owner and the value of each target. A user has one to eight targets."""
    num_targets = draw.integers(1, 9, num_users)
    owners = np.repeat(np.arange(num_users), num_targets)
    # Users with many targets have higher values, so the number of targets affects the mean.
    by_user = draw.normal(size=num_users) + 0.1 * num_targets
    return owners, by_user[owners] + draw.normal(size=len(owners))


def test_one_target_a_user_changes_no_digit() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.random((3, 50)), draw.random((3, 50))
    assert paired_difference(first, second, owners=np.arange(50)) == paired_difference(
        first, second
    )


def test_users_are_drawn_with_all_their_targets() -> None:
    """The interval equals that of a bootstrap which draws users with all their targets."""
    draw = np.random.default_rng(4)
    owners, values = draw_targets(draw, 150)
    targets_of = [np.flatnonzero(owners == user) for user in range(150)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([targets_of[user] for user in draw.integers(0, 150, 150)])
        means.append(values[drawn].mean())
    found = mean_over_seeds(values[None], owners=owners)
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, 149)
    assert found.mean == pytest.approx(values.mean())
    assert error == pytest.approx(np.std(means), rel=0.05)
    assert found.num_users == 150
    # An interval that treats every target as a user of its own is too narrow.
    alone = mean_over_seeds(values[None])
    assert alone.high - alone.low < 0.7 * (found.high - found.low)


def test_intervals_cover_the_truth_with_several_targets_and_seeds() -> None:
    draw = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        owners, _ = draw_targets(draw, 100)
        difference = (
            0.02
            + 0.1 * draw.normal(size=(3, 1))
            + draw.normal(size=(1, 100))[:, owners]
            + 0.3 * draw.normal(size=(3, 100))[:, owners]
            + draw.normal(size=(3, len(owners)))
        )
        found = mean_over_seeds(difference, owners=owners)
        covered += found.low <= 0.02 <= found.high
    assert 0.92 <= covered / 400 <= 0.995


def test_common_seeds_are_paired_and_others_only_where_there_are_none() -> None:
    draw = np.random.default_rng(6)
    ranks = {seed: draw.integers(0, 20, 60).astype(np.int32) for seed in range(4)}

    def mean(seed: int) -> float:
        return float(recall_at_k(ranks[seed], 10).mean())

    first, second = {0: ranks[0], 1: ranks[1]}, {1: ranks[2], 5: ranks[3]}
    found = compare_ranks(first, second, recall_at_k, 10)
    assert (found.num_seeds, found.mean) == (1, pytest.approx(mean(1) - mean(2)))
    apart = compare_ranks({0: ranks[0]}, {5: ranks[3]}, recall_at_k, 10)
    assert (apart.num_seeds, apart.mean) == (1, pytest.approx(mean(0) - mean(3)))
