import logging
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.semantic_ids import collisions
from recgrit.semantic_ids.collisions import (
    balance_last_level,
    make_unique,
    number_within_bucket,
    resolve_greedy,
)

NUM_CODES = 6


@st.composite
def catalogues(draw, overfull=False):
    """Draw codes with collisions, distinct residuals, and the codebook of the last level."""
    num_levels = draw(st.integers(1, 3))
    num_items = draw(st.integers(NUM_CODES + 1 if overfull else 1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(0, 3, (num_items, num_levels))
    codes[:, -1] = rng.integers(0, draw(st.integers(1, NUM_CODES)), num_items)
    if overfull:
        codes[: NUM_CODES + 1, :-1] = 1
    else:  # Keep at most as many items below one prefix as the last level has codes.
        _, prefix = np.unique(codes[:, :-1], axis=0, return_inverse=True)
        seen = defaultdict(int)
        keep = []
        for row, group in enumerate(prefix.reshape(-1).tolist()):
            seen[group] += 1
            if seen[group] <= NUM_CODES:
                keep.append(row)
        codes = codes[keep]
    residuals = rng.normal(size=(len(codes), 4)).astype(np.float32)
    return codes, residuals, rng.normal(size=(NUM_CODES, 4)).astype(np.float32)


def names(num_items):
    return pl.Series([f"item {i}" for i in range(num_items)])


def at_rows(residuals):
    return lambda rows: residuals[rows]


def greedy(codes, residuals, last_codes):
    return resolve_greedy(codes, names(len(codes)), at_rows(residuals), last_codes)


def squared_distances(residuals, last_codes):
    return np.square(residuals[:, None].astype(float) - last_codes[None]).sum(axis=-1)


def resolve_by_hand(codes, residuals, last_codes):
    """Resolve collisions in plain Python, prefix by prefix and round by round."""
    distances = squared_distances(residuals, last_codes)
    resolved = codes.copy()
    prefixes = defaultdict(list)
    for item, row in enumerate(codes.tolist()):
        prefixes[tuple(row[:-1])].append(item)
    for items in prefixes.values():
        holder = {}
        for item in items:
            code = codes[item, -1]
            if code not in holder or distances[item, code] < distances[holder[code], code]:
                holder[code] = item
        waiting = [item for item in items if holder[codes[item, -1]] != item]
        while waiting:
            asks = defaultdict(list)
            free = [code for code in range(len(last_codes)) if code not in holder]
            for item in waiting:
                asks[min(free, key=lambda code: distances[item, code])].append(item)
            for code, those in asks.items():
                holder[code] = min(those, key=lambda item: distances[item, code])
            waiting = [item for item in waiting if item not in holder.values()]
        for code, item in holder.items():
            resolved[item, -1] = code
    return resolved


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_greedy_is_the_same_as_by_hand(catalogue):
    assert greedy(*catalogue).tolist() == resolve_by_hand(*catalogue).tolist()


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_greedy_makes_ids_unique_by_their_last_codes_alone(catalogue):
    codes, residuals, last_codes = catalogue
    unique = make_unique(
        codes,
        (3,) * codes.shape[1],
        names(len(codes)),
        at_rows(residuals),
        last_codes,
        method="greedy",
    )
    assert len(np.unique(unique.codes, axis=0)) == len(codes)
    assert unique.codes.dtype == np.int32
    assert unique.disambiguation_level is None
    assert np.array_equal(unique.codes[:, :-1], codes[:, :-1])
    moved = unique.codes[:, -1] != codes[:, -1]
    assert unique.num_moved == moved.sum()
    assert unique.method == ("greedy" if moved.any() else "none needed")
    distances = squared_distances(residuals, last_codes)
    _, bucket, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    bucket = bucket.reshape(-1)
    for number, count in enumerate(counts):
        members = np.flatnonzero(bucket == number)
        stay = members[~moved[members]]
        # Of the items that share an ID, exactly the closest one keeps it.
        assert stay.tolist() == [members[distances[members, codes[members, -1]].argmin()]]
        assert count > 1 or not moved[members].any()


@settings(max_examples=75, deadline=None)
@given(catalogues(overfull=True))
def test_an_overfull_prefix_falls_back_to_one_more_level(catalogue):
    codes, residuals, last_codes = catalogue
    assert greedy(codes, residuals, last_codes) is None
    sizes = (3,) * (codes.shape[1] - 1) + (NUM_CODES,)
    ids = names(len(codes))
    unique = make_unique(codes, sizes, ids, at_rows(residuals), last_codes, method="greedy")
    assert unique.method == "disambiguation"
    assert unique.disambiguation_level == codes.shape[1]
    chosen = make_unique(codes, sizes, ids, at_rows(residuals), last_codes, method="disambiguation")
    assert np.array_equal(unique.codes, chosen.codes)


def test_the_fall_back_is_logged(caplog):
    codes = np.zeros((4, 2), dtype=np.int64)
    zeros = np.zeros((4, 2), dtype=np.float32)
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        make_unique(codes, (3, 3), names(4), at_rows(zeros), zeros[:3], method="greedy")
    assert "hold more items than the last level has codes (3)" in caplog.text


def test_a_prefix_may_be_filled_to_the_last_code():
    codes = np.zeros((5, 2), dtype=np.int64)
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(5, 3)).astype(np.float32)
    resolved = greedy(codes, residuals, rng.normal(size=(5, 3)).astype(np.float32))
    assert sorted(resolved[:, 1].tolist()) == [0, 1, 2, 3, 4]


def test_items_of_equal_residuals_get_different_codes():
    resolved = greedy(
        np.zeros((4, 2), dtype=np.int64),
        np.zeros((4, 3), dtype=np.float32),
        np.arange(15, dtype=np.float32).reshape(5, 3),
    )
    # One item keeps its code. The others get the next nearest codes, in the order of the hashes of
    # their ids.
    assert sorted(resolved[:, 1].tolist()) == [0, 1, 2, 3]
    assert resolved[:, 1].tolist() != [0, 1, 2, 3]


def test_input_is_not_touched():
    codes = np.zeros((4, 2), dtype=np.int64)
    residuals = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    greedy(codes, residuals, residuals.copy())
    balance_last_level(codes, at_rows(residuals), residuals.copy())
    assert codes.max() == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=20))
