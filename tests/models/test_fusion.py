import numpy as np
import pytest
import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import ConfigError
from recgrit.models.fusion import FusedRanker
from recgrit.ranking import Histories, Ranked
from recgrit.retrieval.trie_ranker import TrieRanker

NUM_ITEMS = 30
HISTORIES = Histories(torch.tensor([[1, 2, 3], [7, 0, 0]]), torch.tensor([3, 1]))


@pytest.fixture(scope="module")
def rankers(make_model, random_codes):
    """Build rankers of the same items with different IDs."""
    models = [make_model(random_codes(NUM_ITEMS, seed=seed), seed=seed) for seed in range(3)]
    return [TrieRanker(model, beam_width=64) for model in models]


def probabilities(ranker, excluded=None):
    found = ranker.rank(HISTORIES, top_k=NUM_ITEMS, excluded=excluded)
    by_item = np.zeros((2, NUM_ITEMS))
    for row, (items, scores) in enumerate(zip(found.items, found.scores, strict=True)):
        kept = items != NO_ITEM
        by_item[row, items[kept]] = scores[kept].exp()
    return by_item


def test_probabilities_are_the_mean(rankers):
    expected = np.mean([probabilities(ranker) for ranker in rankers], axis=0)
    np.testing.assert_allclose(probabilities(FusedRanker(rankers)), expected, rtol=1e-4)


def test_lists_are_ordered_and_hold_no_item_twice(rankers):
    found = FusedRanker(rankers).rank(HISTORIES, top_k=10, excluded=None)
    assert (found.scores.diff(dim=1) <= 0).all()
    for row in found.items.tolist():
        assert len(set(row)) == 10
        assert NO_ITEM not in row


def test_excluded_items_are_not_listed(rankers):
    excluded = Histories(torch.arange(25).expand(2, -1), torch.tensor([25, 25]))
    found = FusedRanker(rankers).rank(HISTORIES, top_k=10, excluded=excluded)
    for row in found.items.tolist():
        assert set(row[:5]) == set(range(25, 30))
        assert row[5:] == [NO_ITEM] * 5


def test_one_ranker_fused_is_itself(rankers):
    alone = rankers[0].rank(HISTORIES, top_k=10, excluded=None)
    fused = FusedRanker(rankers[:1]).rank(HISTORIES, top_k=10, excluded=None)
    assert torch.equal(alone.items, fused.items)
    torch.testing.assert_close(alone.scores, fused.scores)


class Certain:
    """A ranker that always returns the same list, whose first item has nearly all probability."""

    history_length, batch_users, device = 3, 2, torch.device("cpu")

    def rank(self, histories, *, top_k, excluded):
        scores = torch.tensor([[8.0, -40.0, -60.0]]).expand(2, -1)
        return Ranked(torch.tensor([[4, 2, 9]]).expand(2, -1), scores)


def test_items_far_less_likely_than_the_first_are_still_listed():
    found = FusedRanker([Certain(), Certain()]).rank(HISTORIES, top_k=3, excluded=None)
    assert found.items.tolist() == [[4, 2, 9]] * 2
    torch.testing.assert_close(found.scores, torch.tensor([[8.0, -40.0, -60.0]] * 2))


def test_rankers_of_different_history_lengths_are_refused(rankers, make_model, random_codes):
    other = TrieRanker(make_model(random_codes(NUM_ITEMS), history_length=4), beam_width=64)
    with pytest.raises(ConfigError, match=r"lengths \[4, 8\].*history_length"):
        FusedRanker([*rankers, other])
