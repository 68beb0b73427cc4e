"""Test positions of the vector dimension in a tensor, dtypes and sizes."""

import numpy as np
import pytest
import torch

from recgrit.quantization.baselines import QUANTIZERS, build_quantizer
from recgrit.quantization.grit import GRITVQ
from recgrit.quantization.quantizer import QuantizerError
from recgrit.quantization.residual import ResidualGRITVQ

DIM = 12


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(480, DIM, generator=torch.Generator().manual_seed(0))


def start(vectors, make=ResidualGRITVQ, **settings):
    torch.manual_seed(0)
    quantizer = make(DIM, **({"codebook_size": 16} | settings))
    quantizer.fit_init(vectors)
    return quantizer.eval()


@pytest.mark.parametrize("shape", [(480,), (40, 12), (5, 8, 12), (2, 4, 6, 10)])
def test_channel_first_input_gives_the_same_codes(vectors, shape):
    last = start(vectors)
    first = start(vectors, channel_first=True)
    boxed = vectors.reshape(*shape, DIM)
    moved = boxed.movedim(-1, 1)
    expected, found = last(boxed), first(moved)
    assert torch.equal(found.codes, expected.codes)
    assert found.quantized.shape == moved.shape
    assert torch.equal(found.quantized.movedim(1, -1), expected.quantized)
    assert torch.equal(first.encode(moved), expected.codes)
    assert torch.equal(first.decode(expected.codes), found.quantized)


def test_images_go_through_one_codebook(vectors):
    vq = start(vectors, GRITVQ, channel_first=True)
    images = vectors.reshape(3, 16, 10, DIM).movedim(-1, 1)
    result = vq(images)
    assert result.codes.shape == (3, 16, 10)
    assert torch.equal(vq.decode(result.codes), result.quantized)


def test_an_ambiguous_channel_axis_is_refused(vectors):
    square = torch.randn(2, DIM, 5, DIM)
    with pytest.raises(QuantizerError, match=r"has 12 on axis 1 and on the last axis: build the"):
        start(vectors)(square)
    with pytest.raises(QuantizerError, match="axis 1 and on the last"):
        start(vectors).encode(square)
    last = start(vectors, channel_first=False)(square)
    first = start(vectors, channel_first=True)(square)
    assert last.codes.shape == (2, DIM, 5, 3)
    assert first.codes.shape == (2, 5, DIM, 3)
    # A square input is read as [B, T, D], because this is the usual shape of sequences.
    assert start(vectors)(torch.randn(2, DIM, DIM)).codes.shape == (2, DIM, 3)


def test_a_wrong_channel_axis_is_refused_with_the_expected_one(vectors):
    with pytest.raises(QuantizerError, match=r"build the quantizer with channel_first=True"):
        start(vectors)(torch.randn(2, DIM, 5, 7))
    with pytest.raises(QuantizerError, match=r"12 dimensions on axis 1, got shape \(2, 5, 12\)"):
        start(vectors, channel_first=True)(torch.randn(2, 5, DIM))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("learning", ["joint", "ema"])
def test_a_module_in_another_dtype_trains_and_returns_it(vectors, dtype, learning):
    rank = 2 if learning == "joint" else 0
    quantizer = start(vectors, codebook_learning=learning, transform_rank=rank).to(dtype).train()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1e-2)
    latent = vectors.to(dtype).requires_grad_()
    before = quantizer(latent).commitment_loss.item()
    for _ in range(5):
        result = quantizer(latent)
        assert result.quantized.dtype == dtype
        optimizer.zero_grad()
        ((result.quantized - latent.detach()).square().sum(dim=-1).mean() + result.loss).backward()
        optimizer.step()
        quantizer.after_step(optimizer)
    assert latent.grad.dtype == dtype
    assert quantizer.decode(quantizer.encode(latent)).dtype == dtype
    assert quantizer.levels[0].embedding.dtype == dtype
    assert result.commitment_loss.item() < 1.05 * before
    # Statistics stay in float32, because sums of many small numbers need its precision.
    assert {buffer.dtype for buffer in quantizer.buffers()} == {torch.float32}


def test_statistics_keep_their_precision_in_another_dtype(vectors):
    quantizer = start(vectors, codebook_learning="ema", transform_rank=0)
    before = quantizer.levels[0].ema_sums.clone()
    assert torch.equal(quantizer.bfloat16().levels[0].ema_sums, before)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_output_has_the_dtype_of_the_input(vectors, name):
    torch.manual_seed(0)
    quantizer = build_quantizer(name, DIM, 2, 16)
    quantizer.fit_init(vectors)
    assert quantizer.eval()(vectors.bfloat16()).quantized.dtype == torch.bfloat16


@pytest.mark.parametrize("name", QUANTIZERS)
def test_sizes_may_be_numpy_integers(vectors, name, tmp_path):
    quantizer = build_quantizer(name, np.int64(DIM), np.int32(2), np.int64(16))
    quantizer.fit_init(vectors)
    assert quantizer.encode(vectors).shape == (480, 2)
    if isinstance(quantizer, ResidualGRITVQ) and name in ("grit", "ema"):
        quantizer.save(tmp_path / "vq")
        assert ResidualGRITVQ.load(tmp_path / "vq").settings["dim"] == DIM


