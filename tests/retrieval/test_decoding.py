import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from recgrit.data.recommendations import NO_ITEM
from recgrit.ranking import Histories
from recgrit.retrieval import frontier as frontiers
from recgrit.retrieval.decoding import LeafFilter, beam_search, score_all_items
from recgrit.retrieval.frontier import Frontier
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_tensors import TrieTensors
from recgrit.retrieval.trie_walk import TrieWalk

NUM_ITEMS = 50
# Numbers of users for which nodes are expanded one by one, and for which they are not.
FEW, MANY = 3, 40


SIZES_AND_SETTINGS = [
    ((60,), {}),
    ((4, 4, 4), {}),
    ((3, 3, 2, 2, 6), {}),
    ((3, 3, 2, 2, 6), {"tree_levels": 2, "size": "constant"}),
    ((4, 4, 4), {"tree_levels": 0}),
    ((60,), {"size": "constant", "node_buckets": 61}),
    ((4, 4, 4), {"size": "constant", "node_buckets": 5}),
]


@pytest.fixture(params=[False, True], ids=["shapes of the data", "fixed shapes"])
def fixed_shapes(request, monkeypatch):
    """Run a test with shapes that depend on the data, and with the fixed shapes of a GPU."""
    monkeypatch.setattr(TrieTensors, "fixed_shapes", request.param)
    return request.param


in_both_shapes = pytest.mark.usefixtures("fixed_shapes")


@pytest.fixture(scope="module", params=SIZES_AND_SETTINGS, ids=str)
def model(request, make_model, random_codes):
    sizes, settings = request.param
    return make_model(random_codes(NUM_ITEMS, sizes), **settings)


@pytest.fixture(scope="module")
def vectors(model):
    """Return the node vectors as a ranker gets them: of all nodes, or computed on demand."""
    with torch.no_grad():
        return model.nodes.table()


def draw_states(num_users):
    return torch.randn(num_users, 16, generator=torch.Generator().manual_seed(num_users))


def draw_histories(num_users, seed=1):
    """Draw histories of different lengths, with repeats. The model reads them as seen items."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (num_users,), generator=generator)
    return Histories(torch.randint(NUM_ITEMS, (num_users, 12), generator=generator), lengths)


def draw_seen(model, num_users):
    histories = draw_histories(num_users)
    return model.find_seen(histories.items, histories.present)


def walk_from(model, states, vectors):
    return TrieWalk(model, vectors, states, draw_seen(model, len(states)))


def search(model, states, vectors, **settings):
    return beam_search(model.trie, walk_from(model, states, vectors), **settings)


def score(model, states, vectors):
    return score_all_items(model.trie, walk_from(model, states, vectors))


def draw_exclusions(model, num_users, share, seed=0):
    """Draw items to exclude: as a mask, and as a filter of lists with repeats and padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_users, NUM_ITEMS, generator=generator) < share
    items = torch.arange(NUM_ITEMS).expand(num_users, -1)
    rows = []
    for row in range(num_users):
        twice = items[row][mask[row]].repeat(2)
        shuffle = torch.randperm(len(twice), generator=generator)
        rows.append(torch.nn.functional.pad(twice[shuffle], (0, 2 * NUM_ITEMS - len(twice))))
    excluded = Histories(torch.stack(rows), 2 * mask.sum(dim=1))
    return mask, LeafFilter.build(model.trie, excluded=excluded, allowed=None)


def best(scores, k):
    top = scores.topk(min(k, scores.shape[1]), dim=-1)
    return top.indices.masked_fill(top.values == float("-inf"), NO_ITEM), top.values


