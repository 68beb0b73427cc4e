"""Ids in lists that are passed as arguments are not altered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.data.ids import list_ids, read_ids
from recgrit.data.items import ItemIndex
from recgrit.errors import DataError

NULLS = [None, float("nan"), pd.NA, pd.NaT]


@given(st.lists(st.one_of(st.text(), st.sampled_from(NULLS))), st.sampled_from([list, tuple, iter]))
def test_texts_stay_unchanged_and_nulls_are_counted(values: list[Any], kind: Any) -> None:
    texts = [value for value in values if isinstance(value, str)]
    read = read_ids(kind(values), "it")
    assert read.ids == texts
    assert read.num_nulls == len(values) - len(texts)


@given(st.text())
def test_a_bare_string_is_one_id(text: str) -> None:
    assert read_ids(text, "it").ids == [text]


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["242", None, "51"]),
        pl.Series(["242", None, "51"]),
        np.array(["242", None, "51"], dtype=object),
    ],
)
def test_tables_and_arrays_are_lists_too(values: Any) -> None:
    assert read_ids(values, "it") == (["242", "51"], 1)
    assert read_ids(np.array(["242", "51"]), "it").ids == ["242", "51"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "got None"),
        (242, r"got 242 \(int\)"),
        ({"242": 1}, "got a dict"),
        (b"242", r"entry 0 of it is 50 \(int\)"),
        (["51", 242], r"entry 1 of it is 242 \(int\)"),
        ([2.5], r"2.5 \(float\)"),
        ([["242"]], "entry 0 of it is a list"),
        ([np.array(["242"])], "a ndarray"),
        (pd.DataFrame({"a": ["242"]}), "got a DataFrame"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ids(values, "it")


def test_nulls_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert list_ids(["1", None, None], "blocked_items") == ["1"]
    assert "2 nulls in blocked_items" in caplog.text


def test_an_index_reads_lists_by_the_same_rule() -> None:
    index = ItemIndex(pl.Series(["2", "24", "242"]))
    assert index.find("242").tolist() == [2]
    assert index.find(["24", None, "x"]).tolist() == [1]
    with pytest.raises(DataError, match="Ids are text"):
        index.find([24])
