"""New items get free IDs, and old items keep theirs, whatever collides."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.errors import DataError
from recgrit.semantic_ids.addition import add_items
from recgrit.semantic_ids.table import SemanticIdTable

K = 4
BOOK = np.random.default_rng(0).normal(size=(K, 3)).astype(np.float32)


def make_table(codes, sizes, level=None):
    names = pl.Series([f"old {i}" for i in range(len(codes))])
    return SemanticIdTable(np.array(codes, np.int32), sizes, level, names, names)


def add(table, codes, residuals, names=None):
    """Add items. The error of an ID depends on its last code and on the distance of its other
    codes.
    """
    names = pl.Series(names or [f"new {i}" for i in range(len(codes))], dtype=pl.String)

    def errors_of(row, ids):
        gaps = np.square(BOOK[ids[:, -1]] - residuals[row]).sum(axis=1)
        return gaps + 10.0 * np.abs(ids[:, :-1] - codes[row, :-1]).sum(axis=1)

    return add_items(
        table,
        codes,
        names,
        names,
        residuals_of=lambda rows: residuals[rows],
        last_codes=BOOK,
        errors_of=errors_of,
    )


@st.composite
def additions(draw, *, disambiguation):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_levels = draw(st.integers(2, 3))
    capacity = K**num_levels
    num_old = draw(st.integers(1, capacity // 2))
    flat = rng.choice(capacity, num_old, replace=False)
    old = np.stack(np.unravel_index(flat, (K,) * num_levels), axis=1)
    # Few prefixes make them fill up. The new items always fit into the last two levels.
    num_new = draw(st.integers(0, 8 if disambiguation else K * K - min(num_old, K * K)))
    new = np.zeros((num_new, num_levels), dtype=np.int64)
    new[:, -2:] = rng.integers(0, 2, (num_new, 2))
    if disambiguation:
        new = new[:, :-1]
    return old, new, rng.normal(size=(num_new, 3)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(additions(disambiguation=False))
def test_codes_are_free_and_old_ones_stay(addition):
    old, new, residuals = addition
    table = make_table(old, (K,) * old.shape[1])
    added = add(table, new, residuals)
    codes = added.table.codes
    assert np.array_equal(codes[: len(old)], old)
    assert len(np.unique(codes, axis=0)) == len(old) + len(new)
    assert np.array_equal(codes[len(old) :, :-2], new[:, :-2]), "two codes at most differ"
    assert added.num_moved == np.sum(np.any(codes[len(old) :] != new, axis=1))
    assert added.table.item_ids.to_list()[: len(old)] == table.item_ids.to_list()
    # An item gets its ID if it is free and no other new item has it.
    taken = set(map(tuple, old.tolist()))
    wanted = [tuple(row) for row in new.tolist()]
    full = {p for p in {w[:-1] for w in wanted} if sum(t[:-1] == p for t in taken) == K}
    crowded = {p for p in {w[:-1] for w in wanted} if sum(w[:-1] == p for w in wanted) > 1}
    for row, code in zip(wanted, codes[len(old) :].tolist(), strict=True):
        if row not in taken and wanted.count(row) == 1 and row[:-1] not in full | crowded:
            assert tuple(code) == row


@settings(max_examples=100, deadline=None)
@given(additions(disambiguation=True))
def test_disambiguation_numbers_continue_after_the_old_ones(addition):
    old, new, residuals = addition
    level = old.shape[1] - 1
    table = make_table(old, (K,) * old.shape[1], level)
    added = add(table, new, residuals)
    codes = added.table.codes
    assert np.array_equal(codes[: len(old)], old)
    assert np.array_equal(codes[len(old) :, :-1], new)
    assert added.table.codebook_sizes[:-1] == table.codebook_sizes[:-1]
    for prefix in {tuple(row) for row in new.tolist()}:
        before = [row[-1] for row in old.tolist() if tuple(row[:-1]) == prefix]
        given = sorted(r[-1] for r in codes[len(old) :].tolist() if tuple(r[:-1]) == prefix)
        start = max(before) + 1 if before else 0
        assert given == list(range(start, start + len(given))), "no number is given twice"


@pytest.mark.parametrize("level", [None, 2])
def test_the_order_of_rows_does_not_matter(level):
    rng = np.random.default_rng(4)
    old = np.unique(rng.integers(0, 3, (12, 3)), axis=0)
    new = rng.integers(0, 2, (9, 3))[:, : 3 if level is None else 2]
    # Each residual occurs three times, so there are exact ties.
    residuals = np.repeat(rng.normal(size=(3, 3)).astype(np.float32), 3, axis=0)
    names = [f"n{i}" for i in range(9)]
    order = rng.permutation(9)
    table = make_table(old, (K, K, K), level)
    plain = add(table, new, residuals, names).table
    mixed = add(table, new[order], residuals[order], [names[i] for i in order]).table
    assert {n: plain.codes_of(n) for n in names} == {n: mixed.codes_of(n) for n in names}


def test_the_nearest_free_code_is_assigned():
    old = [[0, 0], [0, 1]]
    residual = BOOK[0] * 0.6 + BOOK[3] * 0.4
    added = add(make_table(old, (K, K)), np.array([[0, 0]]), residual[None])
    free = [2, 3]
    nearest = free[int(np.argmin(np.square(BOOK[free] - residual).sum(axis=1)))]
    assert added.table.codes[-1].tolist() == [0, nearest]


def test_an_item_of_a_full_prefix_gets_a_neighbouring_prefix():
    old = [[1, code] for code in range(K)]
    added = add(make_table(old, (K, K)), np.array([[1, 2]]), BOOK[2][None])
    assert added.table.codes[-1].tolist() in ([0, 2], [2, 2]), "the same last code, one step away"


def test_an_item_without_a_free_id_is_refused():
    old = [[a, b] for a in range(K) for b in range(K)]
    with pytest.raises(DataError, match=r"No semantic ID is left near that of item 'new 0'.*Train"):
        add(make_table(old, (K, K)), np.array([[1, 2]]), BOOK[2][None])