@in_both_shapes
@pytest.mark.parametrize("num_users", [FEW, MANY])
def test_exact_scores_are_those_of_plain_loops(model, vectors, num_users, log_probability):
    states = draw_states(num_users)
    scores = score(model, states, vectors)
    for user in (0, num_users - 1):
        histories = draw_histories(num_users)
        history = histories.items[user, : histories.lengths[user]].tolist()
        expected = [
            log_probability(model, states[user], item, history=history) for item in range(NUM_ITEMS)
        ]
        torch.testing.assert_close(scores[user], torch.stack(expected), atol=1e-4, rtol=1e-4)


@in_both_shapes
@pytest.mark.parametrize("num_users", [FEW, MANY])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 0.95])
def test_a_full_beam_ranks_exactly(model, vectors, num_users, share):
    states = draw_states(num_users)
    scores = score(model, states, vectors)
    leaf_filter = None
    if share is not None:
        mask, leaf_filter = draw_exclusions(model, num_users, share)
        scores = scores.masked_fill(mask, float("-inf"))
    found = search(
        model,
        states,
        vectors,
        beam_width=NUM_ITEMS,
        top_k=NUM_ITEMS,
        leaf_filter=leaf_filter,
    )
    items, values = best(scores, NUM_ITEMS)
    torch.testing.assert_close(found.scores, values, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.items, items)


@in_both_shapes
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("top_k", [1, 5])
def test_a_narrow_beam_fills_its_list_with_allowed_items(model, vectors, share, top_k):
    states = draw_states(MANY)
    mask, leaf_filter = draw_exclusions(model, MANY, share, seed=4)
    scores = score(model, states, vectors)
    found = search(
        model,
        states,
        vectors,
        beam_width=top_k,
        top_k=top_k,
        leaf_filter=leaf_filter,
    )
    for user in range(MANY):
        items = found.items[user][found.items[user] != NO_ITEM]
        assert len(items) == min(top_k, int((~mask[user]).sum()))
        assert len(items.unique()) == len(items)
        assert not mask[user, items].any()
        values = found.scores[user]
        torch.testing.assert_close(values[: len(items)], scores[user, items], atol=1e-4, rtol=1e-4)
        assert (values[len(items) :] == float("-inf")).all()
        assert values.tolist() == sorted(values.tolist(), reverse=True)


@in_both_shapes
def test_all_items_excluded_but_one(model, vectors):
    """The list has only the remaining item, with its own probability."""
    states = draw_states(1).expand(NUM_ITEMS, -1)
    items = torch.arange(NUM_ITEMS).expand(NUM_ITEMS, -1)
    others = torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(items)])
    lengths = torch.full((NUM_ITEMS,), NUM_ITEMS - 1)
    leaf_filter = LeafFilter.build(model.trie, excluded=Histories(others, lengths), allowed=None)
    found = search(
        model,
        states,
        vectors,
        beam_width=4,
        top_k=3,
        leaf_filter=leaf_filter,
    )
    assert found.items[:, 0].tolist() == list(range(NUM_ITEMS))
    assert (found.items[:, 1:] == NO_ITEM).all()
    # Probabilities are not renormalized over the remaining items.
    exact = score(model, states, vectors).diagonal()
    torch.testing.assert_close(found.scores[:, 0], exact, atol=1e-4, rtol=1e-4)


@in_both_shapes
def test_all_items_excluded(model, vectors):
    items = torch.arange(NUM_ITEMS).expand(2, -1)
    everything = Histories(items, torch.tensor([NUM_ITEMS, NUM_ITEMS]))
    leaf_filter = LeafFilter.build(model.trie, excluded=everything, allowed=None)
    found = search(
        model,
        draw_states(2),
        vectors,
        beam_width=4,
        top_k=3,
        leaf_filter=leaf_filter,
    )
    assert (found.items == NO_ITEM).all()


