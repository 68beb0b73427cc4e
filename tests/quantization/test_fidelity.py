"""Test the share of nearest neighbours that quantization keeps."""

import numpy as np
import pytest
import torch

from recgrit.quantization import fidelity
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fidelity import measure_fidelity
from recgrit.quantization.fit import fit_tokenizer


def overlap_of(vectors, decoded):
    """Compute the share by scikit-learn, for decoded vectors without ties."""
    from sklearn.neighbors import NearestNeighbors

    sets = [
        [set(row[1:]) for row in NearestNeighbors(n_neighbors=11).fit(x).kneighbors(x)[1]]
        for x in (vectors, decoded)
    ]
    return np.mean([len(a & b) / 10 for a, b in zip(*sets, strict=True)])


def test_vectors_without_ties_are_judged_as_by_scikit_learn():
    torch.manual_seed(0)
    vectors = torch.randn(200, 6)
    moved = vectors + 0.4 * torch.randn(200, 6)
    codes = torch.arange(200)[:, None]
    found = measure_fidelity(vectors, codes, lambda chosen: moved[chosen[:, 0]])
    assert found == (pytest.approx(overlap_of(vectors, moved), abs=1e-6),)
    assert 0.1 < found[0] < 0.9
    assert measure_fidelity(vectors, codes, lambda chosen: vectors[chosen[:, 0]]) == (1.0,)


def test_equal_codes_have_the_fidelity_of_chance():
    torch.manual_seed(0)
    vectors = torch.randn(101, 4)
    codes = torch.zeros(101, 1, dtype=torch.long)
    found = measure_fidelity(vectors, codes, lambda chosen: torch.zeros(len(chosen), 4))
    assert found == (pytest.approx(10 / 100),)


def test_more_levels_keep_more_neighbours(hierarchy):
    features = hierarchy(1500)
    config = TokenizerConfig(num_levels=3, codebook_size=16, epochs=5, batch_size=256)
    fitted = fit_tokenizer(features, config, seed=0)
    latent = fitted.model.encode_latent(features)
    found = measure_fidelity(latent, fitted.codes, fitted.model.quantizer.decode)
    assert found[0] < found[1] < found[2]


def test_large_catalogues_are_judged_by_items_spread_over_them(monkeypatch):
    torch.manual_seed(0)
    vectors = torch.randn(3000, 4)
    codes = torch.arange(3000)[:, None]
    monkeypatch.setattr(fidelity, "MAX_ITEMS", 1000)
    monkeypatch.setattr(fidelity, "NUM_QUERIES", 50)
    spread = torch.arange(0, 3000, 3)

    def decode(chosen):
        assert torch.equal(chosen[:, 0], spread)
        return vectors[chosen[:, 0]]

    assert measure_fidelity(vectors, codes, decode) == (1.0,)


def test_too_few_items_have_no_ten_neighbours():
    found = measure_fidelity(torch.randn(11, 2), torch.zeros(11, 2).long(), lambda c: c.float())
    assert np.isnan(found).all()
    assert len(found) == 2
