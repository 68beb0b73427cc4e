from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.sources.coding import MAX_NUMBER, IdCoder

numbers = st.integers(0, 30) | st.sampled_from([2**20, MAX_NUMBER - 1, MAX_NUMBER, 2**40, -1])
blocks = st.lists(
    st.lists(numbers, max_size=30).map(lambda ids: pl.Series(ids, dtype=pl.Int64))
    | st.lists(numbers.map(str) | st.text(max_size=3), max_size=30).map(
        lambda ids: pl.Series(ids, dtype=pl.String)
    ),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(blocks)
def test_codes_follow_first_appearance_in_all_blocks(series: list[pl.Series]) -> None:
    coder = IdCoder()
    codes = [coder.encode(ids) for ids in series]
    texts = [text for ids in series for text in ids.cast(pl.String)]
    expected = list(dict.fromkeys(texts))
    assert coder.ids().to_list() == expected
    assert coder.num_ids == len(expected)
    assert np.concatenate([[], *codes]).tolist() == [expected.index(text) for text in texts]


def test_long_runs_and_more_rows_than_are_looked_up_at_once() -> None:
    ids = np.repeat(np.random.default_rng(0).permutation(5000), 120)
    coder = IdCoder()
    codes = coder.encode(pl.Series(ids))
    assert np.array_equal(codes, np.repeat(np.arange(5000), 120))
    shuffled = np.random.default_rng(1).permutation(ids)
    again = IdCoder()
    assert again.ids().is_empty()
    codes = again.encode(pl.Series(shuffled))
    assert np.array_equal(again.ids().cast(pl.Int64).to_numpy()[codes], shuffled)