@in_both_shapes
@pytest.mark.parametrize("num_allowed", [1, 2, 7, NUM_ITEMS])
@pytest.mark.parametrize("share", [None, 0.5])
def test_lists_have_only_allowed_items_and_are_full(model, vectors, num_allowed, share):
    """The filter of allowed items also works together with excluded items of single users."""
    states = draw_states(MANY)
    allowed = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    allowed[torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(3))[:num_allowed]] = 1
    mask = torch.zeros(MANY, NUM_ITEMS, dtype=torch.bool)
    excluded = None
    if share is not None:
        mask = torch.rand(MANY, NUM_ITEMS, generator=torch.Generator().manual_seed(5)) < share
        order = (~mask).int().argsort(dim=1, stable=True)  # Excluded items come first.
        excluded = Histories(order, mask.sum(dim=1))
    leaf_filter = LeafFilter.build(model.trie, excluded=excluded, allowed=allowed)
    found = search(model, states, vectors, beam_width=5, top_k=5, leaf_filter=leaf_filter)
    scores = score(model, states, vectors)
    for user in range(MANY):
        items = found.items[user][found.items[user] != NO_ITEM]
        left = allowed & ~mask[user]
        assert len(items) == min(5, int(left.sum()))
        assert left[items].all()
        torch.testing.assert_close(
            found.scores[user, : len(items)], scores[user, items], atol=1e-4, rtol=1e-4
        )


def test_no_filter_is_none(model):
    assert LeafFilter.build(model.trie, excluded=None, allowed=None) is None


@pytest.mark.parametrize("num_users", [FEW, MANY])
def test_both_ways_to_expand_agree(model, vectors, num_users, monkeypatch):
    states = draw_states(num_users)
    num_nodes = model.trie.num_nodes
    nodes = torch.randint(num_nodes, (num_users, 7), generator=torch.Generator().manual_seed(0))
    nodes[0] = num_nodes - 1  # This node is a leaf, which has no children.
    chosen = torch.randn(num_users, 7, 16)
    frontier = Frontier.build(model.trie.child_starts, nodes)
    results = []
    # With 0, nodes are always expanded one by one. With 10**9, they never are.
    for least in (0, 10**9):
        monkeypatch.setattr(frontiers, "MIN_SCORES_OF_A_NODE", least)
        log_probs = walk_from(model, states, vectors).expand(chosen, frontier, 0)
        _, leaf_filter = draw_exclusions(model, num_users, 0.3)
        ranked = search(
            model,
            states,
            vectors,
            beam_width=9,
            top_k=9,
            leaf_filter=leaf_filter,
        )
        scores = score(model, states, vectors)
        results.append((log_probs, ranked.items, ranked.scores, scores))
    for grouped, sampled in zip(*results, strict=True):
        torch.testing.assert_close(grouped, sampled, atol=1e-5, rtol=1e-5)
    log_probs = results[0][0]
    assert (log_probs[0] == float("-inf")).all()
    assert log_probs.isfinite().equal(frontier.present)


def test_a_frontier_finds_its_children_and_no_others(model):
    nodes = torch.randint(
        model.trie.num_nodes, (MANY, 7), generator=torch.Generator().manual_seed(2)
    )
    nodes = nodes.sort(dim=-1).values.unique_consecutive(dim=-1)
    frontier = Frontier.build(model.trie.child_starts, nodes)
    wanted = torch.arange(model.trie.num_nodes).expand(MANY, -1)
    found = frontier.find(wanted)
    for user in range(MANY):
        below = [
            (beam, child)
            for beam, node in enumerate(nodes[user].tolist())
            for child in range(model.trie.child_starts[node], model.trie.child_starts[node + 1])
        ]
        assert {child for _, child in below} == set(wanted[user][found[user] >= 0].tolist())
        for beam, child in below:
            column = int(found[user, child])
            assert column // frontier.width == beam or nodes[user].tolist().count(nodes[user, beam])
            assert frontier.nodes_of(torch.tensor([[column]]).expand(MANY, 1))[user, 0] == child


