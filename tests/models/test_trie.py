import dataclasses

import numpy as np
import pytest
import torch

from recgrit.config import load_config
from recgrit.errors import ConfigError, TrainingError
from recgrit.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k
from recgrit.ranking import recommend_items
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.decoding import score_all_items
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.retrieval.trie_walk import TrieWalk
from recgrit.training.loop import choose_device, choose_precision
from recgrit.training.validation import choose_valid_users
from tests.small_models import build_retriever, fit_retriever

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def split(make_split, cyclic):
    return make_split(cyclic(num_items=NUM_ITEMS), NUM_ITEMS)


@pytest.fixture(scope="module")
def table(make_table, random_codes):
    return make_table(random_codes(NUM_ITEMS), (4, 4, 4))


@pytest.fixture(scope="module")
def noise(make_split):
    """Draw random sequences of 100 items, so chance has a Recall@10 of 0.1."""
    return make_split(np.random.default_rng(0).integers(0, 100, (300, 12)), 100)


@pytest.fixture(scope="module")
def noise_table(make_table, random_codes):
    return make_table(random_codes(100, (8, 8, 4)), (8, 8, 4))


def ranks(model, split, name):
    users = split.target_users(name)
    found = recommend_items(
        TrieRanker(model, beam_width=20), split, name, users, top_k=10, masked=False
    )
    return ranks_of_targets(found.items, split.targets(name, users))


def numbers(history):
    """Return the reports without measured times."""
    return [dataclasses.replace(epoch, seconds=0.0, targets_per_second=0.0) for epoch in history]


@pytest.fixture(scope="module")
def fitted(table, split, make_config):
    return fit_retriever(table, split, None, make_config(epochs=6), seed=0)


def test_the_successor_of_the_last_item_is_learned(fitted, split):
    assert recall_at_k(ranks(fitted.model, split, "test"), 10).mean() > 0.9
    assert recall_at_k(ranks(fitted.model, split, "test"), 1).mean() > 0.5
    losses = [epoch.train_loss for epoch in fitted.history]
    assert losses[0] < np.log(NUM_ITEMS) + 0.2
    assert losses[-1] < 0.5 * losses[0]
    assert min(fitted.history[-1].level_accuracy) > fitted.history[0].level_accuracy[0]


def test_noise_is_recommended_no_better_than_by_chance(noise_table, noise, make_config):
    found = fit_retriever(noise_table, noise, None, make_config(epochs=2), seed=0)
    assert recall_at_k(ranks(found.model, noise, "test"), 10).mean() < 0.1 * 1.8


def test_the_same_seed_gives_the_same_training(table, split, make_config):
    config = make_config(epochs=2)
    first, again, other = (
        fit_retriever(table, split, None, config, seed=seed) for seed in (1, 1, 2)
    )
    assert numbers(first.history) == numbers(again.history)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert other.history[0].train_loss != first.history[0].train_loss


def test_the_targets_of_the_test_are_never_looked_at(table, split, make_config):
    """Training does not learn from the validation target either. It only decides when to stop."""
    config = make_config(epochs=1)
    first = fit_retriever(table, split, None, config, seed=1)
    items = split.items.copy()
    items[split.test_targets] = (items[split.test_targets] + 1) % NUM_ITEMS
    changed = fit_retriever(table, dataclasses.replace(split, items=items), None, config, seed=1)
    assert numbers(changed.history) == numbers(first.history)
    items[split.valid_targets] = (items[split.valid_targets] + 1) % NUM_ITEMS
    changed = fit_retriever(table, dataclasses.replace(split, items=items), None, config, seed=1)
    assert changed.history[0].train_loss == first.history[0].train_loss
    assert changed.history[0].valid_ndcg_at_10 != first.history[0].valid_ndcg_at_10


def test_training_stops_early_and_keeps_the_best_epoch(noise_table, noise, make_config):
    config = make_config(epochs=30, patience=2, learning_rate=0.03)
    reported = []
    found = fit_retriever(noise_table, noise, None, config, seed=0, on_epoch=reported.append)
    assert reported == found.history
    assert [epoch.epoch for epoch in found.history] == list(range(1, len(found.history) + 1))
    values = [epoch.valid_ndcg_at_10 for epoch in found.history]
    assert found.best_epoch == int(np.argmax(values)) + 1
    assert len(values) == found.best_epoch + 2 < 30
    assert not found.model.training
    # The weights are those of the best epoch, not of the last epoch.
    best = found.history[found.best_epoch - 1]
    valid = ranks(found.model, noise, "valid")
    assert recall_at_k(valid, 10).mean() == pytest.approx(best.valid_recall_at_10, abs=1e-6)
    assert ndcg_at_k(valid, 10).mean() == pytest.approx(best.valid_ndcg_at_10, abs=1e-6)
    assert values[-1] != best.valid_ndcg_at_10


