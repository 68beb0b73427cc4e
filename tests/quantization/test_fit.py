import logging

import numpy as np
import pytest
import torch

from recgrit.errors import ConfigError
from recgrit.quantization import fit, maintenance
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import (
    assign_codes,
    fit_tokenizer,
)
from recgrit.quantization.residual import ResidualGRITVQ

SETTINGS = {
    "num_levels": 3,
    "codebook_size": (8, 8, 16),
    "epochs": 10,
    "batch_size": 128,
    "learning_rate": 5e-3,
    "transform_rank": 2,
    "reset_interval": 20,
    "normalized_from": 1,
    "autoencoder": "none",
    "radius": "euclidean",
}


def settings(**changes):
    return TokenizerConfig(**(SETTINGS | changes))


@pytest.fixture(scope="module")
def features(hierarchy):
    return hierarchy(1024)


@pytest.fixture(scope="module")
def fitted(features):
    return fit_tokenizer(features, settings(), seed=0)


def test_training_lowers_the_error_of_the_kmeans_start(fitted):
    start, *_, end = fitted.history
    assert [epoch.epoch for epoch in fitted.history] == list(range(11))
    assert end.reconstruction_loss < 0.95 * start.reconstruction_loss


def test_nearly_all_codes_are_used(fitted):
    assert all(level.codebook_usage > 0.9 for level in fitted.diagnostics.levels)


@pytest.mark.parametrize("normalized_from", [0, 1, 3])
@pytest.mark.parametrize("radius", ["euclidean", "power"])
def test_every_variant_learns(features, normalized_from, radius):
    config = settings(normalized_from=normalized_from, radius=radius, epochs=4)
    history = fit_tokenizer(features, config, seed=1).history
    assert history[-1].reconstruction_loss < 0.98 * history[0].reconstruction_loss


def test_straight_through_alone_does_not_train_the_codes(features):
    config = settings(radius="straight_through", epochs=2, reset_interval=1000)
    history = fit_tokenizer(features, config, seed=0).history
    assert len({epoch.reconstruction_loss for epoch in history}) == 1


def test_reported_error_is_that_of_the_codes(features, fitted):
    """Compute the reported errors again in plain numpy, level by level."""
    scale, mean = fitted.model.scale.item(), fitted.model.mean.numpy()
    scaled = (features.numpy() - mean) / scale
    left = scaled.copy()
    for level, codebook in enumerate(fitted.model.quantizer.levels):
        codes = codebook.effective().detach().numpy()
        norms = np.sqrt(np.square(left).sum(axis=1)).mean()
        assert fitted.diagnostics.levels[level].residual_norm == pytest.approx(norms, rel=1e-4)
        distances = np.square(left[:, None] - codes[None]).sum(axis=-1)
        chosen = distances.argmin(axis=1)
        assert chosen.tolist() == fitted.codes[:, level].tolist()
        if level == 2:
            last_residuals, last_codes = fitted.model.quantizer.last_level(
                fitted.model.encode_latent(features)
            )
            np.testing.assert_allclose(last_residuals.numpy(), left, atol=1e-5)
            np.testing.assert_allclose(last_codes.numpy(), codes, atol=0)
        left -= codes[chosen]
    error = np.square(left).sum(axis=1).mean()
    best = fitted.history[fitted.best_epoch].reconstruction_loss
    assert best == pytest.approx(error, rel=1e-4)


def test_without_epochs_the_kmeans_start_stays(features):
    found = fit_tokenizer(features, settings(epochs=0, normalized_from=3), seed=0)
    assert (found.best_epoch, len(found.history)) == (0, 1)
    first = found.model.quantizer.levels[0].effective().detach()
    latent = found.model.encode_latent(features)
    for code in range(8):
        # A k-means centroid is the mean of its members.
        members = latent[found.codes[:, 0] == code]
        torch.testing.assert_close(first[code], members.mean(dim=0), atol=0.03, rtol=0)


