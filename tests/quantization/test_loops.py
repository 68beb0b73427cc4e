"""Test users' training loops: codes never change while an output that used them awaits backward."""

import copy
import logging
import pickle
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from recgrit.quantization.grit import GRITVQ
from recgrit.quantization.quantizer import QuantizerError
from recgrit.quantization.residual import PATIENCE, ResidualGRITVQ

LEARNING = {
    "joint": {},
    "averages": {"codebook_learning": "ema", "transform_rank": 0},
}


@pytest.fixture(scope="module")
def vectors(hierarchy):
    return hierarchy(640)


def start(vectors, learning="joint", **settings):
    torch.manual_seed(0)
    settings = {"reset_interval": 3} | LEARNING[learning] | settings
    quantizer = ResidualGRITVQ(16, 2, 32, **settings)
    quantizer.fit_init(vectors)
    return quantizer


def batches(vectors, num_batches, size=64):
    draw = torch.Generator().manual_seed(3)
    for _ in range(num_batches):
        yield vectors[torch.randint(len(vectors), (size,), generator=draw)]


def loss_of(quantizer, batch):
    result = quantizer(batch)
    return (result.quantized - batch).square().sum(dim=-1).mean() + result.loss


@pytest.mark.parametrize("learning", LEARNING)
def test_several_forwards_before_one_backward(vectors, learning):
    """Several micro-batches or views may be forwarded before one backward of their summed loss."""
    quantizer = start(vectors, learning)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-3)
    steps = []
    for first, second, third in zip(*[batches(vectors, 90)] * 3, strict=True):
        optimizer.zero_grad()
        sum(loss_of(quantizer, batch) for batch in (first, second, third)).backward()
        optimizer.step()
        steps.append(quantizer.maintenance.num_steps)
    # Maintenance runs once per step: the first forward of a step processes the previous step.
    assert steps == list(range(30))


