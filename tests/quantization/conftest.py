"""Fixtures of synthetic data for quantizers, and equal random numbers for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def anisotropic():
    """Draw points ``[N, 12]`` around centres, at distances of different orders of magnitude."""

    def draw(num_vectors=1024, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        centres = 3 * torch.randn(16, 12, generator=generator)
        directions = torch.randn(num_vectors, 12, generator=generator)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        lengths = (2 * torch.randn(num_vectors, 1, generator=generator)).exp() / 10
        chosen = torch.arange(num_vectors) % 16
        return centres[chosen] + lengths * directions

    return draw
