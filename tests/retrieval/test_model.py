import numpy as np
import pytest
import torch

from recgrit.retrieval.decoding import score_all_items
from recgrit.retrieval.frontier import ragged_index
from recgrit.retrieval.trie_walk import TrieWalk
from tests.small_models import loss_of, losses_by_weight

NUM_ITEMS = 30


@pytest.fixture
def histories():
    return torch.randint(NUM_ITEMS, (6, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    return torch.randint(NUM_ITEMS, (6, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def supervised():
    return torch.rand(6, 8, generator=torch.Generator().manual_seed(2)) < 0.6


def seen_so_far(model, histories, supervised):
    """Return the seen items at each supervised position."""
    users, positions = supervised.nonzero(as_tuple=True)
    present = torch.arange(histories.shape[1]) <= positions[:, None]
    return model.find_seen(histories[users], present)


def all_positions(histories):
    return torch.ones_like(histories, dtype=torch.bool)


def reference_loss(model, log_probability, histories, targets, supervised):
    states = model.encode(histories, model.nodes())[supervised]
    places = supervised.nonzero().tolist()
    values = [
        log_probability(
            model, state, item, history=histories[user, : place + 1].tolist(), training=True
        )
        for state, item, (user, place) in zip(
            states, targets[supervised].tolist(), places, strict=True
        )
    ]
    return -torch.stack(values).mean()


def ragged_by_hand(starts, counts):
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [column for count in counts for column in range(count)]
    return rows, columns, [starts[row] + column for row, column in zip(rows, columns, strict=True)]


@pytest.mark.parametrize(
    ("starts", "counts"), [([3, 9, 0], [2, 0, 4]), ([1], [1]), ([4, 4], [0, 0]), ([], [])]
)
def test_ragged_index(starts, counts):
    found = ragged_index(
        torch.tensor(starts, dtype=torch.long), torch.tensor(counts, dtype=torch.long)
    )
    assert tuple(part.tolist() for part in found) == ragged_by_hand(starts, counts)


@pytest.mark.parametrize("sizes", [(40,), (4, 4, 4), (3, 2, 2, 2, 5)])
def test_loss_is_the_mean_of_minus_log_p(
    make_model, random_codes, histories, targets, supervised, sizes
):
    """Training and ranking give the same probabilities, although their code differs."""
    model = make_model(random_codes(NUM_ITEMS, sizes))
    loss = loss_of(model, histories, targets, supervised)
    vectors = model.nodes()
    states = model.encode(histories, vectors)[supervised]
    seen = seen_so_far(model, histories, supervised)
    exact = score_all_items(model.trie, TrieWalk(model, vectors, states, seen))
    expected = -exact.gather(1, targets[supervised].unsqueeze(1)).mean()
    torch.testing.assert_close(loss.value, expected, atol=1e-5, rtol=1e-5)


def test_probabilities_of_all_items_sum_to_one(make_model, random_codes, histories):
    model = make_model(random_codes(NUM_ITEMS))
    vectors = model.nodes()
    states = model.encode(histories, vectors)[:, -1]
    seen = model.find_seen(histories, all_positions(histories))
    scores = score_all_items(model.trie, TrieWalk(model, vectors, states, seen))
    torch.testing.assert_close(scores.logsumexp(dim=-1), torch.zeros(6), atol=1e-5, rtol=0)
    # Uneven probabilities make the comparison meaningful.
    assert scores.exp().max() > 3 / NUM_ITEMS


def test_loss_is_that_of_plain_loops_over_training_items(
    make_model, random_codes, histories, targets, supervised, log_probability
):
    train_items = torch.arange(NUM_ITEMS) >= 8
    targets = targets.clamp_min(8)
    codes = random_codes(NUM_ITEMS)
    model = make_model(codes, train_items=train_items)
    expected = reference_loss(model, log_probability, histories, targets, supervised)
    loss = loss_of(model, histories, targets, supervised).value
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    full = loss_of(make_model(codes), histories, targets, supervised).value
    assert full > loss + 0.05


def test_smoothing_spreads_a_share_over_the_siblings(
    make_model, random_codes, histories, targets, supervised
):
    codes = random_codes(NUM_ITEMS, (40,))
    plain = loss_of(make_model(codes), histories, targets, supervised).value
    smoothed = make_model(codes, label_smoothing=0.2)
    vectors = smoothed.nodes()
    states = smoothed.encode(histories, vectors)[supervised]
    seen = seen_so_far(smoothed, histories, supervised)
    exact = score_all_items(smoothed.trie, TrieWalk(smoothed, vectors, states, seen))
    expected = 0.8 * plain - 0.2 * exact.mean()
    found = loss_of(smoothed, histories, targets, supervised).value
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_accuracy_is_reported_level_by_level(make_model, histories, targets, supervised):
    # Each level differs: five children at the root, then only children, then two children.
    codes = [[i // 2 % 5, 0, i % 2, i // 10] for i in range(NUM_ITEMS)]
    model = make_model(codes, seen_scores=False)
    found = loss_of(model, histories, targets, supervised).level_accuracy
    vectors = model.nodes()
    states = model.encode(histories, vectors)[supervised]
    right = []
    for state, item in zip(states, targets[supervised].tolist(), strict=True):
        node, chosen, row = 0, None, []
        for level, wanted in enumerate(model.trie.paths[item].tolist()):
            below = torch.arange(model.trie.child_starts[node], model.trie.child_starts[node + 1])
            query = model.decoder(state[None], chosen, level)[0]
            row.append(bool(below[(vectors[below] @ query).argmax()] == wanted))
            node, vector = wanted, model.input_scale * vectors[wanted][None]
            chosen = vector if chosen is None else chosen + vector
        right.append(row)
    torch.testing.assert_close(found, torch.tensor(right).float().mean(dim=0))
    assert found[1] == 1
    assert 0 < found[0] < 1


@pytest.mark.parametrize("only_child_level", [0, 1, 2])
def test_a_level_of_only_children_has_a_finite_loss(make_model, histories, only_child_level):
    """If all nodes of a level are only children, the loss is finite and the level is always right.

    A disambiguation level is an example if no two items collide.
    """
    codes = [[i % 5, i // 5] for i in range(NUM_ITEMS)]
    for row in codes:
        row.insert(only_child_level, 0)
    model = make_model(codes)
    loss = loss_of(model, histories, histories, torch.ones_like(histories, dtype=torch.bool))
    assert loss.level_accuracy[only_child_level] == 1
    assert torch.isfinite(loss.value)
    loss.value.backward()


def test_a_batch_of_one_target_with_an_only_child(make_model):
    model = make_model([[0, 0], [1, 0], [1, 1]])
    history, target = torch.tensor([[1]]), torch.tensor([[0]])
    loss = loss_of(model, history, target, torch.tensor([[True]]))
    vectors = model.nodes()
    seen = model.find_seen(history, all_positions(history))
    exact = score_all_items(
        model.trie, TrieWalk(model, vectors, model.encode(history, vectors)[:, -1], seen)
    )
    torch.testing.assert_close(loss.value, -exact[0, 0])


def test_positions_that_are_not_supervised_do_not_count(
    make_model, random_codes, histories, targets, supervised
):
    model = make_model(random_codes(NUM_ITEMS))
    loss = loss_of(model, histories, targets, supervised).value
    other = torch.where(supervised, targets, 0)
    torch.testing.assert_close(loss_of(model, histories, other, supervised).value, loss)
    other = torch.where(supervised, (targets + 1) % NUM_ITEMS, targets)
    assert (loss_of(model, histories, other, supervised).value - loss).abs() > 1e-3


def test_later_items_change_no_earlier_state(make_model, random_codes, histories):
    model = make_model(random_codes(NUM_ITEMS))
    vectors = model.nodes()
    changed = histories.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % NUM_ITEMS
    before, after = model.encode(histories, vectors), model.encode(changed, vectors)
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)
    assert (after[:, 5] - before[:, 5]).abs().amax(dim=-1).min() > 1e-3


def test_an_item_is_the_sum_of_its_path(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS))
    vectors = model.nodes()
    expected = model.input_scale * vectors[model.trie.paths[7]].sum(dim=0)
    torch.testing.assert_close(model.item_vectors(torch.tensor([7]), vectors)[0], expected)


def test_a_cold_item_is_no_candidate_in_training(
    make_model, random_codes, histories, targets, supervised
):
    """A cold item gets no gradient, because training would otherwise push it down."""
    # The cold item is the only one with the last code 3, and has a known sibling.
    codes = [[4, 0, 3], [4, 0, 0], *random_codes(NUM_ITEMS - 2, (4, 4, 3)).tolist()]
    train_items = torch.arange(NUM_ITEMS) != 0
    histories, targets = histories.clamp_min(1), targets.clamp_min(1)
    targets[:, ::3] = 1
    rows = {}
    for name, known in {"cold": train_items, "known": torch.ones_like(train_items)}.items():
        model = make_model(codes, (5, 4, 4), train_items=known)
        loss_of(model, histories, targets, supervised).value.backward()
        leaf = model.trie.paths[0, -1]
        code_row = model.nodes.code_rows[leaf]
        rows[name] = (
            model.nodes.node_embedding.weight.grad[model.nodes.own_nodes == leaf].abs().sum(),
            model.nodes.code_embedding.weight.grad[code_row].abs().sum(),
        )
    assert rows["cold"] == (0, 0)
    assert min(rows["known"]) > 0


def test_a_cold_items_vector_is_the_fallback(make_model, random_codes):
    train_items = torch.arange(NUM_ITEMS) != 0
    codes = random_codes(NUM_ITEMS)
    # The old and the new item are siblings, so there is a choice between them.
    codes[0, :2] = codes[1, :2]
    codes[0, 2] = 1 + codes[:, 2].max()
    model = make_model(codes, train_items=train_items)
    before = model.nodes()
    leaf = model.trie.paths[0, -1]
    assert leaf not in model.nodes.own_nodes
    with torch.no_grad():
        model.nodes.fallback.weight[3] += 1
    changed = (model.nodes() != before).any(dim=-1).nonzero().flatten().tolist()
    # No other item is new, so no other item uses the fallback vector of the last level.
    assert changed == [int(leaf)]


def test_dropped_nodes_use_the_fallback_in_training_only(make_model, random_codes):
    model = make_model(random_codes(NUM_ITEMS), node_dropout=0.5)
    assert model.nodes.draw_dropped() is None
    model.train()
    dropped = model.nodes.draw_dropped()
    assert 0.3 < dropped.float().mean() < 0.7
    own, vectors = model.nodes(), model.nodes(dropped)
    assert ((vectors != own).any(dim=-1)[model.nodes.own_nodes] == dropped).all()
    others = torch.ones(len(own), dtype=torch.bool)
    others[model.nodes.own_nodes] = False
    assert torch.equal(vectors[others], own[others])


def test_a_disambiguation_level_has_no_codes_of_its_own(make_model, unseen):
    codes = [[i // 6, i // 2 % 3, i % 2] for i in range(NUM_ITEMS)]
    model = make_model(codes, disambiguation_level=2)
    with torch.no_grad():
        model.nodes.node_embedding.weight.zero_()
    vectors = model.nodes()
    siblings = vectors[model.trie.paths[:, -1]].view(-1, 2, 16)
    assert torch.equal(siblings[:, 0], siblings[:, 1])
    scores = score_all_items(
        model.trie, TrieWalk(model, vectors, torch.randn(3, 16), unseen(model, 3))
    )
    scores = scores.view(3, -1, 2)
    torch.testing.assert_close(scores[..., 0], scores[..., 1])
    plain = make_model(codes)
    assert len(plain.nodes.code_embedding.weight) == len(model.nodes.code_embedding.weight) + 2


def test_nodes_with_one_code_share_its_embedding(make_model):
    codes = [[i // 10, i % 10] for i in range(NUM_ITEMS)]
    model = make_model(codes, (3, 10))
    with torch.no_grad():
        model.nodes.node_embedding.weight.zero_()
    leaves = model.nodes()[model.trie.paths[:, -1]].view(3, 10, 16)
    assert torch.equal(leaves[0], leaves[1])
    assert (leaves[0, 0] != leaves[0, 1]).any()
    # The same code number at another level has another vector.
    assert (model.nodes()[model.trie.paths[0, 0]] != leaves[0, 0]).any()


def test_a_node_of_one_item_has_the_codes_that_are_left_of_its_id(make_model, random_codes):
    """Compute by hand the vector of the first node with a single item on each path.

    Below it, an item's vector contains each remaining code once.
    """
    codes = random_codes(NUM_ITEMS, (4, 4, 4, 4, 4))
    model = make_model(codes, tree_levels=2, size="constant")
    nodes, weight = model.nodes, model.nodes.code_embedding.weight
    vectors, num_lone = nodes(), 0
    inputs = model.item_vectors(torch.arange(NUM_ITEMS), vectors) / model.input_scale
    for item, path in enumerate(model.trie.paths.tolist()):
        embeddings = [weight[nodes.code_starts[k] + codes[item, k]] for k in range(5)]
        was_lone = False
        for depth, node in enumerate(path, start=1):
            expected = nodes.fallback.weight[depth].clone()
            same = (codes[:, : min(depth, 2)] == codes[item, : min(depth, 2)]).all(axis=1)
            is_lone = depth == 3 or same.sum() == 1
            if not was_lone:
                expected += embeddings[depth - 1] if depth <= 2 else 0
                expected += sum(embeddings[min(depth, 2) :]) if is_lone else 0
                num_lone += depth < 3 and is_lone
            torch.testing.assert_close(vectors[node], expected)
            was_lone = was_lone or is_lone
        total = sum(embeddings) + nodes.fallback.weight[1:].sum(dim=0)
        torch.testing.assert_close(inputs[item], total)
    assert 0 < num_lone < NUM_ITEMS


def test_without_tree_levels_one_softmax_chooses_among_all_items(make_model, random_codes):
    """Compute probabilities by hand. An item's vector is its own plus those of all its codes."""
    codes = random_codes(NUM_ITEMS, (4, 4, 4))
    model = make_model(codes, tree_levels=0, seen_scores=False)
    nodes, weight = model.nodes, model.nodes.code_embedding.weight
    own = {node: row for row, node in enumerate(nodes.own_nodes.tolist())}
    vectors = torch.stack(
        [
            nodes.node_embedding.weight[own[node]]
            + sum(weight[nodes.code_starts[k] + codes[item, k]] for k in range(3))
            for item, (node,) in enumerate(model.trie.paths.tolist())
        ]
    )
    states = model.encode(torch.tensor([[3, 1, 2]]), nodes())[:, -1]
    expected = (model.decoder(states, None, 0) @ vectors.T).log_softmax(dim=-1)
    found = score_all_items(model.trie, TrieWalk(model, nodes(), states, []))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("disambiguation_level", [None, 2])
def test_parameters_by_part_sum_to_the_total(make_model, random_codes, disambiguation_level):
    model = make_model(random_codes(NUM_ITEMS), disambiguation_level=disambiguation_level)
    parts = model.num_parameters()
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    one_item = (model.trie.leaf_ends - model.trie.leaf_starts == 1).sum()
    assert parts["embeddings of nodes of one item"] == one_item * 16 >= NUM_ITEMS * 16
    assert min(parts.values()) > 0


@pytest.mark.parametrize("which", ["prefixes", "constant"])
def test_nodes_may_go_without_vectors_of_their_own(make_model, random_codes, which):
    model = make_model(random_codes(NUM_ITEMS, (4, 4, 4)), size=which)
    own = set(model.nodes.own_nodes.tolist())
    num_items = model.trie.leaf_ends - model.trie.leaf_starts
    # The root is never chosen, so it needs no vector.
    shared = set((num_items > 1).nonzero().flatten().tolist()) - {0}
    assert own == (shared if which == "prefixes" else set())
    assert model.num_parameters().get("embeddings of nodes of one item", 0) == 0
    # Nodes without their own vectors have equal vectors if their level, their code and the rest of
    # their ID are equal.
    vectors = model.nodes()
    kinds = {}
    for node in set(range(1, len(vectors))) - own:
        _, rows = model.nodes.rows(torch.tensor([node], dtype=torch.int32))
        kind = (int(model.nodes.node_levels[node]), *(row for row in rows[0].tolist() if row))
        kinds.setdefault(kind, []).append(vectors[node])
    assert max(map(len, kinds.values())) > 1
    for group in kinds.values():
        assert all(torch.equal(vector, group[0]) for vector in group)


def test_without_the_trie_probability_goes_to_ids_that_do_not_exist(
    make_model, random_codes, histories, targets, supervised
):
    """A softmax over all codes scores each code by a node without its own vector."""
    # There are two items below every node, so no node represents the rest of an ID.
    codes = np.array([[i // 10, i // 2 % 5, i % 2] for i in range(NUM_ITEMS)])
    settings = {"trie_softmax": False, "size": "constant", "seen_scores": False}
    model = make_model(codes, (4, 6, 3), **settings)
    vectors = model.nodes()
    states = model.encode(histories, vectors)[supervised]
    seen = seen_so_far(model, histories, supervised)
    scores = score_all_items(model.trie, TrieWalk(model, vectors, states, seen))
    assert (scores.logsumexp(dim=-1) < -0.05).all()
    # The expected value is a softmax over all codes of each level.
    expected = torch.zeros(len(states), NUM_ITEMS)
    for item in range(NUM_ITEMS):
        chosen = None
        for level, node in enumerate(model.trie.paths[item].tolist()):
            log_probs = model.decoder(states, chosen, level) @ model.nodes.vectors_of_codes(level).T
            expected[:, item] += log_probs.log_softmax(dim=-1)[:, codes[item, level]]
            vector = model.input_scale * vectors[node].expand_as(states)
            chosen = vector if chosen is None else chosen + vector
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    loss = loss_of(model, histories, targets, supervised).value
    wanted = expected.gather(1, targets[supervised].unsqueeze(1)).mean()
    torch.testing.assert_close(loss, -wanted, atol=1e-4, rtol=1e-4)
    with_vectors = make_model(random_codes(NUM_ITEMS), trie_softmax=False, tree_levels=1)
    loss_of(with_vectors, histories, targets, supervised).value.backward()


def test_the_learned_score_of_seen_items_depends_on_repeats(make_model, random_codes):
    """If all users repeat items, the learned score for seen items has the opposite sign."""
    codes = random_codes(NUM_ITEMS)
    generator = torch.Generator().manual_seed(0)
    walks = torch.stack([torch.randperm(NUM_ITEMS, generator=generator)[:9] for _ in range(64)])
    circles = torch.cat([walks[:, :3]] * 3, dim=1)
    learned = {}
    for name, sequences in {"never": walks, "always": circles}.items():
        model = make_model(codes, history_length=8).train()
        torch.nn.init.zeros_(model.seen_scores)
        optimizer = torch.optim.Adam([model.seen_scores], lr=0.02)
        for _ in range(60):
            histories, targets = sequences[:, 2:-1], sequences[:, 3:]
            optimizer.zero_grad()
            loss_of(model, histories, targets, all_positions(histories)).value.backward()
            optimizer.step()
        learned[name] = model.seen_scores.detach()
    assert learned["never"][-1] < -0.3
    assert learned["always"][-1] > 0.3


def test_a_checkpoint_holds_nothing_of_the_id_table(make_model, random_codes, histories):
    """The checkpoint has only weights. The tables are rebuilt from the IDs."""
    codes = random_codes(NUM_ITEMS)
    first, second = make_model(codes, seed=0), make_model(codes, seed=1)
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        second.encode(histories, second.nodes()), first.encode(histories, first.nodes())
    )


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"trie_softmax": False}])
def test_targets_are_weighted_in_the_loss(
    make_model, random_codes, histories, targets, supervised, settings
):
    model = make_model(random_codes(NUM_ITEMS), **settings).eval()
    torch.testing.assert_close(*losses_by_weight(model, histories, targets, supervised))
