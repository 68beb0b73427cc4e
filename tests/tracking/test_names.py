import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.errors import TrackingError
from recgrit.tracking.names import (
    MAX_NAME_LENGTH,
    MAX_PARAM_LENGTH,
    clean_name,
    flatten_params,
    name_metrics,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test/recall_at_10", "test/recall_at_10"),
        ("Recall@10", "Recall_at_10"),
        ("loss (train)", "loss _train_"),
        ("/a//b/", "a/b"),
        ("a/../../b", "b"),
        ("level 1.usage", "level 1.usage"),
    ],
)
def test_clean_names(name: str, expected: str) -> None:
    assert clean_name(name) == expected


@given(st.text(max_size=400))
def test_any_name_is_cleaned_or_refused(name: str) -> None:
    try:
        clean = clean_name(name)
    except TrackingError:
        return
    assert 0 < len(clean) <= MAX_NAME_LENGTH
    assert re.fullmatch(r"[/\w.\- ]*", clean)
    assert clean_name(clean) == clean


def test_long_names_stay_apart() -> None:
    first, second = (clean_name("x" * 300 + end) for end in "ab")
    assert first != second


@pytest.mark.parametrize("name", ["", "/", "..", "."])
def test_empty_names_are_refused(name: str) -> None:
    with pytest.raises(TrackingError, match="Cannot log under the name"):
        clean_name(name)


def test_names_that_would_become_one_are_refused() -> None:
    with pytest.raises(TrackingError, match=r"'r@5' and 'r_at_5' would both be logged"):
        name_metrics({"r@5": 1.0, "r_at_5": 2.0})


def test_metric_values_are_plain_floats() -> None:
    values = name_metrics({"loss": np.float32(0.5), "epoch": 3})
    assert values == {"loss": 0.5, "epoch": 3.0}
    assert {type(value) for value in values.values()} == {float}


def test_params_are_flat_text() -> None:
    nested = {"data": {"source": {"path": None}}, "ks": [5, 10], "empty": {}, "on": True}
    assert flatten_params(nested) == {
        "data.source.path": "None",
        "ks": "[5, 10]",
        "empty": "{}",
        "on": "True",
    }


def test_long_params_say_that_they_are_cut() -> None:
    value = flatten_params({"note": "x" * 10_000})["note"]
    assert len(value) == MAX_PARAM_LENGTH
    assert value.endswith("x...")
