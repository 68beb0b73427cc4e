import numpy as np
import pytest
import torch

from recgrit.data.recommendations import NO_ITEM
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.models.decoder import DecoderOnly
from recgrit.models.tiger import EncoderDecoder
from recgrit.models.tokens import TokenRanker
from recgrit.ranking import Histories, recommend_items
from recgrit.retrieval.trie_tensors import TrieTensors
from recgrit.semantic_ids.trie import build_trie
from recgrit.training.config import TrainingConfig
from recgrit.training.loop import train_model
from tests.small_models import loss_of, losses_by_weight

NUM_ITEMS, SIZES, HISTORY_LENGTH = 40, (4, 4, 4), 6


@pytest.fixture(scope="module")
def codes():
    flat = np.random.default_rng(0).choice(64, NUM_ITEMS, replace=False)
    return np.stack(np.unravel_index(flat, SIZES), axis=1).astype(np.int32)


@pytest.fixture(params=["encoder-decoder", "decoder only"])
def build(request, codes):
    sizes = {"model_dim": 16, "num_layers": 2, "num_heads": 2, "history_length": HISTORY_LENGTH}

    def make(dropout=0.0, **changes):
        torch.manual_seed(0)
        settings = sizes | {"dropout": dropout} | changes
        if request.param == "decoder only":
            model = DecoderOnly(torch.from_numpy(codes), SIZES, **settings)
        else:
            model = EncoderDecoder(
                torch.from_numpy(codes), SIZES, head_dim=8, hidden_dim=32, **settings
            )
        return model

    return make


@pytest.fixture
def model(build):
    model = build().eval()
    with torch.no_grad():
        model.tables.embedding.weight.normal_(std=0.3)
    return model


@pytest.fixture
def histories():
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(NUM_ITEMS, (5, HISTORY_LENGTH), generator=generator)
    return Histories(items, torch.tensor([6, 1, 3, 5, 2]))


def log_probability(model, history, item):
    """Compute log P of an item after a history by the training loss."""
    targets = torch.cat([history[1:], torch.tensor([item])])
    supervised = torch.zeros(1, len(history), dtype=torch.bool)
    supervised[0, -1] = True
    return -loss_of(model, history[None], targets[None], supervised).value


def test_a_full_beam_ranks_by_what_training_computes(model, codes, histories):
    """Decoding gives the probabilities of training, although their code differs."""
    ranker = TokenRanker(model, build_trie(codes), beam_width=NUM_ITEMS)
    found = ranker.rank(histories, top_k=NUM_ITEMS, excluded=None)
    for row in range(len(histories.items)):
        history = histories.items[row, : histories.lengths[row]]
        with torch.no_grad():
            expected = torch.stack([log_probability(model, history, i) for i in range(NUM_ITEMS)])
        by_item = found.scores[row][found.items[row].argsort()]
        torch.testing.assert_close(by_item, expected, atol=1e-4, rtol=1e-4)
        assert found.scores[row].tolist() == sorted(found.scores[row].tolist(), reverse=True)


def test_a_batch_is_the_mean_of_its_positions(model, histories):
    targets = (histories.items + 3) % NUM_ITEMS
    # Within a history, the target of an item is the next item.
    targets[:, :-1] = histories.items[:, 1:]
    supervised = histories.present.clone()
    supervised[0, :2] = False  # These positions are context only, as in the overlap of two windows.
    with torch.no_grad():
        expected = -torch.stack(
            [
                log_probability(model, histories.items[row, : place + 1], int(targets[row, place]))
                for row, place in supervised.nonzero().tolist()
            ]
        ).mean()
        found = loss_of(model, histories.items, targets, supervised).value
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_narrow_beam_fills_its_list_with_other_items(model, codes, histories):
    ranker = TokenRanker(model, build_trie(codes), beam_width=5)
    found = ranker.rank(histories, top_k=5, excluded=histories)
    for row in range(len(histories.items)):
        items = found.items[row].tolist()
        seen = histories.items[row, : histories.lengths[row]].tolist()
        assert len(set(items)) == 5
        assert not set(items) & {NO_ITEM, *seen}


