from dataclasses import replace

import numpy as np
import pytest
import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.embedding.likeness import Likeness
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.ranking import Histories, recommend_items
from recgrit.retrieval.neighbours import (
    COUNTED_FROM,
    DISCOUNT,
    MAX_ASKED,
    NUM_STAND_INS,
    SHARPNESS,
    ItemNeighbours,
    Strengths,
)
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_tensors import TrieTensors
from tests.small_models import build_retriever, fit_retriever

NUM_ITEMS = 40
WEIGHT = 0.3
MIXED = Strengths(mixture=WEIGHT, near=0.0, next=0.0, alike=0.0)
HISTORIES = Histories(
    torch.tensor([[3, 5, 3, 1, 8, 9], [4, 0, 0, 0, 0, 0], [39, 39, 0, 0, 0, 0]]),
    torch.tensor([6, 1, 2]),
)


@pytest.fixture(scope="module")
def split(make_split):
    """Build a split in which item 39 is in no training part, so it has no neighbours."""
    rng = np.random.default_rng(0)
    return make_split([rng.integers(0, NUM_ITEMS - 1, n) for n in (45, 60, 52)], NUM_ITEMS)


@pytest.fixture(scope="module")
def model(make_model, random_codes, split):
    model = make_model(random_codes(NUM_ITEMS), neighbours=["near"])
    model.neighbours.strengths = MIXED
    model.neighbours.count(split)
    return model


def shares_by_hand(model, histories):
    """Compute the share of each item after each history in plain loops."""
    shares = np.zeros((len(histories.items), NUM_ITEMS))
    for row, (items, length) in enumerate(zip(histories.items, histories.lengths, strict=True)):
        history = items[:length].tolist()
        for age, item in enumerate(history[::-1][:MAX_ASKED]):
            for near, value in zip(
                model.neighbours.near_items[item].tolist(),
                model.neighbours.near_values[item].tolist(),
                strict=True,
            ):
                shares[row, near] += DISCOUNT**age * value
        shares[row, history] = 0
        shares[row] **= SHARPNESS
        if shares[row].sum():
            shares[row] *= WEIGHT / shares[row].sum()
    return shares


def test_shares_are_those_of_plain_loops(model):
    # This history is longer than the number of items whose neighbours are read.
    long = torch.arange(2 * MAX_ASKED).expand(1, -1)
    for histories in (HISTORIES, Histories(long, torch.tensor([long.shape[1]]))):
        found = model.weigh_neighbours(histories)
        by_leaf = torch.zeros(len(histories.items), NUM_ITEMS, dtype=torch.float64)
        by_leaf.scatter_add_(1, found.leaves.long(), found.weights)
        by_item = by_leaf[:, model.trie.paths[:, -1] - model.trie.first_leaf]
        np.testing.assert_allclose(by_item, shares_by_hand(model, histories), atol=1e-7)


def test_what_is_near_nothing_gets_no_share(model):
    totals = model.weigh_neighbours(HISTORIES).weights.sum(dim=-1)
    assert totals.tolist() == pytest.approx([WEIGHT, WEIGHT, 0])


def test_probabilities_are_mixed_and_sum_to_one(model, make_model, random_codes):
    # This model has the same weights but no neighbours.
    alone = make_model(random_codes(NUM_ITEMS))
    mixed, unmixed = (probabilities(m, HISTORIES) for m in (model, alone))
    shares = shares_by_hand(model, HISTORIES)
    expected = unmixed * (1 - shares.sum(axis=1, keepdims=True)) + shares
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)


