import logging

import pytest
import torch

from recgrit.errors import ConfigError
from recgrit.quantization.grit import GRITVQ
from recgrit.quantization.quantizer import QuantizerError
from recgrit.quantization.radius import CustomRadius, HuberRadius, surrogate_radius
from recgrit.quantization.residual import ResidualGRITVQ
from recgrit.quantization.transform import MAX_ATTENTION_CODES


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(300, 10, generator=torch.Generator().manual_seed(0))


def fitted(vectors, **settings):
    torch.manual_seed(0)
    vq = GRITVQ(10, 16, **settings)
    vq.fit_init(vectors)
    return vq


def test_a_quantizer_without_kmeans_start_learns(vectors):
    vq = GRITVQ(10, 16, kmeans_init=False)
    optimizer = torch.optim.Adam(vq.parameters(), lr=1e-2)
    errors = []
    for _ in range(60):
        result = vq(vectors)
        error = (result.quantized - vectors).square().sum(dim=-1).mean()
        optimizer.zero_grad()
        (error + result.loss).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_codes_have_no_level_dimension(vectors):
    vq = fitted(vectors)
    boxed = vectors.reshape(30, 10, 10)
    result = vq(boxed)
    assert result.codes.shape == (30, 10)
    assert torch.equal(vq.encode(boxed), result.codes)
    assert torch.equal(vq.decode(result.codes), result.quantized)
    assert torch.equal(vq.codebook[result.codes], result.quantized)


def test_diagnostics_are_those_of_the_batch(vectors):
    vq = fitted(vectors)
    mask = torch.arange(300) < 100
    level = vq(vectors, mask).diagnostics.levels[0]
    codes = vq.encode(vectors[:100])
    assert level.codebook_usage == pytest.approx(len(codes.unique()) / 16)
    norm = vectors[:100].norm(dim=-1).mean().item()
    assert level.residual_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"radius": HuberRadius(2.0), "surrogate": "multiplicative"},
        {"codebook_learning": "ema", "transform_rank": 0, "normalized_from": 0},
        {"transform": "attention", "transform_rank": 4},
    ],
)
def test_a_file_gives_the_same_quantizer(vectors, settings, tmp_path):
    vq = fitted(vectors, **settings)
    vq(vectors)
    vq.after_step()
    vq.save(tmp_path / "vq.safetensors")
    loaded = GRITVQ.load(tmp_path / "vq.safetensors")
    assert torch.equal(loaded(vectors).quantized, vq.eval()(vectors).quantized)
    assert loaded.settings == vq.settings | {
        name: loaded.settings[name] for name in ("codebook_size",)
    }


def test_a_custom_radius_cannot_be_saved(vectors, tmp_path):
    own = CustomRadius(lambda gap: gap, torch.ones_like)
    with pytest.raises(QuantizerError, match="cannot be saved to a file"):
        fitted(vectors, radius=own).save(tmp_path / "vq.safetensors")


def test_a_custom_radius_splits_the_gradient():
    own = CustomRadius(lambda gap: gap.log1p(), lambda gap: 1 / (1 + gap))
    latent = torch.zeros(4, requires_grad=True)
    quantized = torch.tensor([3.0, 0, 0, 0], requires_grad=True)
    surrogate_radius(latent, quantized, own).sum().backward()
    assert latent.grad.tolist() == [0.75, 1, 1, 1]
    assert quantized.grad.tolist() == [0.25, 0, 0, 0]


