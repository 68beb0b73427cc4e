import pytest
import torch

from recgrit.quantization.transform import IntegratedTransform


def test_starts_as_the_identity():
    codes = torch.randn(12, 5)
    assert torch.equal(IntegratedTransform(12, 5, rank=3)(codes), codes)


def test_is_the_formula_of_the_paper():
    transform = IntegratedTransform(12, 5, rank=3)
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter)
    codes = torch.randn(12, 5)
    mixing = torch.eye(12) + transform.mixing.mix_out @ transform.mixing.mix_in.T
    torch.testing.assert_close(transform(codes), mixing @ codes @ transform.rotate)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_step_on_one_code_moves_unused_codes_too(rank):
    transform = IntegratedTransform(12, 5, rank=rank)
    codes = torch.randn(12, 5)
    optimizer = torch.optim.SGD(transform.parameters(), lr=0.1)
    transform(codes)[4].square().sum().backward()
    optimizer.step()
    moved = (transform(codes) - codes).norm(dim=-1)
    assert moved.min() > 1e-3


def test_only_used_rows_and_the_shared_parts_learn():
    transform = IntegratedTransform(12, 5, rank=3)
    codes = torch.randn(12, 5)
    optimizer = torch.optim.SGD(transform.parameters(), lr=0.1)
    before = transform.mixing.mix_in.detach().clone()
    # The first step moves A away from zero, and only then does B get a gradient.
    for _ in range(2):
        optimizer.zero_grad()
        transform(codes)[4].square().sum().backward()
        optimizer.step()
    used = transform.mixing.mix_out.abs().sum(dim=-1) > 0
    assert used.nonzero().flatten().tolist() == [4]
    assert (transform.mixing.mix_in - before).abs().sum(dim=-1).min() > 0


def test_spectrum_is_clipped_to_its_bounds():
    transform = IntegratedTransform(12, 6)
    left, right = (torch.linalg.qr(torch.randn(6, 6)).Q for _ in range(2))
    values = torch.tensor([5.0, 2.1, 1.9, 1.0, 0.4, 0.01])
    with torch.no_grad():
        transform.rotate.copy_(left @ torch.diag(values) @ right)
    transform.clip_spectrum_(0.5, 2.0)
    expected = left @ torch.diag(values.clamp(0.5, 2.0)) @ right
    torch.testing.assert_close(transform.rotate.detach(), expected, atol=1e-5, rtol=0)
    clipped = torch.linalg.svdvals(transform.rotate.detach())
    assert clipped.min() > 0.5 - 1e-5
    assert clipped.max() < 2 + 1e-5


def test_a_spectrum_within_bounds_is_left_alone():
    transform = IntegratedTransform(12, 6)
    torch.nn.init.orthogonal_(transform.rotate)
    before = transform.rotate.detach().clone()
    transform.clip_spectrum_(0.5, 2.0)
    assert torch.equal(transform.rotate, before)


def test_reset_goes_back_to_the_identity():
    transform = IntegratedTransform(12, 5, rank=3)
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter)
    transform.reset_()
    codes = torch.randn(12, 5)
    assert torch.equal(transform(codes), codes)
    # B stays random. If A and B were both zero, neither would get a gradient.
    assert transform.mixing.mix_in.abs().min() > 0
