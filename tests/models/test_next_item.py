"""Test item vectors and IDs that are learned from sequences."""

import dataclasses
import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from recgrit.models import learned_ids, next_item
from recgrit.models.config import ItemVectorConfig
from recgrit.models.learned_ids import learn_ids
from recgrit.models.next_item import NextItemNetwork
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.residual import ResidualGRITVQ
from recgrit.ranking import Histories
from tests.small_models import loss_of, losses_by_weight

NUM_ITEMS, NUM_GROUPS = 40, 4
SETTINGS = {
    "model_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "history_length": 10,
    "dropout": 0.1,
    "epochs": 6,
    "batch_targets": 128,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "quantized_epochs": 3,
    "quantized_learning_rate": 0.003,
}


@pytest.fixture(scope="module")
def features():
    """Draw noise as features, so they do not show which items belong together."""
    return torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def split(make_split):
    """Build a split in which each user stays within one group of items, in random order."""
    rng = np.random.default_rng(0)
    groups = np.arange(NUM_ITEMS).reshape(NUM_GROUPS, -1)
    histories = [rng.permutation(groups[user % NUM_GROUPS])[:9].tolist() for user in range(200)]
    return make_split(histories, NUM_ITEMS)


@pytest.fixture(scope="module")
def learned(features, split):
    return {
        objective: learn(features, split, objective) for objective in ("item_vectors", "next_item")
    }


def learn(features, split, objective, seed=0, kept=None, **changes):
    config = TokenizerConfig(
        objective=objective, **{"num_levels": 2, "codebook_size": 8, "epochs": 5} | changes
    )
    return learn_ids(features, split, config, ItemVectorConfig(**SETTINGS), seed=seed, kept=kept)


def codes_of(learned):
    return learned.tokenizer.quantizer.encode(learned.latents)


def make_network(features, *, num_trained=NUM_ITEMS, quantized=False, **settings):
    torch.manual_seed(0)
    network = NextItemNetwork(
        features,
        train_items=torch.arange(NUM_ITEMS) < num_trained,
        model_dim=16,
        num_layers=1,
        num_heads=2,
        history_length=8,
        dropout=0.0,
    )
    if quantized:
        vectors = network.vectors().detach()
        quantizer = ResidualGRITVQ(16, 2, 8, **settings)
        scale = vectors.norm(dim=1).mean()
        quantizer.fit_init(vectors / scale)
        network.start_quantizing(quantizer, center=torch.zeros(16), scale=scale)
    return network


def draw_batch(num_items=NUM_ITEMS):
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(num_items, (5, 9), generator=generator)
    return items[:, :-1], items[:, 1:], torch.rand(5, 8, generator=generator) < 0.7


def test_the_loss_is_the_cross_entropy_of_the_products(features):
    network = make_network(features, num_trained=30)
    histories, targets, supervised = draw_batch(30)
    vectors = network.vectors()
    states = network.encoder(network.input_scale * vectors[histories])[supervised]
    expected = F.cross_entropy(states @ vectors[:30].T, targets[supervised])
    torch.testing.assert_close(loss_of(network, histories, targets, supervised).value, expected)


def test_items_of_the_history_get_a_score_of_their_own(features):
    """Each item of the history gets the score once, even if it occurs twice; later items do not."""
    network = make_network(features).eval()
    histories = torch.tensor([[3, 5, 3, 7]])
    targets = torch.tensor([[5, 3, 7, 9]])
    with torch.no_grad():
        network.seen_score.fill_(-2.0)
    vectors = network.vectors()
    states = network.encoder(network.input_scale * vectors[histories])[0]
    scores = states @ vectors.T
    for position, seen in enumerate([[3], [3, 5], [3, 5], [3, 5, 7]]):
        scores[position, seen] -= 2 * network.input_scale
    everywhere = torch.ones_like(histories, dtype=torch.bool)
    found = loss_of(network, histories, targets, everywhere).value
    torch.testing.assert_close(found, F.cross_entropy(scores, targets[0]))
    # Ranking has the same scores. Items after the end of a padded history do not count as seen.
    padded = Histories(torch.tensor([[3, 5, 9], [3, 5, 3]]), torch.tensor([2, 3]))
    ranked = network.rank_scores(padded, vectors=network.ranked_vectors())
    torch.testing.assert_close(ranked, scores[1:3])