def test_the_same_seed_gives_the_same_tokenizer(features, fitted):
    torch.manual_seed(77)  # Earlier draws of the process must not change the result.
    again = fit_tokenizer(features, settings(), seed=0)
    assert again.history == fitted.history
    assert torch.equal(again.codes, fitted.codes)
    other = fit_tokenizer(features, settings(epochs=1), seed=5)
    assert other.history[1] != fitted.history[1]


def test_the_epoch_with_the_lowest_error_is_kept(features):
    # With this learning rate the error goes up and down.
    config = settings(learning_rate=0.3, epochs=6, reset_interval=1000)
    found = fit_tokenizer(features, config, seed=0)
    errors = [epoch.reconstruction_loss for epoch in found.history]
    assert errors[-1] > min(errors)
    assert found.best_epoch == int(np.argmin(errors))
    with torch.no_grad():
        error = found.model(features).reconstruction_loss.item()
    assert error == pytest.approx(min(errors), rel=1e-5)
    assert not found.model.training


def test_structure_is_found_down_to_the_noise(hierarchy):
    """With 64 planted points and 1,024 IDs, the error is little more than the noise."""
    vectors = hierarchy(1024, noise=0.02)
    config = settings(num_levels=2, codebook_size=32, normalized_from=2, epochs=20)
    found = fit_tokenizer(vectors, config, seed=0)
    error = found.history[found.best_epoch].reconstruction_loss * found.model.scale.item() ** 2
    # One code per point would leave 0.02. One code for each of the 8 coarse points would leave 2.5.
    # The k-means start leaves more than 0.2.
    assert error < 0.15


def test_noise_cannot_be_compressed_beyond_its_information():
    """The error of R bits on Gaussian noise is never below the variance times 2^(-2R/D)."""
    dim = 4
    config = settings(num_levels=2, codebook_size=23, normalized_from=2, epochs=5)
    found = fit_tokenizer(torch.randn(512, dim), config, seed=0)
    with torch.no_grad():
        fresh = found.model(torch.randn(20_000, dim))
    error = fresh.reconstruction_loss.item() * found.model.scale.item() ** 2 / dim
    bound = 2 ** (-2 * np.log2(23 * 23) / dim)
    assert bound < error < 3 * bound


def test_dead_codes_are_reset_in_training(features, monkeypatch):
    """All codes but two start so far away that no vector ever gets them."""
    start = ResidualGRITVQ.fit_init

    def collapsed(self, latent, *, seed=0, **_):
        start(self, latent, seed=seed)
        with torch.no_grad():
            for codebook in self.levels:
                codebook.embedding[2:] = 1000 + torch.rand_like(codebook.embedding[2:])

    monkeypatch.setattr(ResidualGRITVQ, "fit_init", collapsed)
    usage = {}
    for interval in (5, 100_000):
        config = settings(reset_interval=interval, normalized_from=3)
        found = fit_tokenizer(features, config, seed=0)
        usage[interval] = [level.codebook_usage for level in found.diagnostics.levels]
        num_resets = sum(epoch.num_resets for epoch in found.history)
        assert (num_resets > 20) == (interval == 5)
    assert min(usage[5]) > 0.9
    assert max(usage[100_000]) < 0.6


def test_no_code_is_placed_near_the_end(features):
    config = settings(reset_interval=1, epochs=10, learning_rate=0.1)
    found = fit_tokenizer(features, config, seed=0)
    resets = [epoch.num_resets for epoch in found.history]
    assert sum(resets[1:8]) > 0
    assert resets[9] == resets[10] == 0


def test_the_autoencoder_trains(features):
    config = settings(autoencoder="mlp", hidden_dims=(32,), code_dim=8, epochs=10)
    found = fit_tokenizer(features, config, seed=0)
    errors = [epoch.reconstruction_loss for epoch in found.history]
    # A constant output at the mean of all items would have an error of 1.
    assert errors[0] > 0.9
    assert errors[-1] < 0.5
    assert found.codes.shape == (1024, 3)
    assert found.model.encode_latent(features).shape == (1024, 8)
    assert min(level.codebook_usage for level in found.diagnostics.levels) > 0.7