@pytest.mark.parametrize("learning", LEARNING)
def test_a_late_backward_has_the_gradients_of_its_own_codes(vectors, learning):
    """Optimizer steps, moving averages and resets after the forward do not change its gradients."""
    quantizer = start(vectors, learning, reset_interval=1)
    twin = copy.deepcopy(quantizer)
    twin(vectors[:64]).quantized.square().sum().backward()
    expected = twin.levels[0].transform.rotate.grad
    early = quantizer(vectors[:64])
    for batch in batches(vectors, 3):
        loss_of(quantizer, batch).backward()
        with torch.no_grad():
            for parameter in quantizer.parameters():
                parameter.add_(0.01)
        quantizer.after_step()
    quantizer.zero_grad()
    early.quantized.square().sum().backward()
    found = quantizer.levels[0].transform.rotate.grad
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learning", LEARNING)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(vectors, learning, reentrant):
    """Both passes of a checkpointed forward use the same codes, in one segment and in two."""

    def gradients(wrap):
        torch.manual_seed(1)
        encoder = torch.nn.Linear(16, 16)
        quantizer = start(vectors, learning, reset_interval=1)
        found = []
        for batch in batches(vectors, 6):
            encoder.zero_grad()
            quantizer.zero_grad()
            first = wrap(lambda x: quantizer(encoder(x)).quantized, batch.requires_grad_())
            second = wrap(lambda x: quantizer(x).quantized, first)
            (second - batch).square().sum().backward()
            parameters = [*encoder.parameters(), *quantizer.parameters()]
            found += [p.grad.clone() for p in parameters if p.grad is not None]
            quantizer.after_step(generator=torch.Generator().manual_seed(0))
        return found

    plain = gradients(lambda function, x: function(x))
    again = gradients(lambda function, x: checkpoint(function, x, use_reentrant=reentrant))
    assert len(plain) == len(again) > 0
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("learning", LEARNING)
def test_checkpointing_needs_no_call_of_after_step(vectors, learning):
    quantizer = start(vectors, learning, reset_interval=1)
    plain = start(vectors, learning, reset_interval=1)
    for batch in batches(vectors, 8):
        torch.manual_seed(2)
        checkpoint(lambda x: loss_of(quantizer, x), batch, use_reentrant=False).backward()
        torch.manual_seed(2)
        loss_of(plain, batch).backward()
    assert quantizer.maintenance.num_steps == plain.maintenance.num_steps == 7
    for a, b in zip(quantizer.codebooks, plain.codebooks, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_two_turns_of_an_adversarial_loop(vectors):
    """The discriminator uses an output without gradients, and the generator uses a new output."""
    quantizer = start(vectors, "averages")
    encoder, judge = torch.nn.Linear(16, 16), torch.nn.Linear(16, 1)
    both = torch.optim.Adam([*encoder.parameters(), *judge.parameters()], lr=1e-3)
    for batch in batches(vectors, 12):
        result = quantizer(encoder(batch))
        judge(result.quantized.detach()).mean().backward()
        fooled = judge(quantizer(encoder(batch)).quantized).mean()
        (fooled + result.loss).backward()
        both.step()
        both.zero_grad()
    assert quantizer.maintenance.num_steps == 11


@pytest.mark.parametrize("learning", LEARNING)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_backward_may_follow_later_batches(vectors, learning, reentrant):
    """The second pass of a checkpoint uses the codes of its first, even after other batches."""
    quantizer = start(vectors, learning, reset_interval=1, dead_below=0.9)
    first, second, third = (batch.requires_grad_() for batch in batches(vectors, 3))
    twin = copy.deepcopy(quantizer)
    twin(first).quantized.square().sum().backward()
    expected = first.grad.clone()
    first.grad = None
    late = checkpoint(lambda x: quantizer(x).quantized, first, use_reentrant=reentrant)
    quantizer(second).quantized.square().sum().backward()
    # The first pass of a reentrant checkpoint leaves no trace (see the docs), so the third batch
    # would change the codes.
    if not reentrant:
        quantizer(third)
    late.square().sum().backward()
    torch.testing.assert_close(first.grad, expected, atol=1e-5, rtol=1e-4)


def test_codes_do_not_start_under_an_output_that_is_in_use(vectors):
    quantizer = ResidualGRITVQ(16, 2, 64, codebook_dim=4)
    outputs = [quantizer(vectors[:200].clone().requires_grad_()) for _ in range(2)]
    outputs[1].loss.backward()
    late = quantizer(vectors[:200].clone().requires_grad_())
    outputs[0].loss.backward()
    late.loss.backward()
    quantizer(vectors[:200])
    assert quantizer.mean_gap > 0


def test_two_heads_can_run_backward_one_after_the_other(vectors):
    quantizer = start(vectors, reset_interval=1)
    heads = torch.nn.Linear(16, 1), torch.nn.Linear(16, 2)
    for batch in batches(vectors, 6):
        output = quantizer(batch).quantized
        heads[0](output).sum().backward(retain_graph=True)
        heads[1](output).sum().backward()
    assert quantizer.maintenance.num_steps == 5


def test_a_kept_output_delays_maintenance(vectors):
    quantizer = start(vectors, reset_interval=1)
    before = quantizer.codebooks
    kept = [quantizer(batch).quantized for batch in batches(vectors, 4)]
    assert quantizer.maintenance.num_steps == 0
    assert all(torch.equal(a, b) for a, b in zip(quantizer.codebooks, before, strict=True))
    sum(output.sum() for output in kept).backward()
    quantizer(vectors[:64])
    assert quantizer.maintenance.num_steps == 1


def test_a_discarded_output_does_not_delay_maintenance(vectors):
    quantizer = start(vectors)
    for batch in batches(vectors, 4):
        quantizer(batch)
    assert quantizer.maintenance.num_steps == 3


def test_threads_share_a_module(vectors):
    """The gradients of each thread fit its outputs, and every batch is counted once."""
    quantizer = start(vectors, "averages", reset_interval=None)
    errors = []

    def work(seed):
        draw = torch.Generator().manual_seed(seed)
        try:
            for _ in range(40):
                batch = vectors[torch.randint(len(vectors), (64,), generator=draw)]
                loss_of(quantizer, batch.clone().requires_grad_()).backward()
        except RuntimeError as error:
            errors.append(error)

    # After this call, maintenance runs only in after_step, so the counts are kept.
    quantizer.after_step()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert int(quantizer.maintenance.recorded[2]) == 160
    assert int(quantizer.levels[0].counts.sum()) == 160 * 64


def test_threads_need_no_call_of_after_step(vectors):
    quantizer = start(vectors, "averages", reset_interval=2)
    errors = []

    def work(seed):
        draw = torch.Generator().manual_seed(seed)
        try:
            for _ in range(30):
                batch = vectors[torch.randint(len(vectors), (64,), generator=draw)]
                loss_of(quantizer, batch).backward()
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert quantizer.maintenance.num_steps > 0


def test_missing_calls_of_after_step_are_reported_once(vectors, caplog):
    quantizer = start(vectors)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-3)
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        quantizer(vectors[:64])
        quantizer.after_step(optimizer)
        for batch in batches(vectors, PATIENCE):
            loss_of(quantizer, batch).backward()
        assert caplog.text == ""
        for batch in batches(vectors, PATIENCE):
            loss_of(quantizer, batch).backward()
    assert caplog.text.count("after_step() was called before") == 1
    assert quantizer.maintenance.num_steps == 1


