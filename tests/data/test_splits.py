from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data import splits
from recgrit.data.interactions import Interactions
from recgrit.data.prepare import build_interactions
from recgrit.data.splits import (
    MIN_SEQUENCE_LENGTH,
    SequenceSplit,
    build_leave_one_out,
    build_temporal,
    hold_out_items,
)
from recgrit.errors import DataError

rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


def build(values: list[tuple[str, str, int]]) -> Interactions:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return build_interactions(pl.DataFrame(values, schema=schema, orient="row"))


@settings(max_examples=150, deadline=None)
@given(rows)
def test_leave_one_out_invariants(values: list[tuple[str, str, int]]) -> None:
    interactions = build(values)
    split = build_leave_one_out(interactions)
    assert (split.num_users, split.num_items) == (interactions.num_users, interactions.num_items)
    for user in range(split.num_users):
        sequence = split.full_sequence(user).tolist()
        # Python's sort is stable: time order, ties as in the file.
        taken = sorted(
            (row for row in values if row[0] == interactions.user_ids[user]), key=lambda r: r[2]
        )
        assert [interactions.item_ids[item] for item in sequence] == [row[1] for row in taken]
        if len(sequence) < MIN_SEQUENCE_LENGTH:
            assert split.train_sequence(user).tolist() == sequence
            continue
        one = np.array([user])
        assert split.train_sequence(user).tolist() == sequence[:-2]
        assert split.history(user, "valid").tolist() == sequence[:-2]
        assert split.targets("valid", one).tolist() == [sequence[-2]]
        assert split.history(user, "test").tolist() == sequence[:-1]
        assert split.targets("test", one).tolist() == [sequence[-1]]
        # By position: the same item may well stand in the history too.
        for name in ("valid", "test"):
            start, position = split.offsets[user], split.target_positions(name)[user]
            assert position == start + len(split.history(user, name))
    with_targets = [u for u in range(split.num_users) if len(split.full_sequence(u)) >= 3]
    assert split.target_users("valid").tolist() == with_targets
    assert split.target_users("test").tolist() == with_targets


@settings(max_examples=50, deadline=None)
@given(rows)
def test_training_mask_and_counts_agree(values: list[tuple[str, str, int]]) -> None:
    split = build_leave_one_out(build(values))
    learned = [item for user in range(split.num_users) for item in split.train_sequence(user)]
    assert split.items[split.train_mask()].tolist() == learned
    assert split.train_item_counts().tolist() == [
        learned.count(item) for item in range(split.num_items)
    ]


def test_repeated_item_may_be_its_own_target() -> None:
    split = build_leave_one_out(build([("a", "x", 1), ("a", "y", 2), ("a", "x", 3)]))
    assert split.history(0, "test").tolist() == [0, 1]
    assert split.targets("test", np.array([0])).tolist() == [0]


@pytest.fixture
def split() -> SequenceSplit:
    return build_leave_one_out(build([("a", "x", i) for i in range(4)] + [("b", "y", 9)]))


def test_save_and_memory_map(split: SequenceSplit, tmp_path: Path) -> None:
    split.save(tmp_path)
    loaded = SequenceSplit.load(tmp_path, num_items=2)
    assert isinstance(loaded.items, np.memmap)
    for field in dataclasses.fields(SequenceSplit):
        assert np.array_equal(getattr(loaded, field.name), getattr(split, field.name))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("offsets", [0, 4, 6], "Offsets must run from 0"),
        ("train_ends", [2, 3], "must lie within its user's sequence"),
        ("valid_targets", [1, -1], "valid target must lie behind"),
        ("test_targets", [4, -1], "test target must lie behind"),
    ],
)
def test_what_does_not_fit(
    split: SequenceSplit, name: str, values: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(split, **{name: np.array(values)})


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
    found = hold_out_items(split, 0.2, seed=1)
    cold, held_out = found.split, found.items
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
    assert hold_out_items(split, 0.2, seed=2).items.tolist() != held_out.tolist()


@settings(max_examples=200, deadline=None)
@given(rows, st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.3]))
def test_a_temporal_split_leaks_nothing(
    values: list[tuple[str, str, int]], valid_share: float, test_share: float
) -> None:
    interactions = build(values)
    times = interactions.frame["timestamp"].to_numpy()
    ordered = sorted(times.tolist())
    num_train = int(len(times) * (1 - valid_share - test_share))
    moments = ordered[min(num_train, len(times) - 1)], ordered[int(len(times) * (1 - test_share))]
    if moments[0] == ordered[0]:
        with pytest.raises(DataError, match="all is one moment"):
            build_temporal(interactions, valid_share=valid_share, test_share=test_share)
        return
    split = build_temporal(interactions, valid_share=valid_share, test_share=test_share)
    assert times[split.train_mask()].max() < moments[0]
    periods = {"valid": moments, "test": (moments[1], np.inf)}
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
    split = build_temporal(build(values), valid_share=0.2, test_share=0.2)  # From 6 and from 8.
    assert [split.train_sequence(user).tolist() for user in range(3)] == [[0, 1], [0, 1, 2], [2]]
    assert split.target_users("valid").tolist() == [2]
    assert split.target_users("test").tolist() == [0]
    assert split.history(0, "test").tolist() == [0, 1]
    assert split.targets("test", np.array([0])).tolist() == [2]
    assert split.history(2, "valid").tolist() == [2]


def test_one_moment_cannot_be_parted() -> None:
    with pytest.raises(DataError, match=r"all is one moment.*data\.split=leave_one_out"):
        build_temporal(build([("a", "u", 1), ("a", "v", 1)]), valid_share=0.1, test_share=0.1)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 12))
def test_what_may_be_learned_does_not_depend_on_parts(
    values: list[tuple[str, str, int]], part_size: int
) -> None:
    split = build_leave_one_out(build(values))
    expected = np.concatenate(
        [
            np.arange(*split.offsets[[u, u + 1]]) < split.train_ends[u]
            for u in range(split.num_users)
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "PART_SIZE", part_size)
        assert np.array_equal(split.train_mask(), expected)
        counts = split.train_item_counts()
    assert counts.dtype == np.int64
    assert np.array_equal(counts, np.bincount(split.items[expected], minlength=split.num_items))


def test_a_part_may_be_users_without_interactions() -> None:
    offsets = np.array([0, 0, 3, 3, 3, 4, 4])
    split = SequenceSplit.of_histories(np.array([2, 0, 1, 1], np.int32), offsets, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "PART_SIZE", 1)
        assert split.train_mask().all()
        assert split.train_item_counts().tolist() == [1, 2, 1]
