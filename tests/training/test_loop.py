import dataclasses

import numpy as np
import pytest
import torch

from recgrit.errors import TrainingError
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.training import loop
from recgrit.training.averaging import MovingAverage
from recgrit.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from tests.small_models import build_retriever, fit_retriever

NUM_ITEMS = 40


@pytest.fixture(scope="module")
def split(make_split, cyclic):
    return make_split(cyclic(num_items=NUM_ITEMS), NUM_ITEMS).with_own_people()


@pytest.fixture(scope="module")
def table(make_table, random_codes):
    return make_table(random_codes(NUM_ITEMS), (4, 4, 4))


def numbers(history):
    """Return the reports without measured times."""
    return [dataclasses.replace(epoch, seconds=0.0, targets_per_second=0.0) for epoch in history]


class PowerCutError(Exception):
    """An exception that simulates a power cut."""


def stop_after(last):
    def on_epoch(epoch):
        if epoch.epoch == last:
            raise PowerCutError

    return on_epoch


@pytest.mark.parametrize("average_decay", [0.0, 0.9])
@pytest.mark.parametrize(("last", "attributes"), [(1, ()), (3, ()), (1, ("category", "price"))])
def test_an_interrupted_training_resumes_exactly(
    table, split, make_config, tmp_path, average_decay, last, attributes
):
    config = make_config(
        epochs=4,
        patience=4,
        dropout=0.3,
        average_decay=average_decay,
        item_attributes=attributes,
        user_attributes=("segment",) if attributes else (),
    )
    whole = fit_retriever(table, split, None, config, seed=0)
    path = tmp_path / "training" / "state.safetensors"
    with pytest.raises(PowerCutError):
        fit_retriever(
            table, split, None, config, seed=0, on_epoch=stop_after(last), checkpoint=path
        )
    torch.rand(17)  # Other draws of the process must not change the resumed training.
    reported = []
    resumed = fit_retriever(
        table, split, None, config, seed=0, on_epoch=reported.append, checkpoint=path
    )
    assert numbers(resumed.history) == numbers(whole.history)
    assert resumed.best_epoch == whole.best_epoch
    assert reported == resumed.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_a_stop_within_an_epoch_repeats_that_epoch(
    table, split, make_config, tmp_path, monkeypatch
):
    config = make_config(epochs=3)
    whole = fit_retriever(table, split, None, config, seed=0)
    path = tmp_path / "state.safetensors"
    steps_per_epoch = -(-loop.build_windows(split, 10).num_targets // config.batch_targets)
    loss, calls = TrieRetriever.loss, []

    def break_in_the_second_epoch(*arguments):
        calls.append(1)
        if len(calls) == steps_per_epoch + 2:
            raise PowerCutError
        return loss(*arguments)

    monkeypatch.setattr(TrieRetriever, "loss", break_in_the_second_epoch)
    with pytest.raises(PowerCutError):
        fit_retriever(table, split, None, config, seed=0, checkpoint=path)
    monkeypatch.undo()
    resumed = fit_retriever(table, split, None, config, seed=0, checkpoint=path)
    assert numbers(resumed.history) == numbers(whole.history)


def test_a_finished_training_is_read_back(table, split, make_config, tmp_path):
    path = tmp_path / "state.safetensors"
    config = make_config(epochs=2)
    first, again = (
        fit_retriever(table, split, None, config, seed=0, checkpoint=path) for _ in range(2)
    )
    assert first.history == again.history


def test_a_checkpoint_of_something_else_is_refused(
    table, split, make_config, tmp_path, make_table, random_codes
):
    path = tmp_path / "state.safetensors"
    fit_retriever(table, split, None, make_config(epochs=1), seed=0, checkpoint=path)
    with pytest.raises(TrainingError, match="belongs to another training"):
        fit_retriever(
            table, split, None, make_config(epochs=1, model_dim=24), seed=0, checkpoint=path
        )
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"damaged.*Delete it"):
        fit_retriever(table, split, None, make_config(epochs=1), seed=0, checkpoint=path)


