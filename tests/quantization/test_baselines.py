"""Test what all quantizers have in common, and what is special about each."""

import math

import pytest
import torch

from recgrit.errors import ConfigError
from recgrit.quantization.baselines import QUANTIZERS, IdentityQuantizer, build_quantizer
from recgrit.quantization.quantizer import QuantizerError

DIM, NUM_LEVELS, SIZE = 12, 3, 16
LEARNING = ["grit", "straight_through", "ema", "simvq", "rotation", "diveq"]


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(600, DIM, generator=torch.Generator().manual_seed(0))


def build(name, vectors=None, **settings):
    torch.manual_seed(0)
    quantizer = build_quantizer(name, DIM, NUM_LEVELS, SIZE, **settings)
    if vectors is not None:
        quantizer.fit_init(vectors, seed=0)
    return quantizer


def train(quantizer, vectors, num_steps):
    learned = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=3e-3) if learned else None
    for _ in range(num_steps):
        result = quantizer.train()(vectors)
        if optimizer is not None:
            optimizer.zero_grad()
            ((result.quantized - vectors).square().sum(dim=-1).mean() + result.loss).backward()
            optimizer.step()
        quantizer.after_step(optimizer)
    return quantizer.eval()


@pytest.mark.parametrize("name", QUANTIZERS)
class TestContract:
    def test_codes_are_in_range_and_decode_to_the_output(self, name, vectors):
        quantizer = train(build(name, vectors), vectors, 3)
        result = quantizer(vectors)
        assert result.codes.shape == (600, NUM_LEVELS)
        sizes = torch.tensor(quantizer.codebook_sizes)
        assert ((result.codes >= 0) & (result.codes < sizes)).all()
        assert torch.isfinite(result.loss)
        if name != "identity":
            assert torch.equal(quantizer.encode(vectors), result.codes)
            assert torch.equal(quantizer.decode(result.codes), result.quantized)

    def test_leading_dimensions_are_kept(self, name, vectors):
        quantizer = build(name, vectors).eval()
        flat = quantizer(vectors)
        boxed = quantizer(vectors.reshape(20, 30, DIM))
        assert boxed.codes.shape == (20, 30, NUM_LEVELS)
        assert torch.equal(boxed.codes.reshape(600, NUM_LEVELS), flat.codes)
        assert torch.equal(boxed.quantized.reshape(600, DIM), flat.quantized)

    def test_masked_vectors_are_ignored(self, name, vectors):
        quantizer = build(name, vectors).eval()
        boxed = vectors.reshape(20, 30, DIM).clone()
        mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)) > 0.4
        expected = quantizer(boxed[mask])
        boxed[~mask] = 1e6
        found = quantizer(boxed, mask)
        assert torch.equal(found.codes[mask], expected.codes)
        assert torch.equal(found.quantized[mask], expected.quantized)
        assert (found.codes[~mask] == -1).all()
        assert (found.quantized[~mask] == 0).all()
        torch.testing.assert_close(found.loss, expected.loss)

    def test_gradient_to_the_encoder_does_not_expand(self, name, vectors):
        latent = vectors.clone().requires_grad_()
        weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
        (build(name, vectors)(latent).quantized * weights).sum().backward()
        ratio = float(latent.grad.norm() / weights.norm())
        # The rotation trick scales the gradient by a quotient of lengths. The others never enlarge
        # it.
        assert 0.5 < ratio < (1.3 if name == "rotation" else 1 + 1e-5)

    def test_a_state_dictionary_restores_the_quantizer(self, name, vectors):
        quantizer = train(build(name, vectors), vectors, 3)
        other = build(name).eval()
        other.load_state_dict(quantizer.state_dict())
        assert torch.equal(other(vectors).quantized, quantizer(vectors).quantized)

    def test_wrong_dimension_and_nan_are_refused(self, name, vectors):
        quantizer = build(name, vectors)
        with pytest.raises(QuantizerError, match="Expected vectors of 12 dimensions"):
            quantizer(vectors[:, :5])
        broken = vectors.clone()
        broken[[3, 8], 2] = torch.tensor([float("nan"), float("inf")])
        with pytest.raises(QuantizerError, match="2 of 600 vectors hold NaN or infinite"):
            quantizer(broken)
        with pytest.raises(QuantizerError, match="2 of 600"):
            quantizer.fit_init(broken)