def test_digits_number_each_bucket_from_zero(rows):
    codes = np.array(rows, dtype=np.int64)
    unique = make_unique(
        codes,
        (3, 2),
        names(len(codes)),
        at_rows(np.zeros((len(codes), 1), np.float32)),
        np.zeros((2, 1), np.float32),
        method="disambiguation",
    )
    assert np.array_equal(unique.codes[:, :2], codes)
    assert (unique.disambiguation_level, unique.num_moved) == (2, 0)
    digits = defaultdict(list)
    for first, second, digit in unique.codes.tolist():
        digits[first, second].append(digit)
    for found in digits.values():
        assert sorted(found) == list(range(len(found)))
    assert unique.codebook_sizes == (3, 2, max(map(len, digits.values())))


def test_digits_do_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (60, 2))
    ids = np.array([f"B00{i}" for i in range(60)])
    digits = number_within_bucket(codes, pl.Series(ids))
    order = rng.permutation(60)
    shuffled = number_within_bucket(codes[order], pl.Series(ids[order]))
    assert np.array_equal(shuffled, digits[order])
    # The numbers depend on a hash of the id, and not on the row or the order of ids.
    by_row = number_within_bucket(codes, pl.Series([f"C{i}" for i in range(60)]))
    assert not np.array_equal(by_row, digits)