def test_a_boost_is_a_power_of_what_the_neighbours_say(model, monkeypatch):
    before = probabilities(model, HISTORIES)
    monkeypatch.setattr(model.neighbours, "strengths", replace(MIXED, near=0.4))
    said = shares_by_hand(model, HISTORIES) / WEIGHT
    expected = before * (1 + said / COUNTED_FROM["near"]) ** 0.4
    np.testing.assert_allclose(probabilities(model, HISTORIES), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_the_narrowest_beam_finds_what_is_boosted(
    make_model, random_codes, fixed_shapes, monkeypatch
):
    """A prefix gets the boost of the items below it, even if the model finds it unlikely."""
    monkeypatch.setattr(TrieTensors, "fixed_shapes", fixed_shapes)
    model = make_model(random_codes(NUM_ITEMS), neighbours=["near"])
    items = torch.arange(NUM_ITEMS)
    model.neighbours.near_items[:, 0] = (items + 1) % NUM_ITEMS
    model.neighbours.near_values[:, 0] = 1
    histories = Histories(items.unsqueeze(-1), torch.ones_like(items))
    found = TrieRanker(model, beam_width=1).rank(histories, top_k=1, excluded=None)
    assert torch.equal(found.items[:, 0].long(), (items + 1) % NUM_ITEMS)


def probabilities(model, histories):
    """Return the probabilities of all items, in the order of the items."""
    found = TrieRanker(model, beam_width=None).rank(histories, top_k=NUM_ITEMS, excluded=None)
    return found.scores.exp().gather(1, found.items.argsort()).numpy()


@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize("boost", [0.0, 0.4])
def test_a_wide_beam_finds_the_exact_list(model, share, boost, monkeypatch):
    monkeypatch.setattr(model.neighbours, "strengths", replace(MIXED, near=boost))
    excluded = None
    if share:
        draws = torch.rand(3, NUM_ITEMS, generator=torch.Generator().manual_seed(0)) < share
        items = torch.arange(NUM_ITEMS).expand(3, -1)
        excluded = Histories(items.gather(1, (~draws).long().argsort(stable=True)), draws.sum(1))
    exact = TrieRanker(model, beam_width=None).rank(HISTORIES, top_k=12, excluded=excluded)
    beam = TrieRanker(model, beam_width=NUM_ITEMS).rank(HISTORIES, top_k=12, excluded=excluded)
    assert torch.equal(exact.items, beam.items)
    torch.testing.assert_close(exact.scores, beam.scores, rtol=1e-4, atol=1e-5)


def test_a_narrow_beam_lists_as_many_items_as_are_left(model):
    allowed = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    allowed[[2, 17, 30]] = True
    found = TrieRanker(model, beam_width=10, allowed=allowed).rank(
        HISTORIES, top_k=10, excluded=None
    )
    for row in found.items.tolist():
        assert set(row) == {2, 17, 30, NO_ITEM}
        assert row[3:] == [NO_ITEM] * 7


def test_neighbours_are_saved_with_the_weights(model, make_model, random_codes):
    other = make_model(random_codes(NUM_ITEMS), neighbours=["near"], seed=1)
    other.load_state_dict(model.state_dict())
    first, second = (
        TrieRanker(m, beam_width=20).rank(HISTORIES, top_k=5, excluded=None) for m in (model, other)
    )
    assert torch.equal(first.scores, second.scores)


def test_only_training_parts_are_counted(make_split, make_model, random_codes):
    model = make_model(random_codes(6), neighbours=["near"])
    model.neighbours.count(make_split([[0, 1, 2, 3], [1, 0, 4, 5]], 6))
    near = {
        (item, int(other))
        for item in range(6)
        for other in model.neighbours.near_items[item][model.neighbours.near_values[item] > 0]
    }
    assert near == {(0, 1), (1, 0)}


@pytest.fixture(scope="module")
def pairs(make_split):
    """Draw pairs of items.

    The two items of a pair are adjacent, in any order. The next pair is random.
    """
    rng = np.random.default_rng(0)
    first = np.stack([rng.permutation(NUM_ITEMS // 2)[:4] for _ in range(60)])
    together = np.stack([first, first + NUM_ITEMS // 2], axis=-1)
    swapped = rng.random((60, 4)) < 0.5
    together[swapped] = together[swapped][:, ::-1]
    return make_split(together.reshape(60, 8), NUM_ITEMS)


@pytest.mark.parametrize(("kinds", "low", "high"), [((), 0.0, 0.6), (("near",), 0.9, 1.0)])
def test_rare_pairs_are_remembered(pairs, make_table, random_codes, make_config, kinds, low, high):
    table = make_table(random_codes(NUM_ITEMS))
    config = make_config(epochs=1, neighbours=kinds)
    trained = fit_retriever(table, pairs, None, config, seed=0)
    users = pairs.target_users("test")
    ranker = TrieRanker(trained.model, beam_width=20)
    found = recommend_items(ranker, pairs, "test", users, top_k=3, masked=False)
    ranks = ranks_of_targets(found.items, pairs.targets("test", users))
    assert low <= recall_at_k(ranks, 3).mean() <= high


def test_a_model_without_neighbours_saves_none(make_table, random_codes, make_config, split):
    model = build_retriever(
        make_table(random_codes(NUM_ITEMS)), split, None, make_config(neighbours=())
    )
    assert model.neighbours is None
    assert not any("neighbours" in name for name in model.state_dict())


@pytest.fixture
def uncounted(make_model, random_codes, make_split):
    """Build a model in which items 0 to 4 follow one another in a ring.

    Item 5 is similar to item 0. Item 6 is similar to no item with counts.
    """
    ring = [[0, 1, 2, 3, 4] * 3, [2, 3, 4, 0, 1] * 3]
    features = np.eye(7, 6, dtype=np.float32)
    features[5] = features[0] + 0.1 * features[5]
    features[6] = 0
    model = make_model(random_codes(7), neighbours=["near"])
    return model, make_split(ring, 7), features


def similarities_of(model):
    """Return the similarities of all items, ``[N, N]``."""
    rows = torch.arange(len(model.neighbours.near_items)).unsqueeze(-1)
    found = torch.zeros(len(rows), len(rows))
    found.index_put_((rows, model.neighbours.near_items.long()), model.neighbours.near_values, True)
    return found


def test_an_item_without_counts_gets_the_neighbours_of_a_similar_item(uncounted):
    model, split, features = uncounted
    model.neighbours.count(split)
    counted = similarities_of(model)
    model.neighbours.count(split, Likeness(features, None))
    found = similarities_of(model)
    typical = counted.amax(dim=1)[:5].mean()
    cosine = 1 / np.hypot(1, 0.1)
    expected = counted[0].clone()
    expected[0] = typical * cosine
    torch.testing.assert_close(found[5, :5], expected[:5])
    torch.testing.assert_close(found[:5, 5], expected[:5], msg="as near from the other side")
    torch.testing.assert_close(found[:5, :5], counted[:5, :5], msg="others stay as they were")
    assert not found[6].any(), "what looks like nothing is near nothing"
    assert not found[:, 6].any()


def test_an_item_without_counts_is_recommended_after_the_one_it_looks_like(uncounted):
    model, split, features = uncounted
    after = Histories(torch.tensor([[0]]), torch.tensor([1]))
    model.neighbours.count(split)
    before = probabilities(model, after)[0, 5]
    model.neighbours.count(split, Likeness(features, None))
    assert probabilities(model, after)[0, 5] > before + 0.2 * WEIGHT


def test_features_change_nothing_if_all_items_have_counts(model, split, random_codes, make_model):
    everything = make_model(random_codes(NUM_ITEMS - 1), neighbours=["near"])
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_ITEMS - 1, 8)).astype(np.float32)
    has_counts = split.train_item_counts()[: NUM_ITEMS - 1] > 0
    assert has_counts.all()
    everything.neighbours.near_items.copy_(model.neighbours.near_items[: NUM_ITEMS - 1])
    everything.neighbours.near_values.copy_(model.neighbours.near_values[: NUM_ITEMS - 1])
    everything.neighbours.add_items(Likeness(features, None), has_counts, ~has_counts)
    torch.testing.assert_close(
        everything.neighbours.near_values, model.neighbours.near_values[: NUM_ITEMS - 1]
    )


def test_many_similar_items_do_not_replace_counted_neighbours(make_model, random_codes, split):
    """Many added variants of one item do not replace its counted neighbours."""
    num_added, rng = 20, np.random.default_rng(0)
    num_all = NUM_ITEMS + num_added
    model = make_model(random_codes(num_all), neighbours=["near"])
    alone = make_model(random_codes(NUM_ITEMS), neighbours=["near"])
    alone.neighbours.count(split)
    model.neighbours.near_items[:NUM_ITEMS] = alone.neighbours.near_items
    model.neighbours.near_values[:NUM_ITEMS] = alone.neighbours.near_values
    features = rng.normal(size=(num_all, 8)).astype(np.float32)
    features[NUM_ITEMS:] = features[3] + 0.01 * features[NUM_ITEMS:]
    added = np.arange(num_all) >= NUM_ITEMS
    listed = added & (np.arange(num_all) != NUM_ITEMS + 7)
    before = similarities_of(model)[:NUM_ITEMS, :NUM_ITEMS]
    model.neighbours.add_items(Likeness(features, None), ~added, listed)
    found = similarities_of(model)
    new = (found[:NUM_ITEMS, NUM_ITEMS:] > 0).sum(dim=1)
    assert new.max() == NUM_STAND_INS
    assert new[3] == NUM_STAND_INS
    kept = (found[:NUM_ITEMS, :NUM_ITEMS] > 0).sum(dim=1)
    assert (kept >= torch.minimum((before > 0).sum(dim=1), torch.tensor(45))).all()
    assert not found[:, NUM_ITEMS + 7].any(), "what is not listed is nobody's neighbour"
    assert (found[NUM_ITEMS:, 3] > 0).sum() == num_added - 1, "each has the item it looks like"


@pytest.mark.parametrize("item", [-1, 9, 2**30])
def test_a_checkpoint_that_names_other_items_is_refused(item):
    neighbours = ItemNeighbours(9)
    state = ItemNeighbours(9).state_dict()
    neighbours.load_state_dict(state)
    state["near_items"][3, 1] = item
    with pytest.raises(ValueError, match="there are 9 items"):
        neighbours.load_state_dict(state)
