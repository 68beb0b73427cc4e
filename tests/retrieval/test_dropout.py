import pytest
import torch

from recgrit.retrieval.dropout import Dropout, draw_mask
from recgrit.retrieval.transformer import CausalSelfAttention


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_rate(rate):
    mask = draw_mask(torch.Size([1000, 401]), rate, torch.float32)
    assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=0.004)
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    assert len(mask.unique()) == 2
    # Adjacent elements are dropped independently.
    both = ((mask[:, 1:] == 0) & (mask[:, :-1] == 0)).float().mean().item()
    assert both == pytest.approx(rate**2, abs=0.005)


def test_every_call_draws_another_mask_and_a_seed_repeats_it():
    drop, x = Dropout(0.5), torch.ones(64, 33)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)


def test_the_gradient_flows_only_through_kept_elements():
    x = torch.ones(50, 20, requires_grad=True)
    output = Dropout(0.4)(x)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())


def test_nothing_is_dropped_out_of_training():
    x = torch.randn(5, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
def test_extreme_rates_stay_finite(rate):
    assert torch.isfinite(draw_mask(torch.Size([4096]), rate, torch.float32)).all()


def test_attention_with_dropout_is_attention_on_average():
    """Dropout does not change attention on average.

    A rate too small to drop anything runs the code with dropout, and gives the result without
    dropout.
    """
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, num_heads=2, dropout=0.3)
    x = torch.randn(3, 7, 16)
    exact = attention.eval()(x)
    attention.train()
    mean = torch.stack([attention(x) for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, exact, atol=0.03, rtol=0)
    attention.dropout.rate = 1e-9
    torch.testing.assert_close(attention(x), exact, atol=1e-5, rtol=1e-4)
