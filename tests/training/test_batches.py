import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.ranking import last_items
from recgrit.training.batches import (
    build_windows,
    collate,
    iterate_steps,
    plan_batches,
)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def distinct(user_lengths):
    """Build sequences without repeated items, so an item identifies its position."""
    offsets = np.cumsum([0, *user_lengths])
    return [np.arange(a, b) for a, b in itertools.pairwise(offsets)]


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 12))
def test_each_interaction_but_the_first_is_a_target_once(make_split, user_lengths, history_length):
    split = make_split(distinct(user_lengths))
    windows = build_windows(split, history_length)
    targets = []
    for start, length, first in zip(
        windows.starts, windows.lengths, windows.first_targets, strict=True
    ):
        assert 1 <= length <= history_length
        assert 0 <= first < length
        user = int(np.searchsorted(split.offsets, start, side="right")) - 1
        # A window and its targets are within the training part of one user.
        assert start + length < split.train_ends[user]
        for position in range(first, length):
            targets.append(int(start + position + 1))
            context = position + 1
            available = int(start + position + 1 - split.offsets[user])
            assert context >= min(available, (history_length + 1) // 2)
    expected = [
        position
        for user in range(split.num_users)
        for position in range(split.offsets[user] + 1, split.train_ends[user])
    ]
    assert sorted(targets) == expected
    assert windows.num_targets == len(expected)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 12))
def test_windows_are_those_of_a_walk_over_the_users(make_split, user_lengths, history_length):
    split = make_split(distinct(user_lengths))
    expected = []
    for start, end in zip(split.offsets[:-1].tolist(), split.train_ends.tolist(), strict=True):
        begin = done = 0
        while done < end - start - 1:
            length = min(history_length, end - start - 1 - begin)
            expected.append((start + begin, length, done - begin))
            done, begin = begin + length, begin + max(1, history_length // 2)
    windows = build_windows(split, history_length)
    columns = (windows.starts, windows.lengths, windows.first_targets)
    assert [column.dtype for column in columns] == [np.int64] * 3
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 12), st.integers(1, 50))
def test_an_epoch_reads_each_window_once(make_split, user_lengths, history_length, batch_targets):
    windows = build_windows(make_split(distinct(user_lengths)), history_length)
    if windows.num_targets == 0:
        return
    batches = plan_batches(windows, batch_targets=batch_targets, generator=np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows.starts)))
    # The learning rate schedule assumes at most this number of steps.
    assert len(batches) <= -(-windows.num_targets // batch_targets)
    sizes = windows.lengths - windows.first_targets
    for batch in batches:
        assert len(batch) > 0
        assert sizes[batch].sum() < batch_targets + sizes[batch].max()


def test_batches_hold_windows_of_like_length(make_split):
    rng = np.random.default_rng(0)
    windows = build_windows(make_split(distinct(rng.integers(4, 30, 200))), 30)
    batches = plan_batches(windows, batch_targets=100, generator=rng)
    padded = sum(len(batch) * windows.lengths[batch].max() for batch in batches)
    assert padded < 1.15 * windows.lengths.sum()
    longest = [int(windows.lengths[batch].max()) for batch in batches]
    assert longest != sorted(longest)


def test_order_changes_with_the_epoch_and_not_with_the_run(make_split):
    windows = build_windows(make_split(distinct([9] * 60)), 10)

    def epochs(seed):
        generator = np.random.default_rng(seed)
        return [
            [
                batch.tolist()
                for batch in plan_batches(windows, batch_targets=40, generator=generator)
            ]
            for _ in range(2)
        ]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(1, 12), st.integers(1, 4))
def test_targets_are_the_items_that_follow(make_split, user_lengths, history_length, num_parts):
    split = make_split(distinct(user_lengths))
    windows = build_windows(split, history_length)
    if windows.num_targets == 0:
        return
    seen = []
    steps = iterate_steps(
        split, windows, batch_targets=30, num_parts=num_parts, generator=np.random.default_rng(0)
    )
    for batch in itertools.chain.from_iterable(step.parts for step in steps):
        assert batch.targets.shape == batch.positions.shape
        assert batch.histories.dtype == batch.targets.dtype == torch.int64
        assert (batch.positions.diff() > 0).all()
        # Items are numbered in the order of the sequences, so the next item has the next number.
        read = batch.histories[batch.users, batch.ends]
        torch.testing.assert_close(batch.targets, read + 1)
        seen += batch.targets.tolist()
    assert sorted(seen) == sorted(
        item for user in range(split.num_users) for item in split.train_sequence(user)[1:].tolist()
    )


