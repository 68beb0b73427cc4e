from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recgrit.errors import DataError
from recgrit.evaluation.paired import paired_difference


def test_one_seed_is_the_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random((1, 50)), draw.random((1, 50))
    oracle = stats.ttest_rel(first[0], second[0]).confidence_interval(0.95)
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.baseline == pytest.approx(second.mean())


@pytest.mark.parametrize(("seed_effect", "user_effect"), [(0.1, 0.0), (0.0, 1.0), (0.05, 0.5)])
def test_intervals_cover_the_truth(seed_effect: float, user_effect: float) -> None:
    """Seeds and users both drawn anew: about 95% of the intervals hold the true difference."""
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