@pytest.mark.parametrize("sizes", [2.0, "16", None, (8, 8.5, 8)])
def test_sizes_that_are_no_integers_are_refused(sizes):
    with pytest.raises(QuantizerError, match="must be positive integers"):
        ResidualGRITVQ(DIM, 3, sizes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_mask_of_the_first_dimensions_covers_the_rest(vectors, name):
    torch.manual_seed(0)
    quantizer = build_quantizer(name, DIM, 2, 16)
    quantizer.fit_init(vectors)
    quantizer.eval()
    boxed = vectors.reshape(8, 10, 6, DIM)
    mask = torch.arange(8) % 3 > 0
    found = quantizer(boxed, mask)
    expected = quantizer(boxed, mask[:, None, None].expand(8, 10, 6))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.loss, expected.loss)
    assert (found.codes[~mask] == -1).all()


@pytest.mark.parametrize(
    "mask", [torch.ones(10, dtype=torch.bool), torch.ones(8, 10), torch.ones(8, 6).bool()]
)
def test_a_mask_that_does_not_fit_is_refused(vectors, mask):
    with pytest.raises(QuantizerError, match=r"Expected a bool mask of shape \(8, 10, 6\)"):
        start(vectors)(vectors.reshape(8, 10, 6, DIM), mask)


def test_masked_vectors_may_be_anything(vectors):
    quantizer = start(vectors).train()
    broken = vectors.clone()
    broken[::2] = torch.nan
    broken.requires_grad_()
    mask = torch.arange(480) % 2 > 0
    result = quantizer(broken, mask)
    (result.quantized.square().sum() + result.loss).backward()
    assert torch.isfinite(result.loss)
    assert (broken.grad[::2] == 0).all()
    assert broken.grad[1::2].abs().sum() > 0
    quantizer.after_step()
    assert int(quantizer.maintenance.num_steps) == 1
    assert all(torch.isfinite(codes).all() for codes in quantizer.codebooks)


def test_an_empty_batch_has_diagnostics(vectors):
    found = start(vectors)(vectors[:0]).diagnostics
    assert found.collision_rate == 0
    assert found.largest_bucket == 0
    assert [level.codebook_usage for level in found.levels] == [0, 0, 0]
    nothing = torch.zeros(480, dtype=torch.bool)
    assert start(vectors)(vectors, nothing).diagnostics.levels[0].perplexity == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_projections_start_in_another_dtype(vectors, dtype):
    quantizer = ResidualGRITVQ(DIM, 2, 16, codebook_dim=4).to(dtype)
    quantizer(vectors.to(dtype))
    assert quantizer.mean_gap > 0
    assert quantizer.eval()(vectors.to(dtype)).quantized.dtype == dtype


def test_channel_first_accepts_a_single_vector(vectors):
    quantizer = start(vectors, channel_first=True)
    codes = quantizer.encode(vectors[0])
    assert quantizer.decode(codes).shape == (DIM,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_learning": "joined"}, "Unknown codebook_learning 'joined': choose from joint"),
        ({"normalization": "twosided"}, "Unknown normalization 'twosided'"),
        ({"transform": "lin"}, "Unknown transform 'lin': choose from identity, linear"),
        ({"level_dropout": -1}, "level_dropout must be at least 0 and at most 1, got -1"),
        ({"ema_decay": 9}, "ema_decay must be at least 0 and at most 1, got 9"),
        ({"reset_interval": 0}, "reset_interval must be at least 1, got 0"),
        ({"codebook_dim": 0}, "must be positive integers"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(QuantizerError, match=message):
        ResidualGRITVQ(DIM, 2, 8, **settings)


@pytest.mark.parametrize("vectors_of", [lambda v: v.int(), lambda v: v.numpy(), lambda v: [1.0]])
def test_what_is_no_tensor_of_floats_is_refused(vectors, vectors_of):
    with pytest.raises(QuantizerError, match="Expected a tensor of floating-point vectors, got"):
        start(vectors)(vectors_of(vectors))


@pytest.mark.parametrize("codes", [torch.zeros(3, 3), np.zeros((3, 3), np.int64)])
def test_codes_that_are_no_integers_are_refused(vectors, codes):
    with pytest.raises(QuantizerError, match="Expected codes as a tensor of int64 or int32"):
        start(vectors).decode(codes)


def test_numbers_that_float32_does_not_hold_are_refused(vectors):
    huge = vectors.double()
    huge[3] = 1e200
    with pytest.raises(QuantizerError, match="1 of 480 vectors hold NaN or infinite"):
        start(vectors)(huge)


def test_settings_of_numpy_go_into_a_file(vectors, tmp_path):
    quantizer = start(
        vectors,
        codebook_size=np.array([8, 8]),
        num_levels=2,
        transform_rank=np.int64(3),
        level_dropout=np.float32(0.5),
    )
    quantizer.save(tmp_path / "vq")
    assert ResidualGRITVQ.load(tmp_path / "vq").settings["transform_rank"] == 3


def test_a_file_of_several_levels_is_no_single_codebook(vectors, tmp_path):
    start(vectors).save(tmp_path / "vq")
    with pytest.raises(
        QuantizerError, match=r"stack of 3 levels: load it with ResidualGRITVQ\.load"
    ):
        GRITVQ.load(tmp_path / "vq")


def test_one_codebook_has_all_that_a_stack_has(vectors):
    vq = start(vectors, GRITVQ)
    codes = vq.encode(vectors, beam_width=3)
    assert torch.equal(codes, vq.encode(vectors))
    torch.testing.assert_close(vq.code_vectors(codes) + vq.offset, vq.decode(codes))
    vq.reset_interval = None
    assert vq.maintenance.reset_interval is None


def test_losses_by_level_are_of_all_levels_where_some_are_dropped(vectors):
    torch.manual_seed(0)
    plain, dropping = (start(vectors, level_dropout=rate).train() for rate in (0.0, 0.9))
    expected, found = plain(vectors).level_losses, dropping(vectors).level_losses
    torch.testing.assert_close(found, expected)
