"""Test neighbours of three kinds and their fitted strengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recgrit.embedding.likeness import Likeness
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets
from recgrit.models.config import TransitionsConfig
from recgrit.models.transitions import Transitions
from recgrit.ranking import Histories, recommend_items
from recgrit.retrieval import strengths as module
from recgrit.retrieval.neighbours import (
    COUNTED_FROM,
    DISCOUNT,
    KINDS,
    ItemNeighbours,
    Strengths,
    find_next,
)
from recgrit.retrieval.strengths import LADDERS, fit_strengths
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_tensors import TrieTensors
from tests.small_models import build_inputs

NUM_ITEMS = 40
ALL = Strengths(mixture=0.3, near=0.2, next=0.4, alike=3.0)


@pytest.fixture(scope="module")
def split(make_split):
    rng = np.random.default_rng(0)
    return make_split(rng.integers(0, NUM_ITEMS, (60, 12)), NUM_ITEMS)


@pytest.fixture(scope="module")
def likeness():
    features = np.random.default_rng(1).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    return Likeness(features, None)


@pytest.fixture(scope="module")
def model(make_model, random_codes, split, likeness):
    model = make_model(random_codes(NUM_ITEMS), neighbours=KINDS)
    model.neighbours.count(split, likeness)
    model.neighbours.strengths = ALL
    return model


def measure(ranker, split, users):
    """Return NDCG@10 on the validation targets."""
    found = recommend_items(ranker, split, "valid", users, top_k=10, masked=False)
    return ndcg_at_k(ranks_of_targets(found.items, split.targets("valid", users)), 10).mean()


def test_shares_of_what_comes_next_sum_to_one(make_split):
    """Only training parts are counted, and an item is never its own successor."""
    found = find_next(make_split([[0, 1, 2, 2, 1, 4, 5], [0, 1, 0, 3, 3]], 6)).toarray()
    expected = np.zeros((6, 6))
    expected[0, 1] = 1
    expected[1, [2, 0]] = 0.5
    expected[2, 1] = 1
    np.testing.assert_allclose(found, expected)


def test_bonuses_are_those_of_plain_loops(model, split, likeness):
    histories = Histories(torch.tensor([[3, 5, 8], [4, 0, 0]]), torch.tensor([3, 1]))
    following = find_next(split).toarray()
    everything = np.arange(NUM_ITEMS)
    alike = likeness.find(everything, everything, NUM_ITEMS).toarray()
    strengths = replace(ALL, mixture=0.0, near=0.0)
    model.neighbours.strengths = strengths
    found = model.weigh_neighbours(histories)
    model.neighbours.strengths = ALL
    by_leaf = torch.zeros(2, NUM_ITEMS).scatter_add_(1, found.leaves.long(), found.bonuses)
    by_item = by_leaf[:, model.trie.paths[:, -1] - model.trie.first_leaf]
    for row, history in enumerate([[8, 5, 3], [4]]):
        trust = DISCOUNT ** np.arange(len(history))
        trust /= trust.sum()
        shares = {"next": trust @ following[history], "alike": trust @ alike[history]}
        expected = strengths.next * np.log1p(shares["next"] / COUNTED_FROM["next"])
        expected += strengths.alike * shares["alike"]
        expected[history] = 0
        np.testing.assert_allclose(by_item[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_wide_beam_finds_the_exact_list(model, fixed_shapes, monkeypatch):
    monkeypatch.setattr(TrieTensors, "fixed_shapes", fixed_shapes)
    histories = Histories(torch.tensor([[3, 5, 8, 3], [4, 0, 0, 0]]), torch.tensor([4, 1]))
    exact = TrieRanker(model, beam_width=None).rank(histories, top_k=12, excluded=None)
    beam = TrieRanker(model, beam_width=NUM_ITEMS).rank(histories, top_k=12, excluded=None)
    assert torch.equal(exact.items, beam.items)
    torch.testing.assert_close(exact.scores, beam.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["next", "alike"])
def test_the_narrowest_beam_finds_what_gets_a_bonus(make_model, random_codes, kind):
    model = make_model(random_codes(NUM_ITEMS), neighbours=[kind])
    items = torch.arange(NUM_ITEMS)
    getattr(model.neighbours, f"{kind}_items")[:, 0] = (items + 1) % NUM_ITEMS
    getattr(model.neighbours, f"{kind}_values")[:, 0] = 1
    model.neighbours.strengths = replace(ALL, mixture=0.0, **{kind: 12.0})
    histories = Histories(items.unsqueeze(-1), torch.ones_like(items))
    found = TrieRanker(model, beam_width=1).rank(histories, top_k=1, excluded=None)
    assert torch.equal(found.items[:, 0].long(), (items + 1) % NUM_ITEMS)


@pytest.mark.parametrize("at_hand", [ALL, Strengths(0.0, 0.0, 0.0, 0.0), Strengths(0.9, 0.4)])
def test_reranked_candidates_score_as_the_model_does(model, split, at_hand):
    """The scores do not depend on the strengths with which the candidates were found."""
    users = split.target_users("valid")
    ranker = TrieRanker(model, beam_width=NUM_ITEMS)
    model.neighbours.strengths = at_hand
    candidates = module._find_candidates(model.neighbours, ranker, split, users)
    others = [
        Strengths(0.3, 0.2, 0.4, 2.0),
        Strengths(),
        Strengths(0.5, 0.0, 0.3, 16.0),
        Strengths(0.0, 0.3, 0.0, 0.0),
    ]
    found = candidates.sum_ndcg(others)
    for strengths, ndcg in zip(others, found, strict=True):
        model.neighbours.strengths = strengths
        expected = measure(ranker, split, users)
        assert ndcg / len(users) == pytest.approx(expected, abs=1e-6)
    model.neighbours.strengths = ALL


def test_the_best_strengths_are_found(model, split, monkeypatch):
    users = split.target_users("valid")
    ranker = TrieRanker(model, beam_width=NUM_ITEMS)
    before = measure(ranker, split, users)
    fit_strengths(model.neighbours, ranker, split, seed=0)
    fitted = model.neighbours.strengths
    assert all(getattr(fitted, name) in LADDERS[name] for name in LADDERS)
    reached = measure(ranker, split, users)
    assert reached > before
    for name, ladder in LADDERS.items():
        for value in ladder:
            model.neighbours.strengths = replace(fitted, **{name: value})
            assert measure(ranker, split, users) <= reached + 1e-6
    model.neighbours.strengths = ALL


def test_informative_neighbours_get_a_strength_and_rank_well(make_split, cyclic):
    """Each item has one successor, while similarity is random. Only the former ranks well."""
    split = make_split(cyclic(num_items=NUM_ITEMS), NUM_ITEMS)
    features = np.random.default_rng(3).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    inputs = build_inputs(split, features=features)
    settings = TransitionsConfig(neighbours=["next", "alike"])
    fitted = Transitions.fit(inputs, split, settings, seed=0)
    assert fitted.model.neighbours.strengths.next > 0
    ranks = measure(fitted.model.ranker(), split, split.target_users("valid"))
    assert ranks > 0.99
    only_alike = Transitions.fit(
        inputs, split, TransitionsConfig(neighbours=["alike"]), seed=0
    ).model
    assert measure(only_alike.ranker(), split, split.target_users("valid")) < 0.3


def test_kinds_that_are_not_configured_have_no_table_and_no_strength(split, likeness):
    neighbours = ItemNeighbours(NUM_ITEMS, ["next"])
    neighbours.count(split, likeness)
    assert not any(name.startswith(("near", "alike")) for name in neighbours.state_dict())
    assert neighbours.strengths == Strengths(0.0, 0.0, Strengths().next, 0.0)
    neighbours = ItemNeighbours(NUM_ITEMS, ["alike"])
    assert neighbours.strengths == Strengths(0.0, 0.0, 0.0, Strengths().alike)


def test_strengths_are_saved_with_the_weights(model, make_model, random_codes):
    other = make_model(random_codes(NUM_ITEMS), neighbours=KINDS, seed=1)
    other.load_state_dict(model.state_dict())
    assert other.neighbours.strengths == ALL


def test_later_items_are_similar_in_both_directions(likeness, split):
    """The similarities equal those of a count that includes the later items."""
    known = np.arange(NUM_ITEMS) < 30
    late = ItemNeighbours(NUM_ITEMS, ["alike"])
    first = likeness.find(np.arange(30), np.arange(30), 20)
    first.resize((NUM_ITEMS, NUM_ITEMS))
    late._put("alike", first)
    late.add_items(likeness, known, ~known)
    at_once = ItemNeighbours(NUM_ITEMS, ["alike"])
    at_once.count(split, likeness)
    np.testing.assert_allclose(
        late._table("alike").toarray(), at_once._table("alike").toarray(), rtol=1e-5, atol=1e-6
    )


def test_an_item_without_counts_gets_the_successions_of_a_similar_item(make_split):
    split = make_split([[0, 1, 2, 3], [2, 0, 1, 3], [1, 2, 0, 3]], 5)
    features = np.eye(5, dtype=np.float32)
    features[4] = features[1]
    neighbours = ItemNeighbours(5, ["next"])
    neighbours.count(split, Likeness(features, None))
    found = neighbours._table("next").toarray()
    counted = find_next(split).toarray()
    np.testing.assert_allclose(found[:4, :4], counted[:4, :4], rtol=1e-6)
    np.testing.assert_allclose(found[:4, 4], counted[:4, 1], rtol=1e-6)
    np.testing.assert_allclose(found[4, :4], counted[1, :4], rtol=1e-6)
    assert found[0, 4] == 1
