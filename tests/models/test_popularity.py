import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from recgrit.config import Config
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError
from recgrit.models.popularity import Popularity, PopularityRanker
from recgrit.ranking import recommend_items
from tests.small_models import build_inputs


def build_split(sequences: list[list[int]], num_items: int) -> SequenceSplit:
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ends, has_targets = offsets[1:], lengths >= 3
    return SequenceSplit(
        items=np.array([item for sequence in sequences for item in sequence], dtype=np.int32),
        offsets=offsets,
        train_ends=np.where(has_targets, ends - 2, ends),
        valid_targets=np.where(has_targets, ends - 2, -1),
        test_targets=np.where(has_targets, ends - 1, -1),
        num_items=num_items,
    )


def recommend_popular(
    split: SequenceSplit,
    split_name: Split,
    users: npt.NDArray[np.int64],
    top_k: int,
    masked: bool,
) -> Recommendations:
    ranker = PopularityRanker(split.train_item_counts())
    return recommend_items(ranker, split, split_name, users, top_k=top_k, masked=masked)


def brute_force(
    split: SequenceSplit, split_name: Split, user: int, top_k: int, masked: bool
) -> list[tuple[int, int]]:
    counts = [0] * split.num_items
    for other in range(split.num_users):
        for item in split.train_sequence(other):
            counts[item] += 1
    taken = set(split.history(user, split_name).tolist()) if masked else set()
    ordered = sorted(range(split.num_items), key=lambda item: (-counts[item], item))
    return [(item, counts[item]) for item in ordered if item not in taken][:top_k]


@st.composite
def splits(draw: st.DrawFn) -> SequenceSplit:
    num_items = draw(st.integers(1, 12))
    sequence = st.lists(st.integers(0, num_items - 1), min_size=1, max_size=15)
    return build_split(draw(st.lists(sequence, min_size=1, max_size=8)), num_items)


@settings(max_examples=150)
@given(
    split=splits(),
    split_name=st.sampled_from(["valid", "test"]),
    top_k=st.integers(1, 15),
    masked=st.booleans(),
    reverse=st.booleans(),
    chunk=st.sampled_from([1, 3, 1000]),
)
def test_agreement_with_brute_force(
    split: SequenceSplit,
    split_name: Split,
    top_k: int,
    masked: bool,
    reverse: bool,
    chunk: int,
) -> None:
    users = split.target_users(split_name)[:: -1 if reverse else 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PopularityRanker, "batch_users", chunk)
        result = recommend_popular(split, split_name, users, top_k, masked)
    assert_array_equal(result.users, users)
    assert result.items.shape == (len(users), top_k)
    for row, user in enumerate(users):
        expected = brute_force(split, split_name, int(user), top_k, masked)
        filled = result.items[row] != NO_ITEM
        items, scores = result.items[row][filled], result.scores[row][filled]
        assert list(zip(items.tolist(), scores.tolist(), strict=True)) == expected
        assert np.all(np.isneginf(result.scores[row][~filled]))


def test_targets_are_not_counted() -> None:
    # Item 2 is the target of every user, and in no training part.
    split = build_split([[0, 1, 2], [0, 1, 2], [1, 0, 2]], num_items=3)
    result = recommend_popular(split, "test", split.target_users("test"), 3, masked=False)
    assert result.items[0].tolist() == [0, 1, 2]
    assert result.scores[0].tolist() == [2.0, 1.0, 0.0]


def test_the_test_history_holds_the_valid_item() -> None:
    split = build_split([[0, 1, 2]], num_items=4)
    users = np.array([0])
    assert recommend_popular(split, "valid", users, 2, masked=True).items.tolist() == [[1, 2]]
    assert recommend_popular(split, "test", users, 2, masked=True).items.tolist() == [[2, 3]]


def test_users_without_a_target_are_refused() -> None:
    split = build_split([[0, 1, 2], [0, 1]], num_items=3)
    with pytest.raises(DataError, match="1 users have no history"):
        recommend_popular(split, "test", np.array([0, 1]), 2, masked=True)


def test_memory_does_not_follow_users_times_items() -> None:
    import tracemalloc

    num_users, num_items = 5_000, 1_000_000
    rng = np.random.default_rng(0)
    # One user has a very long history, which must not make the rows of other users longer.
    sequences = [rng.integers(0, num_items, size=20_000).tolist()]
    sequences += rng.integers(0, num_items, size=(num_users - 1, 4)).tolist()
    split = build_split(sequences, num_items)
    tracemalloc.start()
    result = recommend_popular(split, "test", split.target_users("test"), 20, masked=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.num_users == num_users
    # A bit per user and item would need 625 MB. A byte per user and position of the longest history
    # would need 100 MB.
    assert peak < 80e6


def test_only_targets_are_counted() -> None:
    split = build_split([[0, 1, 1, 2, 2, 0, 0]], 3)
    weights = np.array([0, 5, 0, 0, 5, 5, 5], np.float32)
    split = dataclasses.replace(split, weights=weights)
    inputs = build_inputs(split)
    found = Popularity.fit(inputs, split, Config(), seed=0).model
    assert found.counts.tolist() == [0, 1, 1]
    assert inputs.trained.all()
