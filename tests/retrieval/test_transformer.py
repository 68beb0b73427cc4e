import pytest
import torch

from recgrit.retrieval.transformer import HistoryEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = HistoryEncoder(16, num_layers=2, num_heads=2, history_length=7, dropout=0.5)
    return encoder.eval()


def test_a_state_does_not_depend_on_later_items(encoder):
    items = torch.randn(3, 7, 16)
    states = encoder(items)
    for position in range(7):
        changed = items.clone()
        changed[:, position] += torch.randn(3, 16)
        difference = (encoder(changed) - states).abs().amax(dim=(0, 2))
        assert difference[:position].sum() == 0
        assert (difference[position:] > 1e-4).all()


def test_padding_at_the_end_changes_no_state(encoder):
    items = torch.randn(1, 4, 16)
    padded = torch.cat([items, torch.randn(1, 3, 16)], dim=1)
    torch.testing.assert_close(encoder(padded)[:, :4], encoder(items), atol=1e-5, rtol=0)


def test_order_matters():
    """Without positions, one layer would not depend on the order of the history."""
    torch.manual_seed(0)
    encoder = HistoryEncoder(16, num_layers=1, num_heads=2, history_length=7, dropout=0.5).eval()
    items = torch.randn(1, 5, 16)
    swapped = items[:, [1, 0, 2, 3, 4]]
    assert (encoder(items)[:, -1] - encoder(swapped)[:, -1]).abs().max() > 1e-4


def test_users_do_not_see_each_other(encoder):
    items = torch.randn(4, 5, 16)
    torch.testing.assert_close(encoder(items)[2:3], encoder(items[2:3]), atol=1e-5, rtol=0)


def test_dropout_is_for_training_only(encoder):
    items = torch.randn(2, 5, 16)
    assert torch.equal(encoder(items), encoder(items))
    encoder.train()
    assert not torch.equal(encoder(items), encoder(items))
