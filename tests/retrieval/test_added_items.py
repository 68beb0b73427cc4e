"""Test how added items change the scores of the items that a model was trained on."""

import numpy as np
import pytest
import torch

from recgrit.ranking import Histories
from recgrit.retrieval.decoding import score_all_items
from recgrit.retrieval.trie_walk import TrieWalk

SIZES = (6, 6, 6)


@pytest.fixture(params=["catalogue", "prefixes", "constant"])
def size(request):
    return request.param


@pytest.fixture(params=[None, 0, 1, 2])
def tree_levels(request):
    return request.param


def scores_after(model, items):
    histories = Histories(torch.tensor([items]), torch.tensor([len(items)]))
    with torch.inference_mode():
        vectors = model.nodes()
        states = histories.take_last(model.encode(histories.items, vectors))
        seen = model.find_seen(histories.items, histories.present)
        return score_all_items(model.trie, TrieWalk(model, vectors, states, seen))[0]


def test_ids_of_old_items_keep_their_scores(make_model, random_codes, size, tree_levels):
    """Vectors of old items stay equal. Probabilities shrink only by the shares of new siblings."""
    codes = random_codes(70, SIZES, seed=3)
    old, new = codes[:50], codes[50:]
    trained = torch.arange(50) < 44  # Six items of the catalogue are in no history.
    settings = {"size": size, "sizes": SIZES, "tree_levels": tree_levels}
    before = make_model(old, train_items=trained, **settings)
    after = make_model(
        np.concatenate([old, new]),
        train_items=torch.cat([trained, torch.zeros(20, dtype=torch.bool)]),
        known_items=torch.arange(70) < 50,
        seed=9,
        **settings,
    )
    after.load_state_dict(before.state_dict())
    vectors = before.nodes(), after.nodes()
    for item in range(50):
        assert torch.equal(vectors[0][before.trie.paths[item]], vectors[1][after.trie.paths[item]])
    history = [3, 17, 40]
    first, second = scores_after(before, history), scores_after(after, history)
    assert second.exp().sum() == pytest.approx(1, abs=1e-4)
    # Log P of all children of one parent changes by the same amount, which new siblings of the
    # parents cause. The ratios of the children's probabilities therefore stay equal.
    depth = 2 if tree_levels is None else tree_levels
    shifts = {}
    for item in range(50):
        parent = tuple(old[item][:depth])
        shifts.setdefault(parent, []).append(float(second[item] - first[item]))
    heads = {tuple(row[:depth]) for row in new.tolist()}
    assert any(parent in heads for parent in shifts)
    for parent, values in shifts.items():
        assert np.ptp(values) < 1e-4, parent
        assert max(values) < 1e-5, "a new sibling can only take probability"
    taken = {tuple(row[:length]) for row in new.tolist() for length in range(depth + 1)}
    for length in range(1, depth + 1):
        # Below a node without added items, the conditional probabilities are the same.
        for prefix in {tuple(row[:length]) for row in old.tolist()} - taken:
            inside = np.flatnonzero((old[:, :length] == prefix).all(axis=1))
            conditional = [
                scores[inside] - scores[inside].logsumexp(0) for scores in (first, second)
            ]
            torch.testing.assert_close(*conditional, rtol=0, atol=2e-5)


def test_where_nothing_is_added_all_scores_are_the_same(make_model, random_codes):
    codes = random_codes(40, SIZES)
    before = make_model(codes, sizes=SIZES)
    after = make_model(codes, sizes=SIZES, known_items=torch.ones(40, dtype=torch.bool), seed=5)
    after.load_state_dict(before.state_dict())
    assert torch.equal(scores_after(before, [1, 2]), scores_after(after, [1, 2]))