def test_batches_without_gradients_are_reported(vectors, caplog):
    """The module cannot know whether such a batch gets a backward pass, so it logs a warning."""
    quantizer = start(vectors, "averages")
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="recgrit"):
        for batch in batches(vectors, PATIENCE + 2):
            quantizer(batch)
    assert caplog.text.count("wait for codebook maintenance") == 1
    assert quantizer.after_step() >= 0
    assert quantizer.maintenance.num_steps == 1


def test_an_optimizer_leaves_frozen_codes_alone(vectors):
    quantizer = start(vectors)
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.1, weight_decay=0.5)
    loss_of(quantizer, vectors).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    quantizer.freeze()
    before = quantizer.codebooks
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(quantizer.codebooks, before, strict=True))


@pytest.mark.parametrize("settings", [{"cache_interval": 5}, {"level_dropout": 0.3}])
@pytest.mark.parametrize("num_before", [7, 8])
def test_a_resumed_training_with_two_batches_per_step_is_exact(vectors, settings, num_before):
    def train(quantizer, optimizer, some, first):
        for number, batch in enumerate(some, start=first):
            loss_of(quantizer, batch).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
                quantizer.after_step(optimizer, generator=torch.Generator().manual_seed(number))

    def fresh():
        quantizer = start(vectors, **settings)
        return quantizer, torch.optim.SGD(quantizer.parameters(), lr=1e-2)

    whole = list(batches(vectors, 20))
    straight, optimizer = fresh()
    train(straight, optimizer, whole[:num_before], 0)
    state = copy.deepcopy(straight.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in straight.parameters()]
    chance = torch.get_rng_state()
    train(straight, optimizer, whole[num_before:], num_before)
    resumed, optimizer = fresh()
    resumed.load_state_dict(state)
    for parameter, gradient in zip(resumed.parameters(), gradients, strict=True):
        parameter.grad = gradient
    torch.set_rng_state(chance)
    train(resumed, optimizer, whole[num_before:], num_before)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("learning", LEARNING)
@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize(
    ("started", "num_before"), [(True, 7), (True, 8), (True, 9), (False, 2), (False, 3)]
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    vectors, learning, by_hand, started, num_before
):
    """The state includes the counts of steps and uses, and the batch for the next reset."""

    def train(quantizer, optimizer, some, draws):
        for batch in some:
            optimizer.zero_grad()
            loss_of(quantizer, batch).backward()
            optimizer.step()
            if by_hand:
                quantizer.after_step(optimizer, generator=draws)

    def fresh():
        if not started:  # The start needs 128 vectors: three batches and a part of the fourth.
            torch.manual_seed(0)
            quantizer = ResidualGRITVQ(16, 2, 32, reset_interval=3, **LEARNING[learning])
        else:
            quantizer = start(vectors[:100], learning)
        return quantizer, torch.optim.Adam(quantizer.parameters(), lr=1e-2)

    whole = list(batches(vectors, 20, size=40))
    straight, its_optimizer = fresh()
    draws = torch.Generator().manual_seed(5)
    train(straight, its_optimizer, whole[:num_before], draws)
    state = copy.deepcopy(straight.state_dict())
    moments = copy.deepcopy(its_optimizer.state_dict())
    drawn, chance = draws.get_state(), torch.get_rng_state()
    train(straight, its_optimizer, whole[num_before:], draws)

    resumed, its_optimizer = fresh()
    resumed.load_state_dict(state)
    its_optimizer.load_state_dict(moments)
    draws.set_state(drawn)
    torch.set_rng_state(chance)
    train(resumed, its_optimizer, whole[num_before:], draws)
    assert all(
        torch.equal(value, resumed.state_dict()[name])
        for name, value in straight.state_dict().items()
    )
    assert resumed.maintenance.num_steps == straight.maintenance.num_steps > 15