def test_digits_are_the_same_on_every_machine():
    codes = np.zeros((5, 1), dtype=np.int64)
    digits = number_within_bucket(codes, pl.Series(["a", "b", "c", "d", "e"]))
    assert digits.tolist() == [2, 3, 1, 4, 0]


@pytest.mark.parametrize("method", ["greedy", "sinkhorn", "disambiguation"])
def test_ids_of_a_large_catalogue_become_unique(method):
    rng = np.random.default_rng(0)
    num_items, size = 200_000, 256
    codes = rng.integers(0, size, (num_items, 3))
    # There are 8,192 prefixes of about 24 items each, and one item in twenty collides.
    codes[:, 0] //= 8
    residuals = rng.normal(size=(num_items, 16)).astype(np.float32)
    last_codes = rng.normal(size=(size, 16)).astype(np.float32)
    ids = names(num_items)
    unique = make_unique(
        codes, (32, size, size), ids, at_rows(residuals), last_codes, method=method
    )
    assert unique.method == method
    assert len(np.unique(unique.codes, axis=0)) == num_items
    assert (unique.num_moved > 5000) == (method != "disambiguation")


@settings(max_examples=50, deadline=None)
@given(catalogues(), st.integers(1, 5))
def test_the_size_of_blocks_changes_no_code(catalogue, block):
    whole = greedy(*catalogue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collisions, "BLOCK_ROWS", block)
        assert np.array_equal(greedy(*catalogue), whole)


def test_greedy_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (40, 2))
    # Each residual occurs four times, so there are exact ties.
    residuals = np.repeat(rng.normal(size=(10, 4)).astype(np.float32), 4, axis=0)
    last_codes = rng.normal(size=(20, 4)).astype(np.float32)
    order = rng.permutation(40)
    ids = names(40)
    plain = resolve_greedy(codes, ids, at_rows(residuals), last_codes)
    shuffled = resolve_greedy(
        codes[order], ids.gather(order), at_rows(residuals[order]), last_codes
    )
    assert np.array_equal(shuffled, plain[order])


@settings(max_examples=75, deadline=None)
@given(catalogues())
def test_balanced_ids_are_unique_too(catalogue):
    codes, residuals, last_codes = catalogue
    unique = make_unique(
        codes,
        (3,) * codes.shape[1],
        names(len(codes)),
        at_rows(residuals),
        last_codes,
        method="sinkhorn",
    )
    assert len(np.unique(unique.codes, axis=0)) == len(codes)
    assert np.array_equal(unique.codes[:, :-1], codes[:, :-1])
    alone = np.array([(codes == row).all(axis=1).sum() == 1 for row in codes])
    balanced = balance_last_level(codes, at_rows(residuals), last_codes)
    assert np.array_equal(balanced[alone], codes[alone])


def test_a_balanced_level_uses_its_codes_evenly():
    """All items are near one of 16 codes. The nearest items keep it, and the others are spread."""
    rng = np.random.default_rng(0)
    last_codes = rng.normal(size=(16, 4)).astype(np.float32)
    residuals = (last_codes[3] + 0.3 * rng.normal(size=(1600, 4))).astype(np.float32)
    codes = np.column_stack([np.zeros(1600, np.int64), np.full(1600, 3)])
    balanced = balance_last_level(codes, at_rows(residuals), last_codes)
    counts = np.bincount(balanced[:, 1], minlength=16)
    assert counts.min() > 50
    assert counts.max() < 200
    distances = squared_distances(residuals, last_codes)
    chosen = distances[np.arange(1600), balanced[:, 1]].mean()
    at_random = distances[np.arange(1600), rng.permutation(balanced[:, 1])].mean()
    assert chosen < 0.95 * at_random


def test_ids_of_many_levels_are_distinguished():
    """The number of possible IDs does not fit into 64 bits."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**16, (50, 6))
    codes[7] = codes[3]
    digits = number_within_bucket(codes, names(50))
    assert digits.sum() == 1
    assert digits[[3, 7]].sum() == 1
