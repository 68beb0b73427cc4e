"""Test node embeddings that share the rows of a table of a chosen size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recgrit.errors import ConfigError
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.ranking import Histories, recommend_items
from recgrit.retrieval.buckets import assign_buckets
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.decoding import score_all_items
from recgrit.retrieval.explaining import walk_to_item
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_walk import TrieWalk
from recgrit.semantic_ids.trie import build_trie
from tests.small_models import fit_retriever, loss_of

NUM_ITEMS = 40
SIZES = (4, 4, 4)


def draw_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    histories, targets = torch.randint(NUM_ITEMS, (2, 6, 8), generator=generator)
    return histories, targets, torch.rand(6, 8, generator=generator) < 0.6


def rank(model, top_k, beam_width):
    histories = Histories(draw_batch()[0], torch.full((6,), 8))
    return TrieRanker(model, beam_width=beam_width).rank(histories, top_k=top_k, excluded=None)


@st.composite
def tries(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = draw(st.lists(rows, min_size=1, max_size=60, unique=True))
    return sizes, build_trie(np.array(codes, dtype=np.int32))


@given(tries(), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_siblings_never_share_a_row(sizes_and_trie, spare):
    sizes, trie = sizes_and_trie
    rows = assign_buckets(trie, max(sizes) + spare)
    assert rows.min() >= 0
    assert rows.max() < max(sizes) + spare
    for first, end in zip(trie.child_starts, trie.child_starts[1:], strict=False):
        assert len(set(rows[first:end].tolist())) == end - first


@given(st.integers(0, 10**6), st.integers(8, 1000))
@settings(max_examples=30, deadline=None)
def test_rows_stay_when_items_are_added(seed, num_buckets):
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, 8, (60, 3)), axis=0).astype(np.int32)
    codes = rng.permutation(codes)
    trie = build_trie(codes)
    before = build_trie(codes[:20])
    rows, rows_before = assign_buckets(trie, num_buckets), assign_buckets(before, num_buckets)
    assert np.array_equal(rows[trie.paths[:20]], rows_before[before.paths])


def test_assigned_rows_never_change():
    """These numbers must never change, because another hash would make saved tables useless."""
    trie = build_trie(np.array([[0, 0, 1], [0, 2, 0], [1, 2, 0], [255, 7, 3]], dtype=np.int32))
    assert assign_buckets(trie, 65_536).tolist() == [
        0,
        0,
        1,
        255,
        52655,
        52657,
        26102,
        61861,
        32368,
        63255,
        37496,
        20137,
    ]


def test_rows_are_shared_evenly():
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 64, (40_000, 3)), axis=0).astype(np.int32)
    trie = build_trie(codes)
    first, end = trie.level_starts[2:4]
    counts = np.bincount(assign_buckets(trie, 256)[first:end], minlength=256)
    assert counts.max() < 2 * counts.mean()
    # Leaves are spread over the rows too, although each is an only child and all have the same
    # code.
    trie = build_trie(np.pad(codes, ((0, 0), (0, 1))).astype(np.int32))
    counts = np.bincount(assign_buckets(trie, 256)[-len(codes) :], minlength=256)
    assert counts.max() < 1.6 * counts.mean()
    assert counts.min() > 0.4 * counts.mean()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("buckets", [4, 13, 1000])
@pytest.mark.parametrize("kind", ["plain", "rest", "disambiguation"])
def test_vectors_of_some_nodes_are_those_of_all(
    make_model, random_codes, monkeypatch, buckets, kind, dropout
):
    """The loss and its gradients are the same, with and without randomly dropped embeddings."""
    train_items = torch.arange(NUM_ITEMS) % 7 > 0
    histories, targets, supervised = draw_batch()
    targets = torch.where(train_items[targets], targets, 1)
    model = make_model(
        random_codes(NUM_ITEMS, SIZES),
        SIZES,
        train_items=train_items,
        size="constant",
        node_buckets=buckets,
        node_dropout=dropout,
        tree_levels=2 if kind == "rest" else None,
        disambiguation_level=2 if kind == "disambiguation" else None,
    ).train()

    def learn():
        model.zero_grad()
        torch.manual_seed(4)
        loss = loss_of(model, histories, targets, supervised).value
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        return {"loss": loss.detach(), **gradients}

    asked = learn()
    of, every = model.nodes.of, torch.arange(model.trie.num_nodes)
    monkeypatch.setattr(model.nodes, "of", lambda nodes, dropped: of(every, dropped)[nodes.long()])
    torch.testing.assert_close(asked, learn(), atol=1e-6, rtol=1e-5)
    assert asked["nodes.node_embedding.weight"].abs().max() > 1e-3
    monkeypatch.undo()
    # The vectors that ranking computes for some nodes are also the same, in any shape.
    vectors = model.nodes()
    every = torch.arange(len(vectors)).flip(0)[: 2 * (len(vectors) // 2)].view(2, -1)
    torch.testing.assert_close(model.nodes.table().of(every), vectors[every])


def test_nodes_of_one_row_change_and_are_dropped_together(make_model, random_codes):
    model = make_model(
        random_codes(NUM_ITEMS, SIZES), SIZES, size="constant", node_buckets=8, node_dropout=0.5
    )
    rows, plain = model.nodes.node_rows, model.nodes()
    with torch.no_grad():
        model.nodes.node_embedding.weight[5] += 1
    changed = (model.nodes() != plain).any(dim=-1)
    assert torch.equal(changed, rows == 5)
    assert changed.sum() > 1
    dropped = model.train().nodes.draw_dropped()
    assert len(dropped) == 8
    own, vectors = model.nodes(), model.nodes(dropped)
    assert torch.equal((vectors != own).any(dim=-1), (rows < 8) & dropped[rows.clamp_max(7)])


def test_nodes_without_training_items_use_no_embedding(make_model, random_codes):
    train_items = torch.arange(NUM_ITEMS) > 3
    codes = random_codes(NUM_ITEMS, SIZES)
    model = make_model(codes, SIZES, train_items=train_items, size="constant", node_buckets=4)
    plain = make_model(codes, SIZES, train_items=train_items)
    others = torch.ones(len(model.nodes.node_rows), dtype=torch.bool)
    others[plain.nodes.own_nodes] = False
    assert others[model.trie.paths[:4, -1]].all()
    with torch.no_grad():
        before = model.nodes()
        model.nodes.node_embedding.weight.add_(1.0)
        assert torch.equal((model.nodes() == before).all(dim=-1), others)


def test_with_a_row_for_every_node_the_model_is_the_one_without_buckets(make_model, random_codes):
    codes = random_codes(NUM_ITEMS, SIZES)
    trie = build_trie(codes)
    spacious = next(
        size
        for size in range(1000, 20_000, 1000)
        if len(set(assign_buckets(trie, size)[1:].tolist())) == trie.num_nodes - 1
    )
    plain = make_model(codes, SIZES)
    hashed = make_model(codes, SIZES, size="constant", node_buckets=spacious)
    weights = plain.state_dict()
    rows = torch.zeros(spacious, 16)
    rows[hashed.nodes.node_rows[plain.nodes.own_nodes]] = weights["nodes.node_embedding.weight"]
    hashed.load_state_dict({**weights, "nodes.node_embedding.weight": rows})
    assert torch.equal(hashed.nodes(), plain.nodes())
    losses = [loss_of(model, *draw_batch()).value for model in (plain, hashed)]
    torch.testing.assert_close(*losses)
    ranked = [rank(model, 10, 20) for model in (plain, hashed)]
    assert torch.equal(ranked[0].items, ranked[1].items)
    torch.testing.assert_close(ranked[0].scores, ranked[1].scores)


@pytest.mark.parametrize("buckets", [4, 17])
def test_probabilities_sum_to_one_and_the_beam_finds_the_best(make_model, random_codes, buckets):
    model = make_model(random_codes(NUM_ITEMS, SIZES), SIZES, size="constant", node_buckets=buckets)
    exact, beam = rank(model, NUM_ITEMS, None), rank(model, NUM_ITEMS, NUM_ITEMS)
    torch.testing.assert_close(exact.scores.logsumexp(dim=-1), torch.zeros(6), atol=1e-5, rtol=0)
    assert exact.scores.exp().max() > 3 / NUM_ITEMS
    assert torch.equal(beam.items, exact.items)
    torch.testing.assert_close(beam.scores, exact.scores, atol=1e-5, rtol=1e-5)


def test_an_explanation_multiplies_to_the_probability(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS, SIZES), SIZES, size="constant", node_buckets=6)
    ranker = TrieRanker(model, beam_width=None)
    histories = Histories(draw_batch()[0][:1], torch.tensor([8]))
    ranked = ranker.rank(histories, top_k=NUM_ITEMS, excluded=None)
    for item, score in zip(ranked.items[0].tolist(), ranked.scores[0].tolist(), strict=True):
        steps = walk_to_item(ranker, histories, item)
        chosen = [step.probabilities[step.chosen] for step in steps]
        assert np.log(chosen).sum() == pytest.approx(score, abs=1e-4)


def test_the_loss_is_minus_log_p(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS, SIZES), SIZES, size="constant", node_buckets=6)
    histories, targets, supervised = draw_batch()
    vectors = model.nodes.table()
    states = model.encode(histories, vectors)[supervised]
    users, positions = supervised.nonzero(as_tuple=True)
    seen = model.find_seen(histories[users], torch.arange(8) <= positions[:, None])
    exact = score_all_items(model.trie, TrieWalk(model, vectors, states, seen))
    expected = -exact.gather(1, targets[supervised].unsqueeze(1)).mean()
    found = loss_of(model, histories, targets, supervised).value
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("buckets", [0, 16])
def test_a_small_table_learns(make_table, random_codes, make_split, cyclic, make_config, buckets):
    split = make_split(cyclic(num_items=NUM_ITEMS), NUM_ITEMS)
    table = make_table(random_codes(NUM_ITEMS, SIZES), SIZES)
    config = make_config(epochs=6, size="constant", node_buckets=buckets)
    model = fit_retriever(table, split, None, config, seed=0).model
    users = split.target_users("test")
    found = recommend_items(
        TrieRanker(model, beam_width=20), split, "test", users, top_k=10, masked=False
    )
    ranks = ranks_of_targets(found.items, split.targets("test", users))
    assert recall_at_k(ranks, 10).mean() > 0.9
    assert recall_at_k(ranks, 1).mean() > 0.5


def test_a_table_smaller_than_a_codebook_is_refused(make_model, random_codes):
    codes = random_codes(NUM_ITEMS, (4, 9, 4))
    with pytest.raises(
        ConfigError,
        match=r"retriever.node_buckets is 8, but the codebook of level 2 has 9 codes.*at least 9",
    ):
        make_model(codes, (4, 9, 4), size="constant", node_buckets=8)
    make_model(codes, (4, 9, 4), size="constant", node_buckets=9)
    # Codes of a disambiguation level count too if training reaches them.
    numbered = [[0, i] for i in range(12)]
    with pytest.raises(ConfigError, match="level 2 has 12 codes"):
        make_model(numbered, (4, 12), disambiguation_level=1, size="constant", node_buckets=11)
    trained = torch.arange(12) < 11
    make_model(
        numbered,
        (4, 12),
        disambiguation_level=1,
        size="constant",
        node_buckets=11,
        train_items=trained,
    )


def test_parameters_are_counted_by_part(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS, SIZES), SIZES, size="constant", node_buckets=7)
    parts = model.num_parameters()
    assert parts["embeddings of node buckets"] == 7 * 16
    assert not any(name.startswith("embeddings of nodes") for name in parts)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


def test_node_buckets_without_the_constant_size_are_refused():
    with pytest.raises(ValidationError, match="set size to constant"):
        RetrieverConfig(size="prefixes", node_buckets=8192)