def test_commitment_keeps_latents_near_their_codes(features):
    gaps = []
    for weight in (0.0, 2.0):
        config = settings(
            autoencoder="mlp", hidden_dims=(32,), code_dim=8, epochs=5, commitment_weight=weight
        )
        model = fit_tokenizer(features, config, seed=0).model
        with torch.no_grad():
            latent = model.encode_latent(features)
            gap = model.quantizer(latent).commitment_loss
            gaps.append(float(gap / latent.var(dim=0).sum()))
    assert gaps[1] < 0.7 * gaps[0]


def test_no_transform_grows_or_shrinks_without_bounds(features, monkeypatch):
    """From this start and with this learning rate, W would leave the range [0.5, 2] at once."""

    def far_away(self, latent, *, seed=0, **_):
        for codebook in self.levels:
            codebook.embedding.data.mul_(20)
        self._forget_past(self.mean_gap)

    monkeypatch.setattr(ResidualGRITVQ, "fit_init", far_away)
    monkeypatch.setattr(maintenance, "CHECK_INTERVAL", 10)
    config = settings(learning_rate=0.3, epochs=3, batch_size=103, normalized_from=3)
    found = fit_tokenizer(features, config, seed=0)
    assert found.best_epoch > 0
    for codebook in found.model.quantizer.levels:
        values = torch.linalg.svdvals(codebook.transform.rotate.detach())
        assert values.min() > 0.5 - 1e-4
        assert values.max() < 2 + 1e-4


def test_a_size_for_each_level(fitted):
    assert fitted.codes.shape == (1024, 3)
    assert [level.codebook_size for level in fitted.diagnostics.levels] == [8, 8, 16]
    assert (fitted.codes.amax(dim=0) < torch.tensor([8, 8, 16])).all()


def test_normalized_later_levels_collapse_less(anisotropic, caplog):
    vectors = anisotropic(1024)
    perplexity, told = {}, {}
    for normalized_from in (1, 3):
        config = settings(codebook_size=32, normalized_from=normalized_from, epochs=3)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="recgrit"):
            found = fit_tokenizer(vectors, config, seed=0)
        perplexity[normalized_from] = [level.perplexity for level in found.diagnostics.levels]
        told[normalized_from] = caplog.text
    for level in (1, 2):
        assert perplexity[1][level] > 2 * perplexity[3][level]
    assert "Level 1 collapses" in told[3]
    assert "collapses" not in told[1]


