"""Test item attributes: the codes learned from columns, and the codes that later items get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recgrit.data.attributes import (
    ATTRIBUTE_FILES,
    BUCKETS,
    FEWEST,
    Attributes,
    require_columns,
)
from recgrit.errors import ArtifactError, ConfigError


def fit(trained: np.ndarray | None = None, **columns: pl.Series) -> Attributes:
    frame = pl.DataFrame(columns)
    found = Attributes.fit(
        frame, tuple(columns), np.ones(len(frame), bool) if trained is None else trained
    )
    assert found is not None
    return found


def test_rare_and_missing_words_are_unknown() -> None:
    words = ["tea"] * FEWEST + ["bike"] * (FEWEST - 1) + [None]
    found = fit(category=pl.Series(words))
    assert found.columns[0].values == ["tea"]
    (unknown,) = found.unknown_rows
    assert found.codes[:, 0].tolist() == [unknown + 1] * FEWEST + [unknown] * FEWEST


def test_values_missing_from_training_are_unknown_even_if_frequent() -> None:
    words = pl.Series(["tea"] * 9 + ["bike"] * 9)
    found = fit(np.arange(18) < 9, category=words)
    assert found.columns[0].values == ["tea"]
    numbers = pl.Series([1.0, 2.0] * 9 + [1e9] * 18)
    assert max(fit(np.arange(36) < 18, price=numbers).columns[0].edges) <= 2


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=80))
def test_buckets_of_numbers_keep_their_order(values: list[float | None]) -> None:
    found = fit(price=pl.Series(values, dtype=pl.Float64))
    codes = found.codes[:, 0] - found.unknown_rows[0]
    assert codes.min() >= 0
    assert codes.max() <= BUCKETS
    assert [code == 0 for code in codes] == [value is None for value in values]
    given_ones = sorted(
        (v, c) for v, c in zip(values, codes.tolist(), strict=True) if v is not None
    )
    in_order = [code for _, code in given_ones]
    assert in_order == sorted(in_order)


def test_a_list_weighs_as_much_as_one_word() -> None:
    genres = pl.Series([["a", "b"], ["a"], [], None] * FEWEST + [["a", "rare", "a"]])
    found = fit(genres=genres)
    assert found.weights.sum(axis=1) == pytest.approx(1)
    assert found.weights[0].tolist() == [0.5, 0.5]
    assert found.codes[-1].tolist() == found.codes[1].tolist()
    assert found.codes[2, 0] == found.codes[3, 0] == found.unknown_rows[0]


def test_later_items_are_read_by_the_same_columns() -> None:
    frame = pl.DataFrame(
        {"genres": [["a"], ["b"], ["a", "b"]] * FEWEST, "price": [1.0, 2.0, 3.0] * 5}
    )
    found = Attributes.fit(frame, ("genres", "price"), np.ones(len(frame), bool))
    assert found is not None
    later = pl.DataFrame({"genres": ["b, a", "new", None], "price": ["2", "dear", None]})
    joined = found.joined_with(later)
    assert joined.num_rows == found.num_rows
    assert np.array_equal(joined.codes[: len(frame), : found.codes.shape[1]], found.codes)
    assert set(joined.codes[-3][joined.codes[-3] > 0]) == {*found.codes[2, :2], found.codes[1, 2]}
    assert joined.codes[-2][joined.codes[-2] > 0].tolist() == found.unknown_rows
    # An item from a file without the attribute columns gets unknown values.
    bare = found.joined_with(pl.DataFrame({"item_id": ["x"]}))
    assert bare.codes[-1][bare.codes[-1] > 0].tolist() == found.unknown_rows


def test_saved_and_loaded_they_are_the_same(tmp_path: Path) -> None:
    found = fit(category=pl.Series(["tea", None] * 9), price=pl.Series(range(18)))
    found.save(tmp_path, "item_attributes")
    again = Attributes.load(tmp_path, "item_attributes", 18)
    assert again.columns == found.columns
    assert np.array_equal(again.codes, found.codes)
    assert np.array_equal(again.weights, found.weights)
    with pytest.raises(ArtifactError, match="of 18 rows, not 17"):
        Attributes.load(tmp_path, "item_attributes", 17)
    (tmp_path / ATTRIBUTE_FILES[0]).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="No readable"):
        Attributes.load(tmp_path, "item_attributes", 18)


def test_columns_that_items_lack_are_refused() -> None:
    with pytest.raises(ConfigError, match="it has brand"):
        require_columns(pl.DataFrame({"item_id": ["a"], "title": ["A"], "brand": ["x"]}), ["price"])