def test_all_but_two_items_excluded(model, codes):
    others = Histories(torch.arange(2, NUM_ITEMS).unsqueeze(0), torch.tensor([NUM_ITEMS - 2]))
    ranker = TokenRanker(model, build_trie(codes), beam_width=4)
    one = Histories(torch.tensor([[3]]), torch.tensor([1]))
    found = ranker.rank(one, top_k=4, excluded=others)
    assert sorted(found.items[0].tolist()) == [NO_ITEM, NO_ITEM, 0, 1]


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_list_longer_than_the_catalogue_ends_without_items(
    model, codes, histories, monkeypatch, fixed_shapes
):
    """This holds for beam search on a CPU and, with fixed shapes, on an accelerator."""
    monkeypatch.setattr(TrieTensors, "fixed_shapes", fixed_shapes)
    ranker = TokenRanker(model, build_trie(codes), beam_width=NUM_ITEMS + 5)
    found = ranker.rank(histories, top_k=NUM_ITEMS + 5, excluded=None)
    assert found.items.shape == found.scores.shape == (5, NUM_ITEMS + 5)
    assert found.items[:, :NUM_ITEMS].sort().values.tolist() == [list(range(NUM_ITEMS))] * 5
    assert (found.items[:, NUM_ITEMS:] == NO_ITEM).all()


def test_a_beam_is_as_wide_as_the_list(model, codes, histories):
    narrow, wide = (
        TokenRanker(model, build_trie(codes), beam_width=width).rank(
            histories, top_k=9, excluded=None
        )
        for width in (4, 9)
    )
    assert torch.equal(narrow.items, wide.items)


def test_later_items_change_no_earlier_loss(model, histories):
    supervised = torch.zeros_like(histories.present)
    supervised[:, 2] = True
    targets = histories.items.roll(-1, dims=1)
    changed = histories.items.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % NUM_ITEMS
    with torch.no_grad():
        before = loss_of(model, histories.items, targets, supervised).value
        after = loss_of(model, changed, targets, supervised).value
    torch.testing.assert_close(before, after)


def test_the_successor_of_the_last_item_is_learned(build, codes, make_split, cyclic):
    split = make_split(cyclic(), NUM_ITEMS)
    trie = build_trie(codes)
    config = TrainingConfig(
        epochs=8,
        patience=8,
        batch_targets=128,
        learning_rate=0.01,
        warmup_steps=5,
        average_decay=0.0,
        device="cpu",
        precision="float32",
    )
    found = train_model(
        build,
        lambda model, precision: TokenRanker(model, trie, beam_width=15),
        split,
        config,
        history_length=HISTORY_LENGTH,
        seed=0,
    )
    users = split.target_users("test")
    ranker = TokenRanker(found.model, trie, beam_width=15)
    lists = recommend_items(ranker, split, "test", users, top_k=10, masked=False)
    ranks = ranks_of_targets(lists.items, split.targets("test", users))
    assert recall_at_k(ranks, 10).mean() > 0.8
    assert len(found.history[0].level_accuracy) == len(SIZES)


def test_targets_are_weighted_in_the_loss(model):
    items = torch.randint(NUM_ITEMS, (4, HISTORY_LENGTH + 1))
    supervised = torch.rand(4, HISTORY_LENGTH) < 0.7
    with torch.no_grad():
        found = losses_by_weight(model, items[:, :-1], items[:, 1:], supervised)
    torch.testing.assert_close(*found)


def test_a_wide_search_builds_no_mask_that_grows_with_its_square(
    model, codes, histories, monkeypatch
):
    """A search with a beam per item works in parts, with the same lists and small masks."""
    from recgrit.models import decoder, tiger, tokens

    widest = 0

    def watched(width, length, device):
        nonlocal widest
        widest = max(widest, width * length)
        return beam_mask(width, length, device)

    beam_mask = tokens.beam_mask
    for module in (decoder, tiger):
        monkeypatch.setattr(module, "beam_mask", watched)
    ranker = TokenRanker(model, build_trie(codes), beam_width=NUM_ITEMS)
    whole = ranker.rank(histories, top_k=NUM_ITEMS, excluded=None)
    assert widest > 24
    widest = 0
    monkeypatch.setattr(tokens, "MASKED_TOKENS", 24)
    parts = ranker.rank(histories, top_k=NUM_ITEMS, excluded=None)
    assert 0 < widest <= 24
    assert torch.equal(parts.items, whole.items)
    torch.testing.assert_close(parts.scores, whole.scores, atol=1e-5, rtol=1e-5)