def test_a_sample_of_candidates_estimates_the_exact_loss(features, monkeypatch):
    """A sample of candidates estimates the sum over all items without bias.

    The loss is therefore close to the exact one, and on average not above it.
    """
    network = make_network(features).eval()
    with torch.no_grad():
        network.offsets.weight.normal_()
    histories, targets, supervised = (part[:1, :2] for part in draw_batch())
    supervised = torch.ones_like(supervised)
    whole = loss_of(network, histories, targets, supervised).value
    monkeypatch.setattr(next_item, "MAX_CANDIDATES", 12)
    parts = torch.stack(
        [loss_of(network, histories, targets, supervised).value.detach() for _ in range(2000)]
    )
    assert parts.std() > 0.01
    wanted = network.vectors()[targets[0]]
    states = network.encoder(network.input_scale * network.vectors()[histories])[0]
    scores = (states * wanted).sum(dim=-1)
    assert len(scores) == 2
    # The mean of exp(log of the estimated sum) is the exact sum. This is checked for one position.
    one = supervised.clone()
    one[0, 1] = False
    sums = torch.stack(
        [(loss_of(network, histories, targets, one).value + scores[0]).exp() for _ in range(4000)]
    )
    expected = (states[0] @ network.vectors().T).exp().sum()
    assert sums.mean().item() == pytest.approx(expected.item(), rel=0.05)
    assert whole.item() == pytest.approx(parts.mean().item(), abs=0.3)


def test_items_never_seen_have_what_their_features_say(features):
    network = make_network(features, num_trained=30)
    with torch.no_grad():
        network.offsets.weight.fill_(7.0)
    vectors, encoded = network.vectors(), network.encode_items(features)
    torch.testing.assert_close(vectors[30:], encoded[30:])
    torch.testing.assert_close(vectors[:30], encoded[:30] + 7)


@pytest.mark.parametrize("radius", ["euclidean", "straight_through"])
def test_the_loss_trains_the_codes_only_with_the_euclidean_radius(features, radius):
    """The straight-through estimator gives codes no gradient, so codes then need their own loss."""
    network = make_network(
        features, quantized=True, radius=radius, commitment_weight=0.0, transform_rank=0
    ).train()
    # Sums of codes also serve as output vectors, whose gradient must not reach the codes either.
    loss_of(network, *draw_batch()).value.backward()
    gradients = {
        "encoder": network.encode_items.linear.weight.grad,
        "offsets": network.offsets.weight.grad,
        "codes": next(
            p.grad for n, p in network.quantizer.named_parameters() if n.endswith("embedding")
        ),
    }
    sizes = {name: 0 if g is None else g.abs().sum() for name, g in gradients.items()}
    assert sizes["encoder"] > 0
    assert sizes["offsets"] > 0
    assert (sizes["codes"] > 0) == (radius == "euclidean")


@pytest.mark.parametrize("objective", ["item_vectors", "next_item"])
def test_first_codes_match_the_groups_of_items(learned, features, objective):
    """First codes match the groups, unlike codes fitted to the features, which are noise."""
    groups = np.arange(NUM_ITEMS) // (NUM_ITEMS // NUM_GROUPS)

    def purity(codes):
        return sum(np.bincount(groups[codes == code]).max() for code in np.unique(codes)) / len(
            codes
        )

    from recgrit.quantization.fit import fit_tokenizer

    config = TokenizerConfig(num_levels=2, codebook_size=8, epochs=5)
    fitted = fit_tokenizer(features, config, seed=0).codes[:, 0].numpy()
    assert purity(codes_of(learned[objective])[:, 0].numpy()) > 0.9
    assert purity(fitted) < 0.8


def test_joint_learning_moves_items_and_records_each_epoch(learned):
    start, *epochs = learned["next_item"].id_epochs
    assert [epoch.epoch for epoch in (start, *epochs)] == [0, 1, 2, 3]
    assert (start.moved, start.moved_since_start) == (0, 0)
    assert max(epoch.moved for epoch in epochs) > 0
    for epoch in epochs:
        assert epoch.first_code_moved <= epoch.moved_since_start
        assert len(epoch.perplexities) == 2
    kept = learned["next_item"].id_epochs[learned["next_item"].best_epoch]
    counts = torch.unique(codes_of(learned["next_item"]), dim=0, return_counts=True)[1]
    assert kept.collision_rate == pytest.approx(counts[counts > 1].sum().item() / NUM_ITEMS)
    assert len(learned["item_vectors"].id_epochs) == 1


def test_the_start_is_kept_if_joint_learning_does_harm(learned, features, split):
    config = TokenizerConfig(objective="next_item", num_levels=2, codebook_size=8, epochs=5)
    settings = ItemVectorConfig(**SETTINGS | {"quantized_learning_rate": 0.5})
    found = learn_ids(features, split, config, settings, seed=0)
    assert found.best_epoch == 0
    assert torch.equal(codes_of(found), codes_of(learned["item_vectors"]))
    assert found.id_epochs[-1].moved_since_start > 0.2