def test_a_beam_never_beats_the_exact_ranking_and_widens_towards_it(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS))
    vectors, states = model.nodes(), draw_states(MANY)
    _, exact = best(score(model, states, vectors), 5)
    found = [
        search(model, states, vectors, beam_width=width, top_k=5).scores
        for width in (5, 15, NUM_ITEMS)
    ]
    assert (found[0] <= exact + 1e-5).all()
    assert found[0].sum() < found[1].sum() <= found[2].sum() + 1e-4


@in_both_shapes
def test_a_list_longer_than_the_catalogue_ends_without_items(model, vectors):
    found = search(
        model,
        draw_states(2),
        vectors,
        beam_width=99,
        top_k=99,
    )
    assert found.items.shape == found.scores.shape == (2, 99)
    assert found.items[:, :NUM_ITEMS].sort().values.tolist() == [list(range(NUM_ITEMS))] * 2
    assert (found.items[:, NUM_ITEMS:] == NO_ITEM).all()


def test_a_beam_narrower_than_the_list_is_refused(model, vectors):
    with pytest.raises(ValueError, match=r"top_k \(5\) must not exceed beam_width \(4\)"):
        search(
            model,
            draw_states(2),
            vectors,
            beam_width=4,
            top_k=5,
        )


@pytest.mark.parametrize("most_copied", [1, 2**20])
@pytest.mark.parametrize("trie_softmax", [True, False])
def test_fixed_shapes_change_nothing(
    make_model, random_codes, make_split, monkeypatch, trie_softmax, most_copied
):
    """The number of vectors that are copied at once changes neither lists nor scores."""
    monkeypatch.setattr(frontiers, "MAX_COPIED", most_copied)
    codes = random_codes(NUM_ITEMS, (6, 3, 2, 3))
    model = make_model(
        codes, trie_softmax=trie_softmax, neighbours=["near", "next"], history_length=12
    )
    rng = np.random.default_rng(0)
    model.neighbours.count(make_split(rng.integers(0, NUM_ITEMS, (60, 9)), NUM_ITEMS))
    allowed = torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(1)) < 0.7
    for limits in ({}, {"allowed": allowed}):
        found = []
        for fixed in (False, True):
            monkeypatch.setattr(TrieTensors, "fixed_shapes", fixed)
            ranker = TrieRanker(model, beam_width=12, **limits)
            for excluded in (None, draw_histories(MANY, seed=2)):
                found.append(ranker.rank(draw_histories(MANY), top_k=12, excluded=excluded))
        for of_data, of_fixed in zip(found[:2], found[2:], strict=True):
            assert torch.equal(of_data.items, of_fixed.items)
            torch.testing.assert_close(of_data.scores, of_fixed.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": "constant", "node_buckets": 11},
        {"trie_softmax": False},
        {"tree_levels": 1},
        {"tree_levels": 0},
    ],
    ids=["plain", "buckets", "all codes", "one tree level", "no tree level"],
)
@pytest.mark.parametrize("allowed", [None, torch.arange(NUM_ITEMS) % 3 > 0], ids=["all", "some"])
def test_ranking_with_fixed_shapes_reads_no_value_back(
    make_model, random_codes, fixed_shapes, settings, allowed
):
    """The tensors hold no numbers, so any operation that reads a number back fails."""
    model = make_model(
        random_codes(NUM_ITEMS, (6, 3, 2, 3)),
        neighbours=["near", "next", "alike"],
        history_length=12,
        **settings,
    )
    histories, excluded = draw_histories(MANY), draw_histories(MANY, seed=2)
    ranker = TrieRanker(model, beam_width=12, allowed=allowed)
    with FakeTensorMode(allow_non_fake_inputs=True) as empty:

        def rank():
            read, left_out = (
                Histories(empty.from_tensor(some.items), empty.from_tensor(some.lengths))
                for some in (histories, excluded)
            )
            return ranker.rank(read, top_k=12, excluded=left_out)

        if fixed_shapes:
            assert rank().items.shape == (MANY, 12)
        else:
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                rank()
