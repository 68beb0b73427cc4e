import numpy as np
import pytest
import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.models.config import ItemKNNConfig
from recgrit.models.item_knn import ItemKNN
from recgrit.ranking import Histories, recommend_items
from tests.small_models import build_inputs

NUM_ITEMS = 12


def fit(split, **settings):
    return ItemKNN.fit(build_inputs(split), split, ItemKNNConfig(**settings), seed=0).model


@pytest.fixture
def split(make_split):
    rng = np.random.default_rng(0)
    return make_split([rng.integers(0, NUM_ITEMS, n) for n in (4, 7, 9, 3, 12, 6)], NUM_ITEMS)


def scores_by_hand(split, history, window, shrinkage, discount):
    users = [split.train_sequence(user).tolist() for user in range(split.num_users)]
    counts = np.bincount(np.concatenate(users), minlength=NUM_ITEMS)
    scores = np.zeros(NUM_ITEMS)
    for age, taken in enumerate(reversed(history)):
        for item in range(NUM_ITEMS):
            if item == taken:
                continue
            together = sum(
                {a, b} == {item, taken}
                for user in users
                for i, a in enumerate(user)
                for b in user[i + 1 : i + 1 + window]
            )
            norm = np.sqrt(counts[item] * counts[taken])
            scores[item] += discount**age * together / (norm + shrinkage)
    return scores


@pytest.mark.parametrize("shrinkage", [1.0, 10.0])
@pytest.mark.parametrize(("window", "discount"), [(2, 1.0), (20, 0.5)])
def test_scores_are_those_of_plain_loops(split, window, shrinkage, discount):
    model = fit(split, window=window, shrinkage=shrinkage, discount=discount)
    histories = [[3, 5, 3, 1], [7]]
    padded = Histories(torch.tensor([histories[0], [7, 0, 0, 0]]), torch.tensor([4, 1]))
    found = model.ranker().rank(padded, top_k=NUM_ITEMS, excluded=None)
    for row, history in enumerate(histories):
        expected = scores_by_hand(split, history, window, shrinkage, discount)
        by_item = found.scores[row][found.items[row].argsort()]
        np.testing.assert_allclose(by_item, expected, rtol=1e-5, atol=1e-7)


def test_only_the_most_similar_items_are_kept(split):
    full, some = fit(split), fit(split, num_neighbours=2)
    for item in range(NUM_ITEMS):
        row, kept = full.similarities[[item]].toarray()[0], some.similarities[[item]].toarray()[0]
        assert np.count_nonzero(kept) <= 2
        assert kept.sum() == pytest.approx(np.sort(row)[-2:].sum())


def test_targets_are_never_counted(make_split):
    sequences = [[0, 1, 2, 3], [0, 1, 4, 5]]
    model = fit(make_split(sequences, NUM_ITEMS))
    assert set(zip(*(i.tolist() for i in model.similarities.nonzero()), strict=True)) == {
        (0, 1),
        (1, 0),
    }


def test_excluded_items_are_not_listed(split):
    ranker = fit(split).ranker()
    users = np.arange(split.num_users)
    found = recommend_items(ranker, split, "test", users, top_k=NUM_ITEMS, masked=True)
    for user in users:
        listed = set(found.items[user].tolist()) - {NO_ITEM}
        assert listed == set(range(NUM_ITEMS)) - set(split.history(user, "test").tolist())


def test_items_that_occur_together_are_found(make_split, cyclic):
    split = make_split(cyclic(), 40)
    users = split.target_users("test")
    found = recommend_items(fit(split).ranker(), split, "test", users, top_k=10, masked=True)
    ranks = ranks_of_targets(found.items, split.targets("test", users))
    assert recall_at_k(ranks, 10).mean() > 0.9