def test_settings_changed_during_training_are_saved(vectors, tmp_path):
    quantizer = start(vectors)
    quantizer.reset_interval = None
    quantizer.freeze()
    quantizer.save(tmp_path / "vq.safetensors")
    loaded = ResidualGRITVQ.load(tmp_path / "vq.safetensors")
    assert loaded.reset_interval is None
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    other = start(vectors)
    other.load_state_dict(quantizer.state_dict())
    assert other.reset_interval is None
    assert not other.train()(vectors).quantized.requires_grad


@pytest.mark.parametrize("learning", LEARNING)
def test_unfreezing_restores_which_parameters_are_trained(vectors, learning):
    quantizer = start(vectors, learning)
    # The user froze this parameter, so unfreeze must not make it trainable.
    quantizer.levels[1].transform.rotate.requires_grad_(False)
    before = {name: p.requires_grad for name, p in quantizer.named_parameters()}
    quantizer.freeze()
    quantizer.unfreeze()
    assert before == {name: p.requires_grad for name, p in quantizer.named_parameters()}
    codes = quantizer.codebooks
    quantizer(vectors + 1)
    quantizer.after_step()
    assert (learning == "averages") != torch.equal(codes[0], quantizer.codebooks[0])


def test_a_module_can_be_copied_in_the_middle_of_a_step(vectors):
    quantizer = start(vectors)
    output = quantizer(vectors).quantized
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(vectors).codes, quantizer.encode(vectors))
    output.sum().backward()


def test_vectors_that_are_not_finite_are_found_between_steps(vectors, monkeypatch):
    """On a GPU a check would make the host wait, so bad vectors are found some steps later."""
    from recgrit.quantization import maintenance, quantizer

    monkeypatch.setattr(quantizer, "_check_finite", lambda rows: None)
    monkeypatch.setattr(maintenance, "CHECK_INTERVAL", 5)
    vq = GRITVQ(16, 8)
    vq.fit_init(vectors)
    vq(torch.cat([vectors, torch.full((1, 16), torch.nan)]))
    for _ in range(4):  # Good batches that follow do not hide the bad one.
        vq.after_step()
        vq(vectors)
    with pytest.raises(QuantizerError, match="Vectors of the last 5 steps held NaN"):
        vq.after_step()


@pytest.mark.parametrize("settings", [{}, {"codebook_dim": 4}])
def test_autocast_from_the_first_batch_on(vectors, settings):
    plain, cast = (ResidualGRITVQ(16, 2, 32, **settings) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        cast(vectors)
        residual, _ = cast.last_level(vectors)
        codes = cast.encode(vectors)
        total = cast.code_vectors(codes).sum(dim=-2) + cast.offset
        assert {x.dtype for x in (residual, total, *cast.effective_codebooks())} == {torch.float32}
        torch.testing.assert_close(total, cast.decode(codes), atol=1e-4, rtol=1e-4)
    plain(vectors)
    assert torch.equal(plain.codebooks[1], cast.codebooks[1])


def test_a_surrogate_without_a_gradient_for_codes_is_reported(caplog):
    from recgrit.quantization.estimators import RotationTrick

    with caplog.at_level(logging.WARNING, logger="recgrit"):
        GRITVQ(4, 8, radius="straight_through", codebook_weight=1.0)
        GRITVQ(4, 8, radius="straight_through", codebook_learning="ema", transform_rank=0)
        assert caplog.text == ""
        GRITVQ(4, 8, radius="straight_through")
        GRITVQ(4, 8, surrogate=RotationTrick())
    assert caplog.text.count("Nothing trains the codes") == 2
