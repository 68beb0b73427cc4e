import dataclasses

import numpy as np
import pytest

from recgrit.data.splits import SequenceSplit
from recgrit.embedding.cooccurrence import build_cooccurrence_vectors, count_pairs, positive_pmi


def make_split(sequences, num_items, targets=True):
    """Build a leave-one-out split. The last two items of each sequence are targets."""
    offsets = np.cumsum([0, *map(len, sequences)])
    ends = offsets[1:]
    none = np.full(len(sequences), -1)
    return SequenceSplit(
        items=np.concatenate(sequences).astype(np.int32),
        offsets=offsets,
        train_ends=ends - 2 if targets else ends,
        valid_targets=ends - 2 if targets else none,
        test_targets=ends - 1 if targets else none,
        num_items=num_items,
    )


def two_clusters(seed=0, num_users=200):
    """Draw users who interact with items 0-19 or with items 20-39, except for one step in ten."""
    rng = np.random.default_rng(seed)
    sequences = []
    for user in range(num_users):
        side = np.where(rng.random(12) < 0.1, 1 - user % 2, user % 2)
        sequences.append(side * 20 + rng.integers(0, 20, 12))
    return make_split(sequences, num_items=41)


def test_pairs_are_counted_within_the_window_and_the_user():
    split = make_split([[0, 1, 2, 0], [3, 1]], num_items=5, targets=False)
    assert count_pairs(split, window=1).toarray().tolist() == [
        [0, 1, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    # Distance 2 adds the pairs (0, 2) and (1, 0). Distance 3 adds only item 0 with itself.
    wide = count_pairs(split, window=9).toarray()
    assert wide[0, 2] == wide[2, 0] == wide[0, 1] == wide[1, 0] == 2
    assert wide.trace() == 0


def test_positive_pmi_of_a_case_to_do_by_hand():
    # The pair 0-1 occurs three times and 0-2 once. The items occur in 4, 3 and 1 pairs.
    split = make_split([[0, 1], [0, 1], [0, 1], [0, 2]], num_items=3, targets=False)
    contexts = np.array([4, 3, 1]) ** 0.75
    total = contexts.sum()
    expected = np.array(
        [
            [0, np.log(3 * total / (4 * contexts[1])), np.log(1 * total / (4 * contexts[2]))],
            [np.log(3 * total / (3 * contexts[0])), 0, 0],
            [np.log(1 * total / (1 * contexts[0])), 0, 0],
        ]
    )
    assert (expected >= 0).all()
    np.testing.assert_allclose(positive_pmi(count_pairs(split, 1)).toarray(), expected)


def test_pairs_rarer_than_chance_are_dropped():
    split = make_split([[0, 1]] * 9 + [[2, 3]] * 9 + [[0, 2]], num_items=4, targets=False)
    matrix = positive_pmi(count_pairs(split, 1)).toarray()
    assert matrix[0, 2] == 0
    assert matrix[0, 1] > 0


def test_items_that_occur_together_get_similar_vectors():
    vectors = build_cooccurrence_vectors(two_clusters(), dim=8, window=5).vectors
    similarity = vectors @ vectors.T
    within = np.r_[similarity[:20, :20].ravel(), similarity[20:40, 20:40].ravel()]
    across = similarity[:20, 20:40]
    assert within.mean() > across.mean() + 0.3


def test_targets_never_leak():
    split = two_clusters()
    items = split.items.copy()
    items[~split.train_mask()] = np.random.default_rng(9).integers(
        0, 41, (~split.train_mask()).sum()
    )
    changed = dataclasses.replace(split, items=items)
    assert (changed.items != split.items).any()
    np.testing.assert_array_equal(
        build_cooccurrence_vectors(changed).vectors, build_cooccurrence_vectors(split).vectors
    )


def test_the_same_seed_gives_the_same_vectors():
    split = two_clusters()
    first, second = (build_cooccurrence_vectors(split, dim=8, seed=3).vectors for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_signs_do_not_depend_on_the_seed():
    split = two_clusters()
    first, second = (build_cooccurrence_vectors(split, dim=2, seed=s).vectors for s in (0, 1))
    assert (first * second).sum(axis=1)[:40].min() > 0.99


def test_unseen_items_are_zero_and_the_others_of_length_one():
    split = two_clusters()
    embeddings = build_cooccurrence_vectors(split, dim=16, window=4)
    norms = np.linalg.norm(embeddings.vectors, axis=1)
    assert norms[40] == 0
    np.testing.assert_allclose(norms[:40], 1, atol=1e-5)
    assert embeddings.normalized
    assert embeddings.encoder == "cooccurrence-w4"


@pytest.mark.parametrize(
    "sequences", [[[0, 1, 2, 3]], [[0, 0, 0, 0, 1, 1]], [[0, 1]], [[1, 2], [2, 3]]]
)
def test_tiny_catalogues_keep_the_width(sequences):
    embeddings = build_cooccurrence_vectors(make_split(sequences, num_items=4), dim=8)
    assert embeddings.vectors.shape == (4, 8)
