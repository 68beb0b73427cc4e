import numpy as np
import pytest
import torch

from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.models.config import SASRecConfig
from recgrit.models.sasrec import SASRecModel
from recgrit.ranking import Histories, recommend_items
from recgrit.retrieval.neighbours import Strengths
from tests.small_models import build_inputs, loss_of, losses_by_weight

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def config():
    return SASRecConfig(
        model_dim=16,
        num_layers=1,
        num_heads=2,
        history_length=10,
        dropout=0.1,
        epochs=6,
        patience=6,
        batch_targets=128,
        learning_rate=0.01,
        warmup_steps=5,
        average_decay=0.0,
        device="cpu",
        precision="float32",
    )


def fit(split, config):
    return SASRecModel.fit(build_inputs(split), split, config, seed=0)


def build(split, config):
    """Build an untrained model whose neighbours are counted."""
    torch.manual_seed(0)
    network = SASRecModel.build(build_inputs(split), config)
    SASRecModel.count(network, build_inputs(split), split)
    return SASRecModel(network, build_inputs(split), config)


def recall(model, split):
    users = split.target_users("test")
    found = recommend_items(model.ranker(), split, "test", users, top_k=10, masked=False)
    return recall_at_k(ranks_of_targets(found.items, split.targets("test", users)), 10).mean()


def test_the_successor_of_the_last_item_is_learned(make_split, cyclic, config):
    split = make_split(cyclic(), NUM_ITEMS)
    found = fit(split, config)
    assert recall(found.model, split) > 0.9
    history = found.summary.history
    assert history[0].train_loss < np.log(NUM_ITEMS) + 0.2
    assert len(history[0].level_accuracy) == 1


def test_noise_is_recommended_no_better_than_by_chance(make_split, config):
    split = make_split(np.random.default_rng(0).integers(0, 100, (300, 12)), 100)
    found = fit(split, config.model_copy(update={"epochs": 2}))
    assert recall(found.model, split) < 0.1 * 1.8


def test_the_loss_is_minus_log_p_among_training_items(make_split, config):
    """Items without training interactions are no candidates of the loss, but they are ranked."""
    split = make_split([[0, 1, 2, 3, 4], [1, 2, 0, 5, 6]], NUM_ITEMS)
    model = build(split, config)
    network = model.network.eval()
    histories, targets = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    loss = loss_of(network, histories, targets, torch.tensor([[True, True]]))
    scores = network.score(network.encode(histories))[0, :, :3].log_softmax(dim=-1)
    torch.testing.assert_close(loss.value, -(scores[0, 1] + scores[1, 2]) / 2)
    found = recommend_items(
        model.ranker(), split, "test", np.array([0]), top_k=NUM_ITEMS, masked=False
    )
    assert sorted(found.items[0].tolist()) == list(range(NUM_ITEMS))


def test_neighbours_are_mixed_into_its_probabilities(make_split, config):
    rng = np.random.default_rng(0)
    split = make_split(rng.integers(0, NUM_ITEMS, (30, 9)), NUM_ITEMS)
    models = [
        build(split, config.model_copy(update={"neighbours": kinds})) for kinds in ((), ("near",))
    ]
    models[1].network.neighbours.strengths = Strengths(mixture=0.4, near=0.0)
    histories = Histories(torch.tensor([[1, 5, 7], [2, 0, 0]]), torch.tensor([3, 1]))
    alone, mixed = (
        found.scores.gather(1, found.items.argsort())
        for found in (
            model.ranker().rank(histories, top_k=NUM_ITEMS, excluded=None) for model in models
        )
    )
    shares = mixed.exp() - 0.6 * alone.softmax(dim=-1)
    assert shares.min() > -1e-6
    assert shares.sum(dim=1).tolist() == pytest.approx([0.4, 0.4], abs=1e-4)
    assert shares[0, [1, 5, 7]].abs().max() < 1e-6


def test_a_model_that_was_saved_ranks_in_the_precision_of_its_training(
    make_split, cyclic, config, tmp_path
):
    split = make_split(cyclic(num_items=NUM_ITEMS), NUM_ITEMS)
    model = build(split, config)
    single = recommend_items(
        model.ranker(), split, "test", np.arange(9), top_k=10, masked=False
    ).scores
    model.precision = torch.bfloat16  # A GPU with instructions for bfloat16 chooses this precision.
    model.save(tmp_path)
    loaded = SASRecModel.load(tmp_path, build_inputs(split), config)
    assert loaded.precision == torch.bfloat16
    scores = [
        recommend_items(m.ranker(), split, "test", np.arange(9), top_k=10, masked=False).scores
        for m in (model, loaded)
    ]
    assert np.array_equal(*scores)
    assert not np.array_equal(scores[1], single)


def test_targets_are_weighted_in_the_loss(make_split, config):
    network = build(make_split([list(range(NUM_ITEMS))], NUM_ITEMS), config).network.eval()
    items = torch.randint(NUM_ITEMS - 2, (4, 7))
    supervised = torch.rand(4, 6) < 0.7
    found = losses_by_weight(network, items[:, :-1], items[:, 1:], supervised)
    torch.testing.assert_close(*found)
