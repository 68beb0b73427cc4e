"""Compare the plan of a training step with plain loops over its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recgrit.ranking import Batch
from recgrit.retrieval.ragged_products import ragged_products
from recgrit.retrieval.step_plan import StepPlanner
from recgrit.semantic_ids.trie import build_trie


def draw_ids(num_items, sizes, seed):
    draw = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(*[np.arange(size) for size in sizes]), axis=-1)
    return draw.permutation(every.reshape(-1, len(sizes)))[:num_items].astype(np.int32)


@st.composite
def batches(draw):
    """Draw padded histories with repeated items and a mask of supervised positions."""
    num_items = draw(st.integers(2, 30))
    num_users, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    numbers = st.integers(0, num_items - 1)
    histories = np.array(
        draw(st.lists(numbers, min_size=num_users * length, max_size=num_users * length))
    ).reshape(num_users, length)
    lengths = np.array(
        draw(st.lists(st.integers(1, length), min_size=num_users, max_size=num_users))
    )
    inside = np.arange(length) < lengths[:, None]
    histories = np.where(inside, histories, 0)
    counts = np.array(draw(st.lists(st.booleans(), min_size=inside.size, max_size=inside.size)))
    positions = np.flatnonzero(inside.reshape(-1) & counts)
    targets = np.array(draw(st.lists(numbers, min_size=len(positions), max_size=len(positions))))
    return num_items, Batch(
        torch.from_numpy(histories), torch.from_numpy(positions),
        torch.from_numpy(targets.astype(np.int64)),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    batches(), st.sampled_from([(3, 4, 4), (32,), (2, 2, 2, 4)]), st.booleans(), st.integers(1, 2)
)
def test_a_plan_is_what_its_definition_says(found, sizes, all_train, fewest):
    num_items, batch = found
    trie = build_trie(draw_ids(num_items, sizes, seed=num_items))
    train = np.ones(num_items, dtype=bool)
    if not all_train:  # Some items occur only in histories, so they are no candidates.
        train[np.setdiff1d(np.arange(num_items), batch.targets.numpy())[::2]] = False
    planner = StepPlanner(trie, trie.restrict(train), fewest=fewest, find_seen=True)
    plan = planner.plan(batch)
    asked = plan.asked.numpy()
    assert (np.diff(asked) > 0).all()
    firsts = np.cumsum(plan.level_sizes) - plan.level_sizes
    reachable = set(trie.paths[train].ravel().tolist())
    paths = trie.paths[batch.targets.numpy()]
    for level, choice in enumerate(plan.levels):
        rows = {}
        scores = np.full(len(choice.open) * choice.width, -1)
        nodes = asked[firsts[level + 1] + choice.nodes.numpy()]
        if level == 0:
            scores = np.tile(nodes, len(choice.open))
        else:
            scores[choice.places.numpy()] = nodes
            assert (np.diff(choice.nodes.numpy()[choice.by_node.numpy()]) >= 0).all()
        table = scores.reshape(len(choice.open), choice.width)
        seen = set(choice.seen.tolist())
        assert len(seen) == len(choice.seen)
        for target, (user, end) in enumerate(
            zip(batch.users.tolist(), batch.ends.tolist(), strict=True)
        ):
            parent = 0 if level == 0 else int(paths[target, level - 1])
            children = range(trie.child_starts[parent], trie.child_starts[parent + 1])
            children = [child for child in children if child in reachable]
            if len(children) < fewest:
                assert target not in choice.open.tolist()
                continue
            row = choice.open.tolist().index(target)
            rows[target] = row
            assert [node for node in table[row].tolist() if node >= 0] == children
            assert table[row, choice.columns[row]] == paths[target, level]
            assert choice.parents[row] == parent
            held = set(batch.histories[user, : end + 1].tolist())
            for column, child in enumerate(children):
                below = trie.leaf_items[trie.leaf_starts[child] : trie.leaf_ends[child]]
                known = set(below.tolist()) <= held
                assert (row * choice.width + column in seen) == known
        assert len(rows) == len(choice.open)


@settings(max_examples=50, deadline=None)
@given(batches())
def test_bags_of_a_plan_contain_the_nodes_of_paths(found):
    num_items, batch = found
    trie = build_trie(draw_ids(num_items, (3, 4, 4), seed=1))
    plan = StepPlanner(
        trie, trie.restrict(np.ones(num_items, dtype=bool)), fewest=2, find_seen=False
    ).plan(batch)
    nodes = plan.asked.numpy()[plan.bags.numpy()]
    found_bags = [part.tolist() for part in np.split(nodes, plan.bag_starts.numpy()[1:])]
    expected = trie.paths[batch.histories.numpy()].reshape(-1, 3).tolist()
    paths = trie.paths[batch.targets.numpy()]
    for level in (1, 2):
        expected += paths[:, :level].tolist()
    assert found_bags == expected


@pytest.mark.parametrize("num_candidates", [0, 1, 40])
def test_ragged_products_are_those_of_a_dense_product(num_candidates):
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(7, 5, generator=draw).requires_grad_()
    vectors = torch.randn(9, 5, generator=draw).requires_grad_()
    rows = torch.randint(7, (num_candidates,), generator=draw).sort().values
    nodes = torch.randint(9, (num_candidates,), generator=draw)
    by_node = nodes.argsort(stable=True)
    weights = torch.randn(num_candidates, generator=draw)

    def gradients(products):
        return torch.autograd.grad((products * weights).sum(), (queries, vectors))

    found = ragged_products(queries, vectors, rows, nodes, by_node)
    expected = (queries @ vectors.T)[rows, nodes]
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b)
