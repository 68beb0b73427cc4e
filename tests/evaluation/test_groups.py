"""Test groups of test targets by what is known about their users."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.errors import ConfigError
from recgrit.evaluation.groups import (
    MAX_SEGMENTS,
    OTHERS,
    UNKNOWN,
    group_by_segments,
    require_segments,
)
from recgrit.evaluation.report import EvaluationReport


def report_of(users: list[int]) -> EvaluationReport:
    return EvaluationReport(pl.DataFrame({"user_idx": users}), {}, {}, {})


def segment(values: pl.Series) -> dict[str, np.ndarray]:
    users = pl.DataFrame({"user_id": [str(row) for row in range(len(values))], "it": values})
    return group_by_segments(report_of(list(range(len(values)))), users, ["it"])["segment: it"]


@given(st.lists(st.none() | st.integers(-50, 50), min_size=1))
def test_every_target_is_in_one_group_of_numbers(values: list[int | None]) -> None:
    groups = segment(pl.Series(values, dtype=pl.Int64))
    assert np.stack(list(groups.values())).sum(axis=0).tolist() == [1] * len(values)
    unknown = groups.get(UNKNOWN, np.zeros(len(values), dtype=bool))
    assert unknown.tolist() == [value is None for value in values]


@given(st.lists(st.none() | st.sampled_from([*"abcdefghijklmnopqrst", UNKNOWN]), min_size=1))
def test_every_target_is_in_one_group_of_words(values: list[str | None]) -> None:
    groups = segment(pl.Series(values, dtype=pl.String))
    assert np.stack(list(groups.values())).sum(axis=0).tolist() == [1] * len(values)
    assert len(groups) <= MAX_SEGMENTS + 2


def test_rare_values_share_a_group_and_quarters_hold_as_many() -> None:
    words = [f"w{place:02}" for place in range(14) for _ in range(20 - place)]
    groups = segment(pl.Series(words))
    assert int(groups["w00"].sum()) == 20
    assert int(groups[OTHERS].sum()) == 8 + 7
    sizes = [int(members.sum()) for members in segment(pl.Series(np.arange(100.0))).values()]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 2


def test_a_user_with_two_targets_is_twice_in_the_group() -> None:
    users = pl.DataFrame({"user_id": ["a", "b"], "plan": ["paid", "free"]})
    found = group_by_segments(report_of([0, 1, 0]), users, ["plan"])["segment: plan"]
    assert found["paid"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (None, "data.table.users_path"),
        (pl.DataFrame({"user_id": ["a"], "age": [3]}), "it has age"),
        (pl.DataFrame({"user_id": ["a"], "plan": [["x"]]}), "holds lists"),
    ],
)
def test_segments_that_the_users_lack_are_refused(users: pl.DataFrame | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_segments(users, ["plan"])
