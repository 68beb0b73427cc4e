from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.data import splits
from recgrit.data.protocols import leave_one_out
from recgrit.data.splits import SequenceSplit
from recgrit.errors import DataError
from tests.data.small_data import build_sequences

rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 5)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_training_mask_and_counts_agree(values: list[tuple[str, str, int]]) -> None:
    split = leave_one_out(build_sequences(values))
    learned = [item for user in range(split.num_users) for item in split.train_sequence(user)]
    assert split.items[split.train_mask()].tolist() == learned
    assert split.train_item_counts().tolist() == [
        learned.count(item) for item in range(split.num_items)
    ]


@pytest.fixture
def split() -> SequenceSplit:
    return leave_one_out(build_sequences([("a", "x", i) for i in range(4)] + [("b", "y", 9)]))


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
        ("train_ends", [2, 3], "must lie within its sequence"),
        ("valid_targets", [1, -1], "valid target must come after"),
        ("test_targets", [4, -1], "test target must come after"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    split: SequenceSplit, name: str, values: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(split, **{name: np.array(values)})


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 12))
def test_what_may_be_learned_does_not_depend_on_parts(
    values: list[tuple[str, str, int]], part_size: int
) -> None:
    split = leave_one_out(build_sequences(values))
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


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(1, 12))
def test_repeats_are_targets_that_the_history_holds(
    values: list[tuple[str, str, int]], part_size: int
) -> None:
    split = leave_one_out(build_sequences(values))
    for name in ("valid", "test"):
        users = split.target_users(name)
        expected = [
            split.items[split.target_positions(name)[user]] in split.history(user, name)
            for user in users
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(splits, "PART_SIZE", part_size)
            assert split.repeats(name, users).tolist() == expected