def test_a_loss_that_is_not_finite_ends_the_training(table, split, make_config):
    config = make_config(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 1, step 2\..*learning_rate"):
        fit_retriever(table, split, None, config, seed=0)


@pytest.mark.parametrize("sequences", [[[0], [1], [2]], [[0, 1, 2], [3, 4, 5]]])
def test_a_split_without_training_targets_is_refused(table, make_split, make_config, sequences):
    with pytest.raises(TrainingError, match="at least two items for training"):
        fit_retriever(table, make_split(sequences, NUM_ITEMS), None, make_config(), seed=0)


def test_training_on_a_single_item_is_refused(table, make_split, make_config):
    split = make_split([[0, 0, 0, 1, 2]] * 3, NUM_ITEMS)
    with pytest.raises(TrainingError, match="one and the same item"):
        fit_retriever(table, split, None, make_config(), seed=0)


def test_a_split_without_validation_targets_is_refused(table, make_split, make_config):
    split = make_split([[0, 1], [2, 3]] * 5, NUM_ITEMS)
    with pytest.raises(TrainingError, match="0 users with a validation target"):
        fit_retriever(table, split, None, make_config(), seed=0)


def test_validation_may_read_a_sample_of_users(table, split, make_config):
    users = choose_valid_users(split, 20, seed=0)
    assert len(np.unique(users)) == 20
    assert np.isin(users, split.target_users("valid")).all()
    assert np.array_equal(users, choose_valid_users(split, 20, seed=0))
    assert not np.array_equal(users, choose_valid_users(split, 20, seed=1))
    assert np.array_equal(choose_valid_users(split, None, 0), split.target_users("valid"))
    assert np.array_equal(choose_valid_users(split, 10_000, 0), split.target_users("valid"))
    found = fit_retriever(table, split, None, make_config(epochs=1, valid_users=20), seed=0)
    assert (found.history[0].valid_recall_at_10 * 20) % 1 == pytest.approx(0)


@pytest.mark.parametrize("tree_levels", [None, 0, 2])
def test_new_items_are_neither_first_nor_last(
    make_table, random_codes, make_split, cyclic, make_config, tree_levels
):
    """Eight items have no training interactions, and 40 have some."""
    num_items = NUM_ITEMS + 8
    split = make_split(cyclic(num_items=NUM_ITEMS), num_items)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_items, 6)).astype(np.float32)
    features[NUM_ITEMS:] = features[:8] + 0.1 * features[NUM_ITEMS:]
    table = make_table(random_codes(num_items), (4, 4, 4))
    config = make_config(epochs=4, node_dropout=0.3, tree_levels=tree_levels)
    model = fit_retriever(table, split, features, config, seed=0).model
    vectors = model.nodes()
    histories = np.stack([split.history(user, "test")[-10:] for user in range(split.num_users)])
    states = model.encode(torch.from_numpy(histories).long(), vectors)[:, -1]
    histories = torch.from_numpy(histories).long()
    seen = model.find_seen(histories, torch.ones_like(histories, dtype=torch.bool))
    scores = score_all_items(model.trie, TrieWalk(model, vectors, states, seen))
    position = scores.argsort(dim=1, descending=True).argsort(dim=1)[:, NUM_ITEMS:].float()
    assert (position < 10).float().mean() > 0.02
    assert (position < 10).float().mean() < 0.5
    assert (position >= num_items - 10).float().mean() < 0.5
    # No new item is always last. A candidate that is never a target in training would be.
    assert position.mean(dim=0).max() < num_items - 8
    assert position.mean(dim=0).min() > 8


def test_a_retriever_is_built_from_its_config(table, split, make_config):
    features = np.ones((NUM_ITEMS, 7), dtype=np.float32)
    torch.manual_seed(0)
    model = build_retriever(
        table,
        split,
        features,
        make_config(model_dim=24, num_layers=3, num_heads=2, history_length=6, tree_levels=1),
    )
    assert model.encoder.positions.shape == (6, 24)
    assert len(model.encoder.layers) == 3
    assert model.trie.num_levels == 2
    assert build_retriever(table, split, None, make_config()).num_items == NUM_ITEMS


def test_only_items_of_training_parts_are_candidates(table, make_split, make_config):
    split = make_split([[0, 1, 2, 3, 4], [1, 2, 0, 5, 6]], NUM_ITEMS)
    model = build_retriever(table, split, None, make_config())
    own = torch.isin(model.trie.paths[:, -1], model.nodes.own_nodes)
    assert own.nonzero().flatten().tolist() == [0, 1, 2]


def test_device_and_precision_are_those_of_the_settings(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    # Precision does not depend on the CPU's instructions, so equal seeds give equal runs.
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert choose_precision("auto", cpu) == torch.float32


def test_training_in_bfloat16_learns_as_well(table, split, make_config):
    config = make_config(epochs=5, precision="bfloat16")
    found = fit_retriever(table, split, None, config, seed=0)
    assert found.precision == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in found.model.parameters())
    assert recall_at_k(ranks(found.model, split, "test"), 10).mean() > 0.9


def test_metrics_have_flat_names(fitted):
    metrics = fitted.history[0].metrics()
    assert set(metrics) == {
        "train_loss",
        "valid_recall_at_10",
        "valid_ndcg_at_10",
        "seconds",
        "targets_per_second",
        *(f"train_accuracy_level_{level}" for level in range(3)),
    }
    assert all(isinstance(value, float) for value in metrics.values())


def test_heads_must_divide_the_model(tmp_path):
    with pytest.raises(ConfigError, match="model_dim 30 must be a multiple of num_heads 4"):
        load_config(RetrieverConfig, None, ["model_dim=30", "num_heads=4"])
