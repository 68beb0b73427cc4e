import pytest
import torch

from recgrit.quantization.autoencoder import QuantizedAutoencoder
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import fit_tokenizer
from recgrit.quantization.residual import ResidualGRITVQ


@pytest.fixture
def features():
    return 40 + 3 * torch.randn(200, 10)


def test_features_are_centred_and_scaled_to_unit_mean_square_norm(features):
    model = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 8))
    model.fit_normalization_(features)
    latent = model.encode_latent(features)
    torch.testing.assert_close(latent.mean(dim=0), torch.zeros(10), atol=1e-5, rtol=0)
    assert latent.square().sum(dim=-1).mean().item() == pytest.approx(1, abs=1e-4)


def test_without_mlps_only_quantization_is_lost(features):
    model = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 8))
    model.fit_normalization_(features)
    latent = model.encode_latent(features)
    model.quantizer.fit_init(latent, seed=0)
    found = model(features)
    expected = model.quantizer.decode(model.quantizer.encode(latent))
    torch.testing.assert_close(found.reconstruction, expected * model.scale + model.mean)
    # The loss is scaled: squared errors are summed over dimensions and averaged over items.
    squared = (found.reconstruction - features).square().sum(dim=-1).mean() / model.scale**2
    assert found.reconstruction_loss.item() == pytest.approx(squared.item(), rel=1e-3)


def test_equal_features_do_not_divide_by_zero():
    model = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 4))
    features = torch.full((20, 10), 3.0)
    model.fit_normalization_(features)
    assert model.encode_latent(features).abs().max() == 0
    assert torch.isfinite(model(features).reconstruction_loss)


def test_both_mlps_and_all_codes_learn_from_the_reconstruction(features):
    quantizer = ResidualGRITVQ(4, 2, 8)
    model = QuantizedAutoencoder(10, quantizer, hidden_dims=(16, 6), code_dim=4)
    model.fit_normalization_(features)
    quantizer.fit_init(model.encode_latent(features), seed=0)
    assert [tuple(p.shape) for p in model.encoder.parameters() if p.ndim == 2] == [
        (16, 10),
        (6, 16),
        (4, 6),
    ]
    assert [tuple(p.shape) for p in model.decoder.parameters() if p.ndim == 2] == [
        (6, 4),
        (16, 6),
        (10, 16),
    ]
    found = model(features)
    assert found.reconstruction.shape == features.shape
    found.reconstruction_loss.backward()
    for part in (model.encoder, model.decoder):
        assert all(parameter.grad.norm() > 0 for parameter in part.parameters())
    assert all(codebook.embedding.grad.norm() > 0 for codebook in quantizer.levels)


def test_a_large_mean_loses_no_precision():
    features = torch.randn(300, 10)
    codes = []
    for shift in (0.0, 100.0):
        torch.manual_seed(0)
        model = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 8))
        model.fit_normalization_(features + shift)
        latent = model.encode_latent(features + shift)
        model.quantizer.fit_init(model.encode_latent(features + shift), seed=0)
        codes.append(model.quantizer.encode(latent))
    assert (codes[0] == codes[1]).float().mean() > 0.98


def test_a_saved_model_quantizes_the_same(features):
    model = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 8))
    model.fit_normalization_(features)
    model.quantizer.fit_init(model.encode_latent(features), seed=0)
    other = QuantizedAutoencoder(10, ResidualGRITVQ(10, 2, 8))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features).reconstruction, model(features).reconstruction)


def test_a_residual_autoencoder_starts_as_the_identity_and_learns(features):
    """Before training, a residual autoencoder does not change codes. Training then improves it."""
    settings = {"num_levels": 2, "codebook_size": 16, "epochs": 0, "quantizer": "straight_through"}
    plain = fit_tokenizer(features, TokenizerConfig(**settings), seed=0)
    config = TokenizerConfig(**settings, autoencoder="residual", hidden_dims=(12,))
    residual = fit_tokenizer(features, config, seed=0)
    assert torch.equal(plain.codes, residual.codes)
    trained = fit_tokenizer(features, config.model_copy(update={"epochs": 20}), seed=0)
    assert trained.model.encoder.weight != 0
    assert trained.history[-1].reconstruction_loss < residual.history[0].reconstruction_loss
