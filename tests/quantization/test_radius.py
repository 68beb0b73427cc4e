import pytest
import torch

from recgrit.quantization.radius import (
    RADII,
    EuclideanRadius,
    PowerRadius,
    StraightThrough,
    surrogate_radius,
)

# The radius functions themselves. The package only contains their slopes.
MEAN_GAP = 0.15
RHO = {
    "euclidean": lambda gap: gap,
    "power": lambda gap: gap.pow(PowerRadius().alpha),
    "huber": lambda gap: torch.where(
        gap <= MEAN_GAP, gap.square() / (2 * MEAN_GAP), gap - MEAN_GAP / 2
    ),
    "pseudo_huber": lambda gap: MEAN_GAP * ((1 + (gap / MEAN_GAP).square()).sqrt() - 1),
    "clipped": lambda gap: gap.clamp(max=2 * MEAN_GAP),
    "straight_through": lambda gap: 0 * gap + 1,
}


def surrogate(name, form="additive"):
    mean_gap = torch.tensor(MEAN_GAP)
    return lambda z, q: surrogate_radius(z, q, RADII[name](), mean_gap=mean_gap, form=form)


def pair(gap, seed=0, dim=6):
    """Draw a latent and a code at the distance `gap` from it."""
    generator = torch.Generator().manual_seed(seed)
    latent, direction = torch.randn(2, dim, generator=generator)
    return latent, latent + gap * direction / direction.norm()


def jacobians(function, latent, quantized):
    return torch.autograd.functional.jacobian(function, (latent, quantized))


def test_every_radius_has_its_formula_here():
    assert set(RHO) == set(RADII)


@pytest.mark.parametrize("name", RADII)
@pytest.mark.parametrize("gap", [0.05, 0.2, 0.4])
def test_jacobians_are_those_of_the_additive_formula(name, gap):
    def literal(z, q):
        s = (q - z) / (q - z).norm()
        rho = RHO[name]((q - z).norm())
        return z + (q - z).detach() + (rho - rho.detach()) * s.detach()

    latent, quantized = pair(gap)
    found = jacobians(surrogate(name), latent, quantized)
    by_encoder, by_code = jacobians(literal, latent.double(), quantized.double())
    torch.testing.assert_close(found[0].double(), by_encoder, atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1].double(), by_code, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", RADII)
def test_jacobians_in_closed_form(name):
    latent, quantized = pair(0.25)
    direction = (quantized - latent) / (quantized - latent).norm()
    gap = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(RHO[name](gap).sum() + 0 * gap, gap)
    along = float(slope) * torch.outer(direction, direction)
    by_encoder, by_code = jacobians(surrogate(name), latent, quantized)
    torch.testing.assert_close(by_encoder, torch.eye(6) - along, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_code, along, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_encoder + by_code, torch.eye(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize("radius", [*(make() for make in RADII.values()), PowerRadius(alpha=0.5)])
def test_a_zero_gap_gives_the_encoder_the_whole_gradient(radius):
    latent, quantized = pair(0.0)
    by_encoder, by_code = jacobians(
        lambda z, q: surrogate_radius(z, q, radius), latent, quantized.clone()
    )
    torch.testing.assert_close(by_encoder, torch.eye(6), atol=0, rtol=0)
    assert by_code.abs().max() == 0


@pytest.mark.parametrize("radius", [PowerRadius(alpha=2.0), PowerRadius(alpha=0.5)])
@pytest.mark.parametrize("gap", [1e-6, 1e3])
def test_slope_is_clamped_so_that_no_sign_flips(radius, gap):
    latent, quantized = pair(gap)
    by_encoder, by_code = jacobians(lambda z, q: surrogate_radius(z, q, radius), latent, quantized)
    for part in (by_encoder, by_code):
        values = torch.linalg.eigvalsh((part + part.T) / 2)
        assert values.min() > -1e-4
        assert values.max() < 1 + 1e-4
    steep = (gap > 1) == (radius.alpha > 1)
    assert by_code.trace() == pytest.approx(1 if steep else 0, abs=2e-2)


@pytest.mark.parametrize("name", RADII)
def test_forward_is_the_code_to_the_bit(name):
    latent, quantized = torch.randn(50, 8), torch.randn(50, 8)
    assert torch.equal(surrogate_radius(latent, quantized, RADII[name]()), quantized)


def test_batches_and_extra_dimensions_are_independent_rows():
    latent = torch.randn(3, 4, 5, requires_grad=True)
    quantized = torch.randn(3, 4, 5, requires_grad=True)
    weights = torch.randn(3, 4, 5)
    surrogate_radius(latent, quantized, PowerRadius()).backward(weights)
    one = latent.detach()[1, 2].clone().requires_grad_()
    surrogate_radius(one, quantized.detach()[1, 2], PowerRadius()).backward(weights[1, 2])
    torch.testing.assert_close(latent.grad[1, 2], one.grad)
    torch.testing.assert_close(latent.grad + quantized.grad, weights)


def test_straight_through_gives_the_codes_no_gradient():
    latent = torch.randn(20, 4, requires_grad=True)
    quantized = torch.randn(20, 4, requires_grad=True)
    surrogate_radius(latent, quantized, StraightThrough()).square().sum().backward()
    assert quantized.grad.abs().max() == 0
    torch.testing.assert_close(latent.grad, 2 * quantized.detach())


def test_euclidean_gives_the_encoder_no_gradient_along_the_gap():
    latent = torch.randn(20, 4, requires_grad=True)
    quantized = torch.randn(20, 4, requires_grad=True)
    surrogate_radius(latent, quantized, EuclideanRadius()).sin().sum().backward()
    direction = (quantized - latent).detach()
    assert (latent.grad * direction).sum(dim=-1).abs().max() < 1e-5
    assert latent.grad.norm() > 0.1
    # The gradient of the codes is parallel to the gap.
    cosine = torch.nn.functional.cosine_similarity(quantized.grad, direction)
    torch.testing.assert_close(cosine.abs(), torch.ones(20), atol=1e-4, rtol=0)