@pytest.mark.parametrize("name", LEARNING)
def test_training_lowers_the_error_of_random_codes(name, vectors):
    start = build(name, normalization="none").eval()(vectors).commitment_loss
    quantizer = train(build(name, normalization="none"), vectors, 100)
    assert quantizer(vectors).commitment_loss < 0.9 * start


@pytest.mark.parametrize("name", LEARNING)
def test_of_the_quantizers_that_learn_only_simvq_keeps_its_codes(name, vectors):
    quantizer = build(name, vectors)
    before = [level.embedding.detach().clone() for level in quantizer.levels]
    train(quantizer, vectors, 3)
    for level, embedding in zip(quantizer.levels, before, strict=True):
        assert torch.equal(level.embedding, embedding) == (name == "simvq")


def test_rq_kmeans_is_kmeans_on_residuals(vectors):
    """Each code of a level without normalization is the mean of its members, and is not trained."""
    quantizer = train(build("rq_kmeans", vectors, normalization="none"), vectors, 5)
    assert not any(
        parameter.requires_grad for parameter in quantizer.levels[0].transform.parameters()
    )
    result = quantizer(vectors)
    for level, codebook in enumerate(quantizer.codebooks):
        for code in range(SIZE):
            members = result.residuals[level][result.codes[:, level] == code]
            torch.testing.assert_close(codebook[code], members.mean(dim=0), atol=0.1, rtol=0)


def test_opq_codes_are_those_of_faiss(vectors):
    faiss = pytest.importorskip("faiss", reason="the product quantizer of faiss is the oracle")
    quantizer = build("opq", vectors)
    rotated = (vectors @ quantizer.rotation.T).numpy()
    product = faiss.ProductQuantizer(rotated.shape[1], NUM_LEVELS, int(math.log2(SIZE)))
    faiss.copy_array_to_vector(quantizer.centroids.numpy().ravel(), product.centroids)
    packed = product.compute_codes(rotated)
    expected = product.decode(packed) @ quantizer.rotation.numpy()
    found = quantizer.decode(quantizer.encode(vectors))
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_rotation_trick_turns_the_gradient_with_the_vector():
    """The gradient is that of the paper's formula, with the rotation as a matrix."""
    from recgrit.quantization.estimators import RotationTrick

    latent = torch.randn(5, DIM, requires_grad=True)
    quantized, weights = torch.randn(5, DIM), torch.randn(5, DIM)
    output = RotationTrick()(latent, quantized, mean_gap=torch.ones(()), training=True)
    assert torch.equal(output, quantized)
    output.backward(weights)
    for row in range(5):
        z, q = latent[row].detach(), quantized[row]
        e, t = z / z.norm(), q / q.norm()
        middle = (e + t) / (e + t).norm()
        rotation = torch.eye(DIM) - 2 * torch.outer(middle, middle) + 2 * torch.outer(t, e)
        torch.testing.assert_close(rotation @ e, t, atol=1e-5, rtol=1e-4)
        expected = q.norm() / z.norm() * rotation.T @ weights[row]
        torch.testing.assert_close(latent.grad[row], expected, atol=1e-4, rtol=1e-4)


def test_diveq_keeps_the_distance_and_is_hard_in_eval_mode(vectors):
    quantizer = build("diveq", vectors)
    soft = quantizer(vectors)
    hard = quantizer.eval()(vectors)
    gap = (hard.quantized - vectors).norm(dim=-1)
    torch.testing.assert_close((soft.quantized - vectors).norm(dim=-1), gap, atol=1e-4, rtol=1e-4)
    assert (soft.quantized - hard.quantized).norm(dim=-1).min() > 1e-4
    assert torch.equal(hard.quantized, quantizer.decode(hard.codes))


def test_the_identity_loses_nothing(vectors):
    assert torch.equal(IdentityQuantizer(DIM)(vectors).quantized, vectors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("magic", 4, 2, 8), "Unknown quantizer 'magic': choose from grit, straight_through"),
        (("opq", 4, 2, (8, 16)), "opq needs one codebook_size"),
        (("opq", 4, 2, 12), "power of two"),
        (("opq", 2, 4, 8), "4 levels are too many for 2 dimensions"),
    ],
)
def test_impossible_quantizers_are_refused(arguments, message):
    with pytest.raises((ConfigError, QuantizerError), match=message):
        build_quantizer(*arguments)
