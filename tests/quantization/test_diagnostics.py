import json

import numpy as np
import pytest

from recgrit.quantization.diagnostics import diagnose_codes


def test_every_number_equals_that_of_a_case_computed_by_hand():
    # Three items have the ID (0, 0), one has (0, 1), two have (1, 0) and two have (1, 3).
    codes = np.array([[0, 0], [0, 1], [1, 0], [0, 0], [1, 3], [1, 0], [0, 0], [1, 3]])
    found = diagnose_codes(codes, (3, 4), (2.0, 0.5))
    first, second = found.levels
    assert (first.level, first.codebook_size, first.dead_codes) == (0, 3, 1)
    assert first.codebook_usage == pytest.approx(2 / 3)
    assert first.perplexity == pytest.approx(2)
    assert (second.codebook_usage, second.dead_codes) == (0.75, 1)
    shares = np.array([5, 1, 2]) / 8
    assert second.perplexity == pytest.approx(np.prod(shares**-shares))
    assert (first.residual_norm, second.residual_norm) == (2.0, 0.5)
    assert found.unique_share == 4 / 8
    assert found.collision_rate == 7 / 8
    assert found.largest_bucket == 3
    buckets = np.array([3, 1, 2, 2])
    differences = np.abs(buckets[:, None] - buckets[None]).mean()
    assert found.gini == pytest.approx(differences / (2 * buckets.mean()))
    entropy = -np.sum(buckets / 8 * np.log(buckets / 8))
    assert found.entropy_ratio == pytest.approx(entropy / np.log(8))


def test_ids_that_are_all_different_are_perfect():
    codes = np.stack(np.meshgrid(range(4), range(4)), axis=-1).reshape(-1, 2)
    found = diagnose_codes(codes, (4, 4))
    assert (found.unique_share, found.collision_rate, found.largest_bucket) == (1, 0, 1)
    assert found.gini == pytest.approx(0)
    assert found.entropy_ratio == pytest.approx(1)
    assert [level.perplexity for level in found.levels] == pytest.approx([4, 4])
    assert all(np.isnan(level.residual_norm) for level in found.levels)
    assert found.warnings() == []


def test_one_item():
    found = diagnose_codes(np.array([[1, 0]]), (2, 2))
    assert (found.entropy_ratio, found.gini, found.collision_rate) == (1, 0, 0)


def test_a_collapsed_first_level_is_reported():
    codes = np.array([[0, i] for i in range(8)])
    (warning,) = diagnose_codes(codes, (8, 8)).warnings()
    assert "Level 0 uses its 8 codes unevenly (perplexity 1)" in warning
    assert "tokenizer.codebook_size" in warning


def test_a_collapsed_later_level_is_reported():
    codes = np.array([[i % 16, i % 16, 0] for i in range(64)])
    (warning,) = diagnose_codes(codes, (16, 16, 16)).warnings()
    assert "Level 2 collapses (perplexity 1 of 16)" in warning
    assert "tokenizer.normalized_from" in warning


def test_later_levels_are_judged_by_the_share_of_their_codebook():
    # Two of two codes in use are as even as sixteen of sixteen.
    codes = np.array([[i % 16, i % 2] for i in range(64)])
    assert diagnose_codes(codes, (16, 2)).warnings() == []


def test_as_json():
    found = diagnose_codes(np.array([[0, 1], [1, 1]]), (2, 2), (1.0, 0.5))
    levels = json.loads(json.dumps(found.to_dict()))["levels"]
    assert [level["dead_codes"] for level in levels] == [0, 1]
    assert levels[1]["residual_norm"] == 0.5
