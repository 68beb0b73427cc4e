"""Test every model and the quantizer on a pretended GPU.

The tests show that devices are never mixed and that the host rarely waits. `test_pretended_gpu.py`
runs this file in a separate process. Only a real GPU can show that everything works there.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from recgrit.models.config import ItemVectorConfig
from recgrit.models.decoder import DecoderOnly
from recgrit.models.next_item import NextItemNetwork
from recgrit.models.sasrec import SASRec
from recgrit.models.tiger import EncoderDecoder
from recgrit.models.tokens import TokenRanker
from recgrit.quantization.baselines import QUANTIZERS, build_quantizer
from recgrit.quantization.residual import ResidualGRITVQ
from recgrit.ranking import Histories, ScoreRanker
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.semantic_ids.trie import build_trie
from recgrit.training.averaging import MovingAverage
from recgrit.training.gradients import GradientSum
from recgrit.training.loop import MAX_GRAD_NORM, _EpochSums
from recgrit.training.optimizer import build_optimizer
from tests.pretended_gpu import MixedDevicesError, PretendedGpu
from tests.small_models import make_batch

NUM_ITEMS, SIZES, LENGTH = 60, (4, 4, 4), 8


def draw_histories(num_users=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(NUM_ITEMS, (num_users, LENGTH), generator=draw)
    return Histories(items, torch.randint(1, LENGTH + 1, (num_users,), generator=draw))


def draw_training():
    """Return a batch whose histories end early and repeat items."""
    draw = torch.Generator().manual_seed(2)
    items = torch.randint(NUM_ITEMS, (5, LENGTH + 1), generator=draw)
    items[:, 3] = items[:, 1]
    supervised = torch.arange(LENGTH) < torch.tensor([[8], [5], [1], [7], [8]])
    return make_batch(items[:, :-1].contiguous(), items[:, 1:].contiguous(), supervised)


class TestTheDevice:
    def test_it_refuses_tensors_of_main_memory(self):
        with PretendedGpu() as gpu:
            there = torch.ones(3, 3).to(gpu.device)
            assert there.device == gpu.device
            with pytest.raises(MixedDevicesError):
                there @ torch.ones(3, 3)
            with pytest.raises(MixedDevicesError):
                there.add_(torch.ones(3))
            assert (there + torch.tensor(1.0)).sum().item() == 18

    @pytest.mark.parametrize(
        "ask",
        [
            lambda x: x.sum().item(),
            lambda x: x[x > 1],
            lambda x: x.nonzero(),
            lambda x: bool((x > 1).any()),
            lambda x: x.cpu(),
            lambda x: x.unique(),
            lambda x: torch.arange(4, device=x.device).repeat_interleave(x.int()),
            lambda x: x.new_tensor([1.0]),
            lambda x: x[torch.tensor([0])],
        ],
    )
    def test_it_notes_what_the_host_waits_for(self, ask):
        with PretendedGpu() as gpu:
            there = torch.arange(4.0).to(gpu.device)
            assert gpu.waits == []
            ask(there)
            assert len(gpu.waits) >= 1

    def test_it_attributes_waits_of_the_test_to_code_outside_the_package(self):
        from recgrit.quantization.assignment import first_price_step

        with PretendedGpu() as gpu:
            there = torch.ones(4, 2).to(gpu.device)
            float(first_price_step(there, there))
            assert gpu.waits
            assert all(wait.startswith("outside") for wait in gpu.waits)

    def test_it_gives_the_gradients_of_a_cpu(self):
        layer = torch.nn.Linear(4, 4)
        other = copy.deepcopy(layer)
        other(torch.ones(2, 4)).square().sum().backward()
        with PretendedGpu() as gpu:
            gpu.move(layer)(torch.ones(2, 4).to(gpu.device)).square().sum().backward()
            assert torch.equal(layer.weight.grad.cpu(), other.weight.grad)


def train_steps(model, gpu=None, num_steps=3):
    """Return the losses of a few steps of the training loop, and the waits in each step."""
    torch.manual_seed(0)
    config = ItemVectorConfig(learning_rate=0.01)
    optimizer = build_optimizer(model, config)
    average, gradient = MovingAverage(model, 0.9), GradientSum(model, torch.float32)
    losses, waits = [], []
    for _ in range(num_steps):
        before = 0 if gpu is None else len(gpu.waits)
        sums = _EpochSums(epoch=1)
        optimizer.zero_grad(set_to_none=True)
        batch = draw_training()
        loss = gradient.add(batch, batch.num_targets, last=True)
        sums.add(loss, batch.num_targets)
        sums.end_step(config, deadline=float("inf"))
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        average.update(model)
        losses.append(sums.mean_loss)
        waits.append([] if gpu is None else gpu.waits[before:])
    return losses, waits


TRIES = {
    "plain": {},
    "buckets": {"size": "constant", "node_buckets": 11},
    "constant": {"size": "constant"},
    "all codes": {"trie_softmax": False},
    "one tree level": {"tree_levels": 1},
    "no tree level": {"tree_levels": 0},
    "smoothed": {"label_smoothing": 0.1},
}


@pytest.fixture
def build_trie_model(make_model, random_codes, make_split):
    def build(**settings):
        model = make_model(
            random_codes(NUM_ITEMS, SIZES), neighbours=["near", "next", "alike"], **settings
        )
        rows = np.random.default_rng(0).integers(0, NUM_ITEMS, (60, 9))
        model.neighbours.count(make_split(rows, NUM_ITEMS))
        return model

    return build


@pytest.fixture
def networks(random_codes):
    codes = torch.from_numpy(random_codes(NUM_ITEMS, SIZES))
    sizes = {"model_dim": 16, "num_layers": 1, "num_heads": 2, "history_length": LENGTH}
    everything = torch.ones(NUM_ITEMS, dtype=torch.bool)

    def build(name):
        torch.manual_seed(0)
        if name == "sasrec":
            return SASRec(NUM_ITEMS, train_items=everything, dropout=0.0, **sizes)
        if name == "tiger":
            return EncoderDecoder(codes, SIZES, head_dim=8, hidden_dim=32, dropout=0.0, **sizes)
        if name == "decoder":
            return DecoderOnly(codes, SIZES, dropout=0.0, **sizes)
        features = torch.randn(NUM_ITEMS, 12)
        network = NextItemNetwork(features, train_items=everything, dropout=0.0, **sizes)
        if name == "quantized items":
            quantizer = ResidualGRITVQ(16, 2, 8, reset_interval=None)
            quantizer.fit_init(network.all_vectors())
            network.start_quantizing(quantizer, center=torch.zeros(16), scale=torch.ones(()))
        return network

    return build


@pytest.mark.parametrize("kind", TRIES)
def test_the_retriever_trains_with_one_wait_a_step(build_trie_model, kind):
    settings = {"dropout": 0.0, "node_dropout": 0.0} | TRIES[kind]
    expected, _ = train_steps(build_trie_model(**settings).train())
    model = build_trie_model(**settings).train()
    with PretendedGpu() as gpu:
        found, waits = train_steps(gpu.move(model), gpu)
    assert found == pytest.approx(expected, rel=1e-4)
    assert [len(step) for step in waits] == [1, 1, 1], waits


@pytest.mark.parametrize("name", ["sasrec", "tiger", "decoder", "items", "quantized items"])
def test_other_networks_train_with_one_wait_a_step(networks, name):
    expected, _ = train_steps(networks(name).train())
    model = networks(name).train()
    with PretendedGpu() as gpu:
        found, waits = train_steps(gpu.move(model), gpu)
    assert found == pytest.approx(expected, rel=1e-4)
    assert [len(step) for step in waits] == [1, 1, 1], waits


@pytest.mark.parametrize("kind", TRIES)
@pytest.mark.parametrize("limits", ["none", "filters"])
@pytest.mark.parametrize("beam_width", [12, None])
def test_the_beam_ranks_without_a_wait(build_trie_model, kind, limits, beam_width):
    allowed = torch.arange(NUM_ITEMS) % 3 > 0 if limits == "filters" else None
    excluded = draw_histories(seed=5) if limits == "filters" else None
    model = build_trie_model(**TRIES[kind])
    ranker = TrieRanker(model, beam_width=beam_width, allowed=allowed)
    expected = ranker.rank(draw_histories(), top_k=6, excluded=excluded)
    with PretendedGpu() as gpu:
        ranker = TrieRanker(gpu.move(model), beam_width=beam_width, allowed=allowed)
        gpu.waits.clear()
        found = ranker.rank(
            draw_histories().to(gpu.device),
            top_k=6,
            excluded=excluded and excluded.to(gpu.device),
        )
        waits = list(gpu.waits)
        assert torch.equal(found.items.cpu(), expected.items)
        torch.testing.assert_close(found.scores.cpu(), expected.scores, atol=1e-4, rtol=1e-4)
    # Exact scoring reads numbers node by node. It exists to check the beam, so it may wait.
    assert beam_width is None or waits == []


@pytest.mark.parametrize("name", ["tiger", "decoder"])
def test_token_models_rank_without_a_wait(networks, random_codes, name):
    model = networks(name).eval()
    trie = build_trie(random_codes(NUM_ITEMS, SIZES))
    expected = TokenRanker(model, trie, beam_width=12).rank(
        draw_histories(), top_k=6, excluded=draw_histories(seed=5)
    )
    with PretendedGpu() as gpu:
        gpu.move(model)
        ranker = TokenRanker(model, trie, beam_width=12)
        gpu.waits.clear()
        found = ranker.rank(
            draw_histories().to(gpu.device),
            top_k=6,
            excluded=draw_histories(seed=5).to(gpu.device),
        )
        waits = list(gpu.waits)
        assert torch.equal(found.items.cpu(), expected.items)
    assert waits == []


def test_sasrec_ranks_without_a_wait(networks):
    model = networks("sasrec").eval()

    def rank(device):
        ranker = ScoreRanker(
            partial(model.rank_scores, neighbours=None, precision=torch.float32),
            num_items=NUM_ITEMS,
            history_length=LENGTH,
            device=device,
        )
        excluded = draw_histories(seed=5).to(device)
        return ranker.rank(draw_histories().to(device), top_k=6, excluded=excluded).items

    expected = rank(torch.device("cpu"))
    with PretendedGpu() as gpu:
        gpu.move(model)
        found = rank(gpu.device)
        waits = list(gpu.waits)
        assert torch.equal(found.cpu(), expected)
    assert waits == []


@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantizers_wait_for_resets_alone(name, hierarchy):
    vectors = hierarchy(300)
    quantizer = build_quantizer(name, 16, 2, 16)
    quantizer.fit_init(vectors)
    alone = copy.deepcopy(quantizer)
    with PretendedGpu() as gpu:
        gpu.move(quantizer)
        there = vectors.to(gpu.device)
        for _ in range(3):
            for one, x in ((quantizer, there), (alone, vectors)):
                result = one(x)
                (
                    (result.quantized - x).square().sum() + result.loss
                ).backward() if result.loss.requires_grad else None
                one.after_step()
        waits = list(gpu.waits)
        codes = quantizer.eval().encode(there)
        assert torch.equal(codes.cpu(), alone.eval().encode(vectors))
    assert waits == []


def test_a_reset_waits_and_goes_where_it_would_on_a_cpu(hierarchy):
    vectors = hierarchy(300)
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(16, 2, 16, reset_interval=2, dead_below=0.8)
    quantizer.fit_init(vectors)
    alone = copy.deepcopy(quantizer)
    resets = []
    with PretendedGpu() as gpu:
        gpu.move(quantizer)
        there = vectors.to(gpu.device)
        for step in range(4):
            draws = (torch.Generator().manual_seed(step) for _ in range(2))
            quantizer(there)
            alone(vectors)
            resets.append(
                [q.after_step(generator=d) for q, d in zip((quantizer, alone), draws, strict=True)]
            )
        for found, expected in zip(quantizer.codebooks, alone.codebooks, strict=True):
            torch.testing.assert_close(found.cpu(), expected)
    assert all(a == b for a, b in resets)
    assert sum(a for a, _ in resets) > 0


@pytest.mark.parametrize("how", [{"beam_width": 4}, {"balanced": True}, {"temperature": 1e-5}])
def test_other_ways_to_codes_stay_on_the_device(hierarchy, how):
    vectors = hierarchy(200)
    quantizer = ResidualGRITVQ(16, 2, 16).eval()
    quantizer.fit_init(vectors)
    expected = quantizer.encode(vectors, **how)
    with PretendedGpu() as gpu:
        gpu.move(quantizer)
        assert torch.equal(quantizer.encode(vectors.to(gpu.device), **how).cpu(), expected)


def test_cached_codes_and_recorded_batches_move_with_the_module(hierarchy):
    """A module moved in the middle of a step takes cached codes and the recorded batch with it."""
    vectors = hierarchy(200)
    quantizer = ResidualGRITVQ(16, 2, 16, reset_interval=1, cache_interval=5)
    quantizer.fit_init(vectors)
    quantizer(vectors)
    moved = quantizer.to(torch.float64).to(torch.float32)
    assert moved.maintenance.batch is not None
    assert moved.after_step() >= 0
    quantizer(vectors)
    meta = copy.deepcopy(quantizer).to("meta")
    codes, residuals = meta.maintenance.batch
    assert codes.is_meta
    assert all(residual.is_meta for residual in residuals)
    assert all(buffer.is_meta for buffer in meta.buffers())
    assert meta(vectors.to("meta")).quantized.is_meta
