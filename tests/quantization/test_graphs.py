"""Test the module with torch.compile, torch.export, torch.func and the meta device."""

import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from recgrit.quantization.residual import PATIENCE, ResidualGRITVQ

LEARNING = {
    "joint": {},
    "averages": {"codebook_learning": "ema", "transform_rank": 0},
    "everything": {"usage_weight": 0.1, "radius": "huber", "codebook_dim": 8},
}


@pytest.fixture(scope="module")
def vectors(hierarchy):
    return hierarchy(256)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def start(vectors, learning="joint", **settings):
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(16, 2, 16, reset_interval=3, **(LEARNING[learning] | settings))
    quantizer.fit_init(vectors)
    return quantizer


def loss_of(quantizer, batch):
    result = quantizer(batch)
    return (result.quantized - batch).square().sum(dim=-1).mean() + result.loss


@pytest.mark.parametrize("learning", LEARNING)
def test_a_compiled_training_compiles_once_and_learns_the_same(vectors, learning):
    plain, compiled = (start(vectors, learning) for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    both = [
        (plain, plain, torch.optim.SGD(plain.parameters(), lr=0.01)),
        (
            compiled,
            torch.compile(compiled, fullgraph=True, backend=counter),
            torch.optim.SGD(compiled.parameters(), lr=0.01),
        ),
    ]
    draw = torch.Generator().manual_seed(1)
    for step in range(12):
        batch = vectors[torch.randint(256, (64,), generator=draw)]
        for quantizer, called, optimizer in both:
            optimizer.zero_grad()
            loss_of(called, batch).backward()
            optimizer.step()
            quantizer.after_step(optimizer, generator=torch.Generator().manual_seed(step))
    assert counter.frame_count == 1
    assert compiled.maintenance.num_steps == plain.maintenance.num_steps == 12
    for a, b in zip(compiled.codebooks, plain.codebooks, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert torch.equal(compiled.levels[0].uses, plain.levels[0].uses)


def test_a_compiled_module_takes_a_mask(vectors):
    quantizer = start(vectors).eval()
    mask = torch.rand(256) > 0.4
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(vectors, mask).codes, quantizer(vectors, mask).codes)


def test_a_compiled_training_starts_by_kmeans_at_its_first_step(vectors):
    quantizer = ResidualGRITVQ(16, 2, 16)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    random = compiled(vectors).commitment_loss
    quantizer.after_step()
    assert quantizer(vectors).commitment_loss < 0.5 * random


def test_small_batches_of_a_compiled_training_are_collected_for_its_start(vectors):
    quantizer = ResidualGRITVQ(16, 2, 64)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for batch in (vectors[:40], vectors[40:80], vectors[80:120]) * 3:
        compiled(batch)
        quantizer.after_step()
    assert quantizer.mean_gap > 0
    assert quantizer(vectors).commitment_loss < 1


def test_a_compiled_search_and_losses_by_level(vectors):
    quantizer = start(vectors).eval()
    encode = torch.compile(
        lambda x: quantizer.encode(x, beam_width=3), fullgraph=True, backend="eager"
    )
    assert torch.equal(encode(vectors), quantizer.encode(vectors, beam_width=3))
    losses = torch.compile(lambda x: quantizer(x).level_losses, fullgraph=True, backend="eager")
    torch.testing.assert_close(losses(vectors), quantizer(vectors).level_losses)


def test_a_compiled_training_without_after_step_is_reported(vectors, caplog):
    quantizer = start(vectors)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for _ in range(PATIENCE):
        compiled(vectors)
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        quantizer.eval()
        quantizer.train().eval()
    assert caplog.text.count("100 training batches wait for codebook maintenance") == 1


@pytest.mark.parametrize("learning", LEARNING)
def test_an_exported_program_gives_the_same(vectors, learning):
    quantizer = start(vectors, learning).eval()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x):
            codes = self.quantizer.encode(x)
            return codes, self.quantizer.decode(codes)

    sizes = ({0: torch.export.Dim("B", min=26)},)
    program = torch.export.export(Encoder(), (vectors,), dynamic_shapes=sizes)
    loose = torch.export.export(quantizer, (vectors,), dynamic_shapes=sizes, strict=False)
    assert torch.equal(loose.module()(vectors[:40]).codes, quantizer(vectors[:40]).codes)
    codes, decoded = program.module()(vectors[:77])
    assert torch.equal(codes, quantizer.encode(vectors[:77]))
    torch.testing.assert_close(decoded, quantizer.decode(codes))
    whole = torch.export.export(quantizer, (vectors,)).module()(vectors)
    assert torch.equal(whole.codes, quantizer(vectors).codes)


def test_per_sample_gradients_are_those_of_each_sample(vectors):
    quantizer = start(vectors)
    parameters, buffers = dict(quantizer.named_parameters()), dict(quantizer.named_buffers())
    before = {name: value.clone() for name, value in buffers.items()}

    def loss(values, x):
        result = torch.func.functional_call(quantizer, (values, buffers), (x,))
        return (result.quantized - x).square().sum(dim=-1).mean() + result.loss

    groups = vectors.reshape(8, 32, 16)
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, groups)
    assert all(torch.equal(value, before[name]) for name, value in buffers.items())
    for i, group in enumerate(groups):
        quantizer.zero_grad()
        loss_of(quantizer.eval(), group).backward()
        for name, parameter in quantizer.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name][i], expected, atol=1e-5, rtol=1e-3)


def test_vmap_goes_through_codes_and_back(vectors):
    quantizer = start(vectors).eval()
    groups = vectors.reshape(8, 32, 16)
    codes = torch.vmap(quantizer.encode)(groups)
    assert torch.equal(codes, quantizer.encode(groups))
    assert torch.equal(torch.vmap(quantizer.decode)(codes), quantizer.decode(codes))


def test_shapes_are_known_without_values():
    with torch.device("meta"):
        quantizer = ResidualGRITVQ(16, 2, 8)
        vectors = torch.empty(5, 7, 16)
    result = quantizer(vectors)
    assert result.quantized.shape == (5, 7, 16)
    assert quantizer.eval().encode(vectors).shape == (5, 7, 2)
    assert quantizer.decode(result.codes).is_meta


def test_a_module_without_values_takes_those_of_a_state(vectors):
    quantizer = start(vectors).eval()
    with torch.device("meta"):
        empty = ResidualGRITVQ(16, 2, 16)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(quantizer.state_dict())
    assert torch.equal(filled.eval()(vectors).codes, quantizer(vectors).codes)
    filled.train()(vectors)
    assert filled.after_step() >= 0
