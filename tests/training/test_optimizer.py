import pytest
import torch

from recgrit.training.config import TrainingConfig
from recgrit.training.optimizer import build_optimizer, build_schedule


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_learning_rate_warms_up_and_falls_to_a_tenth(warmup_steps):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainingConfig(learning_rate=1.0))
    schedule = build_schedule(optimizer, num_steps=100, warmup_steps=warmup_steps)
    factors = []
    for _ in range(101):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    top = max(1, warmup_steps) - 1
    assert factors[: top + 1] == pytest.approx([(i + 1) / (top + 1) for i in range(top + 1)])
    assert all(a >= b for a, b in zip(factors[top:], factors[top + 1 :], strict=False))
    assert factors[100] == pytest.approx(0.1)
    middle = (100 + warmup_steps) // 2
    assert factors[middle] == pytest.approx(0.55)


def test_norms_and_biases_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    decayed, others = build_optimizer(model, TrainingConfig(weight_decay=0.5)).param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert decayed["weight_decay"] == 0.5
    assert [p.ndim for p in others["params"]] == [1, 1, 1]
    assert others["weight_decay"] == 0.0