def test_dead_code_resets_start_again_in_joint_learning(features, split, monkeypatch):
    """The fit of the codebooks stops its resets at the end, and learning starts them again."""
    intervals = []
    loss = NextItemNetwork.loss

    def watched(network, *batch):
        if network.quantizer is not None:
            intervals.append(network.quantizer.reset_interval)
        return loss(network, *batch)

    monkeypatch.setattr(NextItemNetwork, "loss", watched)
    learn(features, split, "next_item", reset_interval=7)
    assert intervals[0] == 7
    assert intervals[-1] is None, "but not at the end"


def test_a_tokenizer_encodes_items_without_training_by_their_features(features, split):
    """An item without training interactions gets its latent from its features, by the encoder."""
    without = dataclasses.replace(split, items=np.where(split.items == 39, 38, split.items))
    found = learn(features, without, "item_vectors")
    latents = found.tokenizer.encode_latent(features)
    torch.testing.assert_close(latents[39], found.latents[39])
    assert not torch.allclose(latents[:38], found.latents[:38], atol=1e-3)


def test_the_same_seed_gives_the_same_ids(learned, features, split):
    again = learn(features, split, "next_item")
    assert torch.equal(codes_of(again), codes_of(learned["next_item"]))
    other = learn(features, split, "next_item", seed=1)
    assert not torch.equal(codes_of(other), codes_of(learned["next_item"]))


def test_other_codebooks_start_from_the_vectors_that_were_kept(
    learned, features, split, tmp_path, caplog, monkeypatch
):
    kept = tmp_path / "cache" / "vectors.safetensors"
    first = learn(features, split, "item_vectors", kept=kept)
    calls = []
    monkeypatch.setattr(
        learned_ids, "train_model", lambda *given, **named: calls.append(named) or 1 / 0
    )
    second = learn(features, split, "item_vectors", kept=kept)
    assert not calls
    assert torch.equal(codes_of(second), codes_of(first))
    assert second.vectors == first.vectors
    longer = learn(features, split, "item_vectors", kept=kept, num_levels=3)
    assert codes_of(longer).shape[1] == 3
    monkeypatch.undo()
    together = learn(features, split, "next_item", kept=kept)
    assert torch.equal(codes_of(together), codes_of(learned["next_item"]))
    kept.write_bytes(kept.read_bytes()[:-8])
    again = learn(features, split, "item_vectors", kept=kept)
    assert "is damaged" in caplog.text
    assert torch.equal(codes_of(again), codes_of(first))
    monkeypatch.setattr(learned_ids, "train_model", None)
    assert learn(features, split, "item_vectors", kept=kept).vectors == again.vectors


def test_the_targets_of_the_test_are_never_looked_at(learned, features, split):
    items = split.items.copy()
    items[split.test_targets] = (items[split.test_targets] + 1) % NUM_ITEMS
    changed = learn(features, dataclasses.replace(split, items=items), "next_item")
    assert torch.equal(codes_of(changed), codes_of(learned["next_item"]))


def learn_on_one_process(process, folder, features, split):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=process,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    # Some steps have two windows, and others have one.
    config = TokenizerConfig(
        objective="next_item", num_levels=2, codebook_size=8, epochs=2, reset_interval=3
    )
    settings = ItemVectorConfig(**SETTINGS | {"batch_targets": 7, "epochs": 1, "dropout": 0.0})
    found = learn_ids(features, split, config, settings, seed=0)
    torch.save((codes_of(found), found.latents), f"{folder}/{process}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_the_same_ids(features, make_split, tmp_path):
    """The processes get equal IDs, also in steps in which one process has no window."""
    rng = np.random.default_rng(1)
    few = make_split([rng.permutation(NUM_ITEMS)[:9].tolist() for _ in range(13)], NUM_ITEMS)
    mp.spawn(learn_on_one_process, (str(tmp_path), features, few), nprocs=2)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_codebook_maintenance_runs_during_learning(features):
    """Maintenance runs between steps, because moving averages and dead-code resets depend on it."""
    network = make_network(
        features,
        quantized=True,
        radius="straight_through",
        transform="identity",
        codebook_learning="ema",
        ema_decay=0.5,
    ).train()
    # The fit of the codebooks calls after_step itself, so this test calls it too.
    network.quantizer.after_step()
    before = network.quantizer.codebooks[0]
    for _ in range(3):
        loss_of(network, *draw_batch()).value.backward()
    assert not torch.equal(before, network.quantizer.codebooks[0])


def test_targets_are_weighted_in_the_loss(features):
    network = make_network(features).eval()
    torch.testing.assert_close(*losses_by_weight(network, *draw_batch()))