def test_codes_of_all_items_do_not_depend_on_the_chunks(features, fitted, monkeypatch):
    monkeypatch.setattr(fit, "ENCODE_CHUNK", 100)
    codes, norms = assign_codes(fitted.model.quantizer, features, fitted.model.encode_latent)
    assert torch.equal(codes, fitted.codes)
    expected = [level.residual_norm for level in fitted.diagnostics.levels]
    assert norms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": (8, 8, 64)}, "64 is larger than the catalogue of 50 items"),
        (
            {"codebook_size": 3, "unique_ids": "greedy"},
            "3 x 3 x 3 codes give 27 IDs for 50 items",
        ),
        ({"codebook_size": (8, 8)}, "lists 2 sizes for 3 levels"),
    ],
)
def test_impossible_sizes_are_refused(hierarchy, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit_tokenizer(hierarchy(50), settings(**changes), seed=0)


def test_a_disambiguation_level_makes_up_for_few_ids(hierarchy):
    config = settings(codebook_size=3, epochs=0, unique_ids="disambiguation")
    assert fit_tokenizer(hierarchy(50), config, seed=0).codes.max() == 2


def test_large_catalogues_are_fitted_to_a_sample_and_assigned_whole(hierarchy):
    vectors = hierarchy(1024)
    found = fit_tokenizer(vectors, settings(sample_items=300, epochs=3), seed=0)
    assert (found.num_fitted, len(found.codes)) == (300, 1024)
    error = found.model(vectors).reconstruction_loss.item()
    assert error < 1.5 * found.history[found.best_epoch].reconstruction_loss


def test_random_codes_start_worse_than_kmeans(features):
    start = [
        fit_tokenizer(features, settings(init=init, epochs=0), seed=0).history[0]
        for init in ("kmeans", "random")
    ]
    assert start[0].reconstruction_loss < 0.5 * start[1].reconstruction_loss


def test_as_many_ids_as_items_are_enough(hierarchy):
    found = fit_tokenizer(hierarchy(64), settings(codebook_size=4, epochs=0), seed=0)
    assert found.codes.shape == (64, 3)


def test_items_with_more_interactions_get_finer_codes():
    torch.manual_seed(0)
    features = torch.randn(600, 8)
    counts = torch.cat([torch.full((60,), 400), torch.ones(530), torch.zeros(10)]).long()
    errors = {}
    for weight in (0, 0.5, 1):
        config = settings(num_levels=2, codebook_size=16, item_weight=weight)
        found = fit_tokenizer(features, config, seed=0, counts=counts)
        latent = found.model.encode_latent(features)
        gaps = (latent - found.model.quantizer.decode(found.codes)).square().sum(dim=1)
        errors[weight] = gaps[:60].mean().item()
        assert found.codes.shape == (600, 2), "all items are assigned, those without any too"
    assert errors[1] < errors[0.5] < errors[0]
    assert errors[1] < 0.6 * errors[0]


def test_an_item_weight_of_zero_equals_fitting_without_counts(features):
    one, other = (
        fit_tokenizer(features, settings(item_weight=0), seed=0, counts=counts).codes
        for counts in (None, torch.arange(len(features)))
    )
    assert torch.equal(one, other)


def test_a_weighted_sample_holds_to_its_size(features):
    counts = torch.arange(len(features))
    few = settings(item_weight=1, sample_items=len(features) // 2)
    assert fit_tokenizer(features, few, seed=0, counts=counts).num_fitted == len(features) // 2
    every = fit_tokenizer(features, settings(item_weight=1), seed=0, counts=counts)
    assert 3.8 * len(features) < every.num_fitted < 5 * len(features)


@pytest.mark.parametrize("normalized_from", [0, 1, 3])
@pytest.mark.parametrize("quantizer", ["grit", "ema", "rq_kmeans"])
def test_a_level_of_one_block_does_not_depend_on_the_others(features, normalized_from, quantizer):
    config = settings(
        level_blocks=("image", "text"), normalized_from=normalized_from, quantizer=quantizer
    )
    half = features.shape[1] // 2
    columns = {"text": slice(0, half), "image": slice(half, None)}
    found = fit_tokenizer(features, config, seed=0, columns=columns)
    first, second, third = found.model.quantizer.codebooks
    assert not first[:, :half].any()
    assert not second[:, half:].any()
    assert third[:, :half].any()
    assert third[:, half:].any()
    # The first level quantizes only its own columns, so its codes do not depend on the others.
    latent = found.model.encode_latent(features)
    other = latent.clone()
    other[:, :half] = torch.randn(len(other), half)
    assert torch.equal(found.model.quantizer.encode(other)[:, 0], found.codes[:, 0])


def test_parts_that_the_features_lack_are_named(features):
    config = settings(level_blocks=("image",))
    with pytest.raises(
        ConfigError, match="'image', which is not a part of the features; they have text"
    ):
        fit_tokenizer(features, config, seed=0, columns={"text": slice(0, 4)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level_blocks": ("text",) * 4}, "4 parts for 3 levels"),
        ({"level_blocks": ()}, "0 parts for 3 levels"),
        ({"level_blocks": ("text",), "autoencoder": "mlp"}, "autoencoder=none"),
        ({"level_blocks": ("text",), "objective": "item_vectors"}, "objective=reconstruction"),
        ({"level_blocks": ("text",), "quantizer": "opq"}, "opq"),
    ],
)
def test_invalid_level_blocks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)
