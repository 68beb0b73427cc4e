import pytest
import torch
import torch.nn.functional as F

from recgrit.errors import RecgritError
from recgrit.quantization.assignment import nearest_codes
from recgrit.quantization.radius import EuclideanRadius, PowerRadius, StraightThrough
from recgrit.quantization.residual import ResidualGRITVQ


def fitted(vectors, num_levels, codebook_size=16, **options):
    torch.manual_seed(0)
    quantizer = ResidualGRITVQ(vectors.shape[1], num_levels, codebook_size, **options)
    quantizer.fit_init(vectors, seed=0)
    return quantizer


def disturb(quantizer, seed=1):
    """Move every parameter away from the k-means start, as in the middle of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for codebook in quantizer.levels:
            for parameter in (codebook.transform.mixing.mix_out, codebook.transform.rotate):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(600, 24, generator=torch.Generator().manual_seed(0))


def encoder_gradient(vectors, num_levels, radius, weights):
    quantizer = fitted(vectors, num_levels, radius=radius)
    latent = vectors.clone().requires_grad_()
    (quantizer(latent).quantized * weights).sum().backward()
    return latent.grad


@pytest.mark.parametrize("radius", [EuclideanRadius(), PowerRadius(), StraightThrough()])
def test_encoder_gradient_does_not_grow_with_the_levels(vectors, radius):
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    norms = [
        float(encoder_gradient(vectors, num_levels, radius, weights).norm() / weights.norm())
        for num_levels in range(1, 7)
    ]
    assert max(norms) <= 1 + 1e-5
    assert min(norms) > 0.9


@pytest.mark.parametrize("normalized_from", [0, 1, 9])
def test_codes_of_every_level_get_a_gradient(vectors, normalized_from):
    quantizer = fitted(vectors, 5, normalized_from=normalized_from)
    disturb(quantizer)
    result = quantizer(vectors)
    (result.quantized - vectors).square().sum().backward()
    for level, codebook in enumerate(quantizer.levels):
        used = result.codes[:, level].unique()
        assert codebook.embedding.grad[used].norm(dim=-1).min() > 0
        assert codebook.transform.rotate.grad.norm() > 0
        assert codebook.transform.mixing.mix_out.grad[used].norm(dim=-1).min() > 0


def test_levels_share_the_gradient_equally(vectors):
    quantizer = fitted(vectors, 4, normalized_from=4)
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(vectors).quantized * weights).sum().backward()
    totals = [codebook.embedding.grad.sum(dim=0) for codebook in quantizer.levels]
    assert totals[0].norm() > 1
    for total in totals[1:]:
        torch.testing.assert_close(total, totals[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("radius", [EuclideanRadius(), PowerRadius(), StraightThrough()])
@pytest.mark.parametrize("num_levels", [1, 3])
def test_without_an_encoder_the_radius_reweights_the_kmeans_gradient(vectors, radius, num_levels):
    quantizer = fitted(vectors, num_levels, radius=radius, normalized_from=num_levels)
    (quantizer(vectors).quantized - vectors).square().sum(dim=-1).mean().backward()
    by_surrogate = [codebook.embedding.grad for codebook in quantizer.levels]

    codes = quantizer.encode(vectors)
    books = [c.embedding.detach().clone().requires_grad_() for c in quantizer.levels]
    total = sum(F.embedding(codes[:, level], book) for level, book in enumerate(books))
    gap = (total - vectors).detach().norm(dim=-1, keepdim=True)
    slope = radius.slope(gap, gap.mean()).clamp(0, 1).squeeze(-1)
    (slope * (total - vectors).square().sum(dim=-1)).mean().backward()
    for found, book in zip(by_surrogate, books, strict=True):
        torch.testing.assert_close(found, book.grad, atol=1e-6, rtol=1e-4)
    has_gradient = bool(by_surrogate[0].abs().max() > 0)
    assert has_gradient != isinstance(radius, StraightThrough)


@pytest.mark.parametrize("normalized_from", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_output_is_the_decoded_code_to_the_bit(vectors, normalized_from, training):
    quantizer = fitted(vectors, 3, normalized_from=normalized_from).train(training)
    disturb(quantizer)
    result = quantizer(vectors)
    codes = quantizer.encode(vectors)
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.quantized, quantizer.decode(codes))


def test_each_level_quantizes_what_is_left(vectors):
    quantizer = fitted(vectors, 3, (4, 8, 16))
    disturb(quantizer)
    result = quantizer(vectors)
    residual = vectors
    for level, codebook in enumerate(quantizer.levels):
        codes = codebook.effective().detach()
        assert torch.equal(result.residuals[level], residual)
        assert not result.residuals[level].requires_grad
        assert torch.equal(result.codes[:, level], nearest_codes(residual, codes))
        residual = residual - codes[result.codes[:, level]]
    torch.testing.assert_close(residual, (vectors - result.quantized).detach())


def test_each_further_level_lowers_the_error_of_the_start(vectors):
    errors = []
    for num_levels in range(1, 5):
        quantizer = fitted(vectors, num_levels)
        errors.append(quantizer(vectors).commitment_loss.item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_commitment_pulls_the_latent_and_leaves_the_codes(vectors):
    quantizer = fitted(vectors, 2)
    latent = vectors.clone().requires_grad_()
    result = quantizer(latent)
    result.commitment_loss.backward()
    gap = (vectors - result.quantized).detach()
    assert result.commitment_loss.item() == pytest.approx(gap.square().sum(-1).mean().item())
    torch.testing.assert_close(latent.grad, 2 * gap / len(vectors))
    assert all(codebook.embedding.grad is None for codebook in quantizer.levels)


def test_half_precision_input_is_quantized_in_single_precision(vectors):
    quantizer = fitted(vectors, 3)
    disturb(quantizer)
    half = vectors.bfloat16()
    result = quantizer(half)
    assert result.quantized.dtype == half.dtype
    assert result.loss.dtype == torch.float32
    assert torch.equal(result.codes, quantizer(half.float()).codes)
    assert torch.equal(quantizer.encode(half), result.codes)


def test_autocast_changes_nothing(vectors):
    quantizer = fitted(vectors, 3)
    disturb(quantizer)
    expected = quantizer(vectors)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(vectors)
        codes = quantizer.encode(vectors)
        decoded = quantizer.decode(codes)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.quantized, expected.quantized)
    assert torch.equal(codes, expected.codes)
    assert torch.equal(decoded, expected.quantized)


def test_a_size_for_each_level(vectors):
    quantizer = fitted(vectors, 3, (4, 8, 16))
    assert quantizer.codebook_sizes == (4, 8, 16)
    assert (quantizer.encode(vectors).amax(dim=0) == torch.tensor([3, 7, 15])).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 8), "must be positive"),
        ((4, 0, 8), "must be positive"),
        ((4, 3, 0), "must be positive"),
        ((4, 3, (8, 8)), "Expected 3 codebook sizes, got 2"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(RecgritError, match=message):
        ResidualGRITVQ(*arguments)