def test_collate_gives_the_expected_batch(make_split):
    split = make_split([[5, 6, 7, 8, 9], [3, 4]], targets=False)
    windows = build_windows(split, 3)
    assert windows.starts.tolist() == [0, 1, 5]
    batch = collate(split, windows, np.array([2, 0, 1]))
    assert batch.histories.tolist() == [[3, 0, 0], [5, 6, 7], [6, 7, 8]]
    assert batch.targets.tolist() == [4, 6, 7, 8, 9]
    assert batch.users.tolist() == [0, 1, 1, 1, 2]
    assert batch.ends.tolist() == [0, 0, 1, 2, 2]


def test_targets_of_valid_and_test_are_never_read(make_split):
    split = make_split([[0, 1, 2, 3, 4], [0, 1, 5], [0, 1]])
    windows = build_windows(split, 8)
    batch = collate(split, windows, np.arange(len(windows.starts)))
    read = set(batch.histories.flatten().tolist()) | set(batch.targets.flatten().tolist())
    assert read == {0, 1, 2}


@pytest.mark.parametrize("history_length", [1, 2, 4, 9])
def test_last_items_are_the_end_of_each_slice(history_length):
    items = np.arange(20, dtype=np.int32)
    read = last_items(items, np.array([0, 8, 10]), np.array([5, 9, 10]), history_length)
    histories, found = read.items, read.lengths
    assert read.present.sum(dim=1).tolist() == found.tolist()
    assert found.tolist() == [min(5, history_length), 1, 0]
    assert histories[0, : found[0]].tolist() == list(range(5 - min(5, history_length), 5))
    assert histories[1, 0] == 8
    assert histories.shape == (3, min(5, history_length))
    assert (histories[1, 1:] == 0).all()


def weighed(split, weights):
    return dataclasses.replace(split, weights=np.array(weights, np.float32))


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_items_of_weight_zero_are_read_and_never_targets(
    make_split, user_lengths, history_length, seed
):
    draw = np.random.default_rng(seed)
    split = make_split(distinct(user_lengths))
    split = weighed(split, draw.choice([0, 0, 1, 5], len(split.items)))
    windows = build_windows(split, history_length)
    expected = {
        position: split.weights[position]
        for user in range(split.num_users)
        for position in range(split.offsets[user] + 1, split.train_ends[user])
        if split.weights[position] > 0
    }
    assert windows.num_targets == len(expected)
    assert (windows.counts > 0).all()
    if not expected:
        return
    found = {}
    steps = iterate_steps(
        split, windows, batch_targets=9, num_parts=2, generator=np.random.default_rng(0)
    )
    for step in steps:
        assert step.num_targets == sum(batch.num_targets for batch in step.parts)
        for batch in step.parts:
            # An item identifies its position, so the last item read is the one before the target.
            torch.testing.assert_close(batch.targets, batch.histories[batch.users, batch.ends] + 1)
            weights = torch.ones(batch.num_targets) if batch.weights is None else batch.weights
            assert not found.keys() & set(batch.targets.tolist())
            found |= dict(zip(batch.targets.tolist(), weights.tolist(), strict=True))
    mean = np.mean(list(expected.values()))
    assert found == pytest.approx({position: w / mean for position, w in expected.items()})


def test_equal_weights_change_nothing(make_split):
    split = make_split(distinct([9, 4, 30]))
    plain, alike = (
        next(
            iterate_steps(
                some,
                build_windows(some, 6),
                batch_targets=99,
                generator=np.random.default_rng(0),
            )
        ).parts[0]
        for some in (split, weighed(split, np.full(len(split.items), 5)))
    )
    assert alike.weights is None
    for name in ("histories", "positions", "targets"):
        assert torch.equal(getattr(plain, name), getattr(alike, name))