@pytest.mark.parametrize("name", ["euclidean", "power", "huber", "pseudo_huber", "clipped"])
def test_the_multiplicative_form_is_the_papers_formula(name):
    from recgrit.quantization.radius import RADII

    radius, mean_gap = RADII[name](), torch.tensor(0.5, dtype=torch.float64)
    latent = torch.randn(6, 10, dtype=torch.float64) * 0.1
    quantized = latent + torch.randn(6, 10, dtype=torch.float64) * 0.1

    def literal(z, q):
        rho = radius.value((q - z).norm(dim=-1, keepdim=True), mean_gap)
        return z + rho * ((q - z) / rho).detach()

    def ours(z, q):
        return surrogate_radius(z, q, radius, mean_gap=mean_gap.float(), form="multiplicative")

    expected = torch.autograd.functional.jacobian(literal, (latent, quantized))
    found = torch.autograd.functional.jacobian(ours, (latent.float(), quantized.float()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=0)


def test_a_gradient_penalty_is_that_of_the_formula():
    """The second derivative equals that of the Jacobian with constant direction and slope."""
    draw = torch.Generator().manual_seed(0)
    latent, quantized = torch.randn(2, 5, 4, generator=draw)
    weights = torch.randn(5, 4, generator=draw)
    radius = HuberRadius(1.0)
    gap = (quantized - latent).norm(dim=-1, keepdim=True)
    direction, slope = (quantized - latent) / gap, radius.slope(gap, gap.mean())

    def literal(z, q):
        moved = z - latent
        return q + moved - slope * (moved * direction).sum(dim=-1, keepdim=True) * direction

    def penalty(function):
        z = latent.clone().requires_grad_()
        output = (function(z, quantized) ** 3 * weights).sum()
        (gradient,) = torch.autograd.grad(output, z, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), z)
        return gradient.detach(), second

    found = penalty(lambda z, q: surrogate_radius(z, q, radius))
    for a, b in zip(found, penalty(literal), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert found[1].abs().sum() > 0


def test_noise_on_the_direction_spares_forward_and_eval(vectors):
    plain, noisy = fitted(vectors), fitted(vectors, direction_noise=0.5)

    def gradient(vq):
        latent = vectors.clone().requires_grad_()
        result = vq(latent)
        result.quantized.sum().backward()
        return result.quantized, latent.grad

    (expected, exact), (found, blurred) = gradient(plain), gradient(noisy)
    assert torch.equal(found, expected)
    assert (blurred - exact).norm() > 0.05 * exact.norm()
    assert torch.equal(gradient(noisy.eval())[1], gradient(plain.eval())[1])


def test_codebook_and_usage_losses_pull_on_the_codes(vectors):
    for settings in ({"codebook_weight": 1.0}, {"usage_weight": 1.0}):
        vq = fitted(vectors, radius="straight_through", commitment_weight=0.0, **settings)
        vq(vectors).loss.backward()
        assert vq.levels[0].embedding.grad.norm() > 0


def test_usage_loss_is_nothing_for_even_use_and_one_for_a_single_code():
    even = GRITVQ(4, 4, transform="identity", usage_weight=1.0)
    with torch.no_grad():
        even.levels[0].embedding.copy_(100 * torch.eye(4))
    near = 100 * torch.eye(4).repeat(8, 1) + 0.01 * torch.randn(32, 4)
    assert even(near).usage_loss.item() == pytest.approx(0, abs=1e-3)
    assert even(near[::4]).usage_loss.item() == pytest.approx(1, abs=1e-3)


def test_attention_stops_at_a_stated_size():
    with pytest.raises(ConfigError, match=f"at most {MAX_ATTENTION_CODES} codes, got 8192"):
        GRITVQ(4, 8192, transform="attention")


def test_moving_averages_refuse_codes_that_are_mixed():
    with pytest.raises(ConfigError, match="set transform_rank=0"):
        GRITVQ(4, 8, codebook_learning="ema")


def test_unit_codes_for_residuals_earn_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        ResidualGRITVQ(4, 2, 8, normalization="codes", normalized_from=0)
        assert "later levels then hardly help" in caplog.text
        caplog.clear()
        GRITVQ(4, 8, normalization="codes", normalized_from=0)
    assert caplog.text == ""


def test_attention_starts_as_the_identity_and_moves_unused_codes(vectors):
    vq = fitted(vectors, transform="attention", transform_rank=4)
    before = vq.codebook
    assert torch.equal(before, vq.levels[0].embedding)
    optimizer = torch.optim.SGD(vq.parameters(), lr=0.1)
    vq(vectors[:1]).quantized.square().sum().backward()
    optimizer.step()
    assert (vq.codebook - before).norm(dim=-1).min() > 0


def test_cached_codebooks_assign_for_some_steps_only(vectors):
    vq = fitted(vectors, cache_interval=3)
    stale = vq.codebook
    for step in range(4):
        with torch.no_grad():
            vq.levels[0].embedding.copy_(stale.roll(step, dims=0))
        result = vq(vectors)
        codes = torch.cdist(vectors, stale.roll(0 if step < 3 else 3, dims=0)).argmin(dim=-1)
        assert torch.equal(result.codes, codes)
        # The quantized values come from the current codes, although the assignment is cached.
        torch.testing.assert_close(result.quantized, vq.codebook[result.codes])
        vq.after_step()
    assert torch.equal(vq.eval()(vectors).codes, torch.cdist(vectors, vq.codebook).argmin(dim=-1))


def test_a_large_mean_loses_no_precision(vectors):
    near, far = fitted(vectors), fitted(vectors + 1000)
    assert (near.encode(vectors) == far.encode(vectors + 1000)).float().mean() > 0.97
    error = (far(vectors + 1000).quantized - vectors - 1000).square().sum(dim=-1).mean()
    assert error.item() == pytest.approx(near(vectors).commitment_loss.item(), rel=0.01)


def test_constant_vectors_are_served_exactly():
    constant = torch.full((50, 10), 3.0)
    vq = fitted(constant)
    assert torch.equal(vq(constant).quantized, constant)
    assert len(vq.encode(constant).unique()) == 1


def test_one_code_is_the_mean(vectors):
    vq = GRITVQ(10, 1)
    vq.fit_init(vectors)
    result = vq(vectors)
    assert (result.codes == 0).all()
    torch.testing.assert_close(vq.codebook[0], vectors.mean(dim=0), atol=1e-4, rtol=0)
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: fitted(v[:9]), "9 vectors are too few for 16 codes"),
        (lambda v: ResidualGRITVQ(10, 0, 8), "must be positive integers, got 10, 0 and 8"),
        (lambda v: GRITVQ(10, 8, radius="round"), "Unknown radius 'round': choose from euclidean"),
        (lambda v: GRITVQ(10, 8, surrogate="fancy"), "Unknown surrogate 'fancy'"),
    ],
)
def test_impossible_sizes_and_settings_are_refused(vectors, make, message):
    with pytest.raises(QuantizerError, match=message):
        make(vectors)


def test_an_empty_batch_is_accepted(vectors):
    vq = fitted(vectors)
    result = vq(vectors[:0])
    assert result.codes.shape == (0,)
    assert torch.isfinite(result.loss)
    vq.after_step()
    assert torch.isfinite(vq(vectors).loss)


@pytest.mark.parametrize("transform", ["identity", "linear"])
def test_a_returned_codebook_does_not_change_later(vectors, transform):
    quantizer = GRITVQ(vectors.shape[1], 8, transform=transform, codebook_weight=1.0)
    before = quantizer.codebook
    kept = before.clone()
    quantizer(vectors).loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=1.0).step()
    assert not before.requires_grad
    assert torch.equal(before, kept)
    assert not torch.equal(quantizer.codebook, kept)