def test_no_half_written_checkpoint_is_left(table, split, make_config, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    fit_retriever(table, split, None, make_config(epochs=1), seed=0, checkpoint=path)
    before = path.read_bytes()

    def fail(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recgrit.training.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        fit_retriever(table, split, None, make_config(epochs=2), seed=0, checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_step_in_parts_is_the_same_step(table, split, make_config):
    """Without dropout, only rounding differs. Dropout would be drawn in another order."""
    settings = {"epochs": 2, "dropout": 0.0, "node_dropout": 0.0}
    whole, parts = (
        fit_retriever(table, split, None, make_config(accumulation=n, **settings), seed=0)
        for n in (1, 3)
    )
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.level_accuracy == pytest.approx(one.level_accuracy, abs=5e-3)


def test_what_is_kept_is_the_average_of_the_weights(table, split, make_config, monkeypatch):
    """The average is a plain mean at first, and then a moving average."""
    step, weights = loop.torch.optim.AdamW.step, []

    def record(optimizer, *arguments):
        result = step(optimizer, *arguments)
        weights.append(optimizer.param_groups[0]["params"][0].detach().clone())
        return result

    monkeypatch.setattr(loop.torch.optim.AdamW, "step", record)
    config = make_config(epochs=1, average_decay=0.8)
    kept = fit_retriever(table, split, None, config, seed=0).model
    expected = weights[0]
    for number, value in enumerate(weights[1:], start=1):
        expected = torch.lerp(value, expected, min(0.8, number / (number + 1)))
    parameter = next(p for p in kept.parameters() if p.ndim > 1)
    torch.testing.assert_close(parameter.detach(), expected)
    assert not torch.equal(parameter, weights[-1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_lack_of_memory_is_reported_with_settings_to_try(
    table, split, make_config, monkeypatch, error
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(TrieRetriever, "loss", fail)
    with pytest.raises(TrainingError, match=r"accumulation=2 .*batch_targets=64"):
        fit_retriever(table, split, None, make_config(batch_targets=128), seed=0)


def test_other_runtime_errors_are_raised_unchanged(table, split, make_config, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(TrieRetriever, "loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit_retriever(table, split, None, make_config(), seed=0)


def test_time_ends_a_training_within_an_epoch(table, split, make_config):
    config = make_config(epochs=5, max_seconds=1e-3)
    found = fit_retriever(table, split, None, config, seed=0)
    (epoch,) = found.history
    # There was a single step, which hardly changes the initial loss.
    assert epoch.train_loss == pytest.approx(np.log(NUM_ITEMS), abs=1)


def test_a_threshold_of_validation_ends_a_training(table, split, make_config):
    config = make_config(epochs=5, patience=5)
    whole = fit_retriever(table, split, None, config, seed=0).history
    values = [epoch.valid_ndcg_at_10 for epoch in whole]
    threshold = values[2]
    found = loop.train_model(
        lambda: build_retriever(table, split, None, config),
        lambda model, precision: TrieRanker(model, beam_width=20, precision=precision),
        split,
        config,
        history_length=10,
        seed=0,
        stop_at=threshold,
    )
    first = next(i for i, value in enumerate(values) if value >= threshold)
    assert numbers(found.history) == numbers(whole[: first + 1])


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path):
    network = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainingState(
        network, MovingAverage(network, 0.9), optimizer, schedule, np.random.default_rng(0)
    )
    network(torch.ones(1, 4)).sum().backward()
    state.step(max_grad_norm=1.0)
    state.best = {name: value.clone() for name, value in network.state_dict().items()}
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, state, [{"epoch": 1}])
    content = path.read_bytes()
    assert load_checkpoint(path, state) == [{"epoch": 1}]
    for place in (len(content) - 1, len(content) - 90, content.index(b"schedule") + 30):
        changed = bytearray(content)
        changed[place] ^= 0x04
        path.write_bytes(changed)
        with pytest.raises(TrainingError, match="is damaged or belongs to another training"):
            load_checkpoint(path, state)
