from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data.protocols import (
    choose_cut_off_times,
    draw_items,
    leave_one_out,
    split_by_time,
    without_items,
)
from recgrit.data.splits import SequenceSplit
from recgrit.errors import DataError
from tests.data.small_data import build_interactions, build_sequences

rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


def split_temporally(
    values: list[tuple[str, str, int]], valid_share: float, test_share: float
) -> SequenceSplit:
    sequences = build_sequences(values)
    ordered = sorted(sequences.times.tolist())
    cut_offs = choose_cut_off_times(
        len(ordered), ordered.__getitem__, valid_share=valid_share, test_share=test_share
    )
    return split_by_time(sequences, cut_offs)


@settings(max_examples=150, deadline=None)
@given(rows)
def test_leave_one_out_invariants(values: list[tuple[str, str, int]]) -> None:
    interactions = build_interactions(values)
    split = leave_one_out(build_sequences(values))
    assert (split.num_users, split.num_items) == (interactions.num_users, interactions.num_items)
    for user in range(split.num_users):
        sequence = split.full_sequence(user).tolist()
        # Python's sort is stable, so ties stay in the order of the file.
        expected = sorted(
            (row for row in values if row[0] == interactions.user_ids[user]), key=lambda r: r[2]
        )
        assert [interactions.item_ids[item] for item in sequence] == [row[1] for row in expected]
        if len(sequence) < 3:
            assert split.train_sequence(user).tolist() == sequence
            continue
        one = np.array([user])
        assert split.train_sequence(user).tolist() == sequence[:-2]
        assert split.history(user, "valid").tolist() == sequence[:-2]
        assert split.targets("valid", one).tolist() == [sequence[-2]]
        assert split.history(user, "test").tolist() == sequence[:-1]
        assert split.targets("test", one).tolist() == [sequence[-1]]
        # The target is checked by position, because the same item may also be in the history.
        for name in ("valid", "test"):
            start, position = split.offsets[user], split.target_positions(name)[user]
            assert position == start + len(split.history(user, name))
    with_targets = [u for u in range(split.num_users) if len(split.full_sequence(u)) >= 3]
    assert split.target_users("valid").tolist() == with_targets
    assert split.target_users("test").tolist() == with_targets


def test_repeated_item_may_be_its_own_target() -> None:
    split = leave_one_out(build_sequences([("a", "x", 1), ("a", "y", 2), ("a", "x", 3)]))
    assert split.history(0, "test").tolist() == [0, 1]
    assert split.targets("test", np.array([0])).tolist() == [0]


def test_held_out_items_leave_the_training_parts_only() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    split = SequenceSplit(
        items=rng.integers(0, 50, offsets[-1]).astype(np.int32),
        offsets=offsets,
        train_ends=offsets[1:] - 2,
        valid_targets=offsets[1:] - 2,
        test_targets=offsets[1:] - 1,
        num_items=50,
    )
    held_out = draw_items(split.num_items, 0.2, seed=1)
    cold = without_items(split, held_out)
    assert held_out.sum() == 10
    assert not held_out[cold.items[cold.train_mask()]].any()
    assert cold.train_item_counts()[~held_out].tolist() == (
        split.train_item_counts()[~held_out].tolist()
    )
    lost = 0
    for user in range(200):
        kept = [i for i in split.train_sequence(user).tolist() if not held_out[i]]
        assert cold.train_sequence(user).tolist() == kept
        if not kept:
            lost += 1
            assert cold.valid_targets[user] == cold.test_targets[user] == -1
            continue
        for name in ("valid", "test"):
            users = np.array([user])
            assert cold.targets(name, users).tolist() == split.targets(name, users).tolist()
        assert cold.history(user, "test").tolist() == kept + split.targets("valid", users).tolist()
    assert 0 < lost < 30
    assert draw_items(split.num_items, 0.2, seed=2).tolist() != held_out.tolist()


@settings(max_examples=200, deadline=None)
@given(rows, st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.3]))
def test_a_temporal_split_leaks_nothing(
    values: list[tuple[str, str, int]], valid_share: float, test_share: float
) -> None:
    times = build_sequences(values).times
    ordered = sorted(times.tolist())
    num_train = int(len(times) * (1 - valid_share - test_share))
    cut_offs = (
        ordered[min(num_train, len(times) - 1)],
        ordered[int(len(times) * (1 - test_share))],
    )
    if cut_offs[0] == ordered[0]:
        with pytest.raises(DataError, match="all have the same time"):
            split_temporally(values, valid_share, test_share)
        return
    split = split_temporally(values, valid_share, test_share)
    assert times[split.train_mask()].max() < cut_offs[0]
    periods = {"valid": cut_offs, "test": (cut_offs[1], np.inf)}
    for name, (begin, end) in periods.items():
        for user in range(split.num_users):
            behind_another = range(split.offsets[user] + 1, split.offsets[user + 1])
            expected = next((i for i in behind_another if begin <= times[i] < end), -1)
            assert split.target_positions(name)[user] == expected


def test_a_temporal_split_by_hand() -> None:
    values = [
        *[("a", item, time) for item, time in zip("uvwx", (0, 1, 8, 9), strict=True)],
        *[("b", item, time) for item, time in zip("uvw", (2, 3, 4), strict=True)],
        *[("c", item, time) for item, time in zip("wxy", (5, 6, 7), strict=True)],
    ]
    # Validation starts at time 6, and the test at time 8.
    split = split_temporally(values, 0.2, 0.2)
    assert [split.train_sequence(user).tolist() for user in range(3)] == [[0, 1], [0, 1, 2], [2]]
    assert split.target_users("valid").tolist() == [2]
    assert split.target_users("test").tolist() == [0]
    assert split.history(0, "test").tolist() == [0, 1]
    assert split.targets("test", np.array([0])).tolist() == [2]
    assert split.history(2, "valid").tolist() == [2]


def test_interactions_at_a_single_time_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"all have the same time.*data\.split=leave_one_out"):
        split_temporally([("a", "u", 1), ("a", "v", 1)], 0.1, 0.1)
