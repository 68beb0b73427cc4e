import time

import numpy as np
import pytest

from recgrit.embedding.embeddings import Embeddings, normalize_rows
from recgrit.embedding.features import (
    Block,
    KnownItems,
    build_new_features,
    fill_missing,
    fit_features,
)
from recgrit.embedding.transforms import FeatureTransform, load_given, save_given
from recgrit.errors import ArtifactError


def build_features(text, cooccurrence, **settings):
    return fit_features(text, cooccurrence, **settings).embeddings


def make_embeddings(shape, *, seed=0, scale=1.0, shift=0.0, encoder="text"):
    vectors = shift + scale * np.random.default_rng(seed).normal(size=shape)
    return Embeddings(vectors.astype(np.float32), encoder=encoder, normalized=False)


def mean_square_norm(vectors):
    return np.square(vectors, dtype=np.float64).sum(axis=1).mean()


@pytest.mark.parametrize("text_dim", [None, 8])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_each_part_is_centred_and_has_the_norm_of_its_weight(text_dim, weight):
    text = make_embeddings((60, 20), scale=30, shift=100)
    taken = make_embeddings((60, 5), scale=0.1, shift=-1, seed=1, encoder="cooccurrence")
    found = build_features(text, taken, text_dim=text_dim, cooccurrence_weight=weight)
    width = text_dim or 20
    assert found.vectors.shape == (60, width + 5)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors.mean(axis=0), 0, atol=1e-4)
    assert mean_square_norm(found.vectors[:, :width]) == pytest.approx(1, rel=1e-4)
    assert mean_square_norm(found.vectors[:, width:]) == pytest.approx(weight**2, rel=1e-4)


def test_all_dimensions_are_kept_up_to_place_and_scale():
    text = make_embeddings((40, 6), shift=5, scale=2)
    found = build_features(text, None, text_dim=None).vectors
    centred = text.vectors - text.vectors.mean(axis=0)
    np.testing.assert_allclose(found, centred / np.sqrt(mean_square_norm(centred)), atol=1e-5)


def test_leading_components_are_those_of_the_singular_values():
    text = make_embeddings((80, 10))
    text.vectors[:] *= np.linspace(3, 0.1, 10, dtype=np.float32)
    found = build_features(text, None, text_dim=4).vectors
    centred = text.vectors - text.vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :4] * values[:4] / np.sqrt((values[:4] ** 2).sum() / 80)
    # The sign of a component is arbitrary, so products between items are compared.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize(("num_items", "text_dim"), [(30, 10), (30, 99), (4, 8)])
def test_asking_for_all_components_or_more_keeps_the_text(num_items, text_dim):
    text = make_embeddings((num_items, 10))
    found = build_features(text, None, text_dim=text_dim).vectors
    np.testing.assert_array_equal(found, build_features(text, None, text_dim=None).vectors)


def test_text_and_cooccurrence_are_concatenated():
    text, taken = make_embeddings((30, 10)), make_embeddings((30, 3), seed=1)
    both = build_features(text, taken, text_dim=None, cooccurrence_weight=1.0).vectors
    np.testing.assert_array_equal(both[:, :10], build_features(text, None, text_dim=None).vectors)
    np.testing.assert_array_equal(both[:, 10:], build_features(taken, None, text_dim=None).vectors)


def test_the_name_tells_what_went_in():
    text = make_embeddings((30, 10), encoder="lsa")
    taken = make_embeddings((30, 3), encoder="cooccurrence-w4")
    assert build_features(text, None).encoder == "lsa"
    found = build_features(text, taken, cooccurrence_weight=0.5)
    assert found.encoder == "lsa + 0.5 x cooccurrence-w4"
    assert not found.normalized


def test_the_same_input_gives_the_same_features_and_is_not_touched():
    text = make_embeddings((50, 12))
    before = text.vectors.copy()
    first, again = (build_features(text, None, text_dim=5).vectors for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(text.vectors, before)


def test_equal_items_have_zero_features():
    text = Embeddings(np.ones((20, 4), np.float32), encoder="text", normalized=False)
    assert (build_features(text, None, text_dim=None).vectors == 0).all()


def test_features_of_a_memory_mapped_file(tmp_path):
    text = make_embeddings((50, 12))
    text.save(tmp_path)
    mapped = Embeddings.load(tmp_path)
    np.testing.assert_array_equal(
        build_features(mapped, None, text_dim=5).vectors,
        build_features(text, None, text_dim=5).vectors,
    )


def test_missing_cooccurrence_is_filled_from_items_of_similar_text() -> None:
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(4, 8)).astype(np.float32)
    topic = np.arange(200) % 4
    text = topics[topic] + 0.1 * rng.normal(size=(200, 8)).astype(np.float32)
    directions = normalize_rows(rng.normal(size=(4, 6)))
    vectors = normalize_rows(directions[topic] + 0.05 * rng.normal(size=(200, 6)))
    missing = [3, 50, 77, 198]
    vectors[missing] = 0
    filled = fill_missing(vectors, text, num_neighbours=5)
    given = np.setdiff1d(np.arange(200), missing)
    assert np.array_equal(filled[given], vectors[given])
    np.testing.assert_allclose(np.linalg.norm(filled, axis=1), 1, rtol=1e-5)
    for item in missing:
        assert np.argmax(directions @ filled[item]) == topic[item]
    assert np.array_equal(fill_missing(vectors[missing], text[missing]), vectors[missing])
    assert np.array_equal(fill_missing(vectors[given], text[given]), vectors[given])


def test_a_large_catalogue_is_filled_from_evenly_spread_items(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, text = (
        normalize_rows(rng.normal(size=(90, 6))),
        normalize_rows(rng.normal(size=(90, 6))),
    )
    vectors[80:] = 0
    monkeypatch.setattr("recgrit.embedding.features.MAX_GIVEN", 20)
    filled = fill_missing(vectors, text, num_neighbours=5)
    asked = np.concatenate([np.arange(0, 80, 4), np.arange(80, 90)])
    assert np.array_equal(
        filled[asked], fill_missing(vectors[asked], text[asked], num_neighbours=5)
    )
    assert np.array_equal(filled[:80], vectors[:80])


@pytest.mark.parametrize("text_dim", [None, 8])
def test_later_items_get_the_features_they_would_have_had(text_dim, tmp_path):
    text = make_embeddings((60, 20), scale=30, shift=100)
    rng = np.random.default_rng(1)
    taken = normalize_rows(rng.normal(size=(60, 5)))
    taken[[4, 9]] = 0  # Nobody interacted with these two items.
    cooccurrence = Embeddings(taken, encoder="cooccurrence", normalized=True)
    fitted = fit_features(text, cooccurrence, text_dim=text_dim, cooccurrence_weight=0.5)
    fitted.transform.save(tmp_path / "transform.safetensors")
    features = fitted.embeddings.vectors
    again = build_new_features(
        FeatureTransform.load(tmp_path / "transform.safetensors"),
        text.vectors[[4, 9]],
        known=KnownItems(features, taken, {}),
    )
    np.testing.assert_allclose(again, features[[4, 9]], atol=1e-4)
    alone = fit_features(text, None, text_dim=text_dim)
    np.testing.assert_allclose(
        build_new_features(
            alone.transform,
            text.vectors,
            known=KnownItems(alone.embeddings.vectors, None, {}),
        ),
        alone.embeddings.vectors,
        atol=1e-4,
    )


def test_components_computed_in_chunks_equal_those_computed_at_once(monkeypatch):
    """Components computed chunk by chunk equal those computed at once, up to rounding."""
    from recgrit.embedding import features

    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(1000, 24)) * np.linspace(3, 0.5, 24) + 1).astype(np.float32)
    text = Embeddings(vectors, "text", normalized=False)
    at_once = fit_features(text, None, text_dim=8)
    monkeypatch.setattr(features, "MAX_AT_ONCE", 100)
    monkeypatch.setattr(features, "CHUNK", 64)
    in_chunks = fit_features(text, None, text_dim=8)
    np.testing.assert_allclose(
        in_chunks.embeddings.vectors, at_once.embeddings.vectors, atol=1e-5, rtol=1e-4
    )
    np.testing.assert_allclose(
        in_chunks.transform.text.scale_reduced(in_chunks.transform.text.reduce(vectors)),
        in_chunks.embeddings.vectors,
        atol=1e-5,
    )


def make_block(shape, *, seed=2, missing="alike", dim=None, weight=0.5, lacking=()):
    rng = np.random.default_rng(seed)
    given = np.ones(shape[0], bool)
    given[list(lacking)] = False
    vectors = (3 * rng.normal(size=shape) + 7).astype(np.float32) * given[:, None]
    return Block(vectors, given, "image", dim, weight, missing)


@pytest.mark.parametrize("dim", [None, 4])
@pytest.mark.parametrize("missing", ["alike", "mean"])
def test_a_block_is_centred_scaled_by_its_weight_and_ordered_by_name(dim, missing):
    text = make_embeddings((60, 8))
    blocks = {
        "price": make_block((60, 3), seed=3, weight=0.1),
        "image": make_block((60, 12), dim=dim, missing=missing, lacking=[2, 5]),
    }
    found = fit_features(text, None, blocks=blocks, text_dim=None)
    assert found.embeddings.encoder == "text + 0.5 x image + 0.1 x image"
    columns, width = found.transform.columns(), dim or 12
    assert columns == {
        "text": slice(0, 8), "image": slice(8, 8 + width), "price": slice(8 + width, 11 + width)
    }  # fmt: skip
    for name, weight in (("image", 0.5), ("price", 0.1)):
        part = found.embeddings.vectors[:, columns[name]]
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-4)
        assert mean_square_norm(part) == pytest.approx(weight**2, rel=1e-4)
    alone = fit_features(text, None, text_dim=None).embeddings.vectors
    np.testing.assert_array_equal(found.embeddings.vectors[:, :8], alone)


def test_a_missing_vector_becomes_the_mean_or_that_of_similar_items():
    text = make_embeddings((60, 8))
    # Twelve items have the same text, and the first has no picture.
    text.vectors[:12] = text.vectors[0]
    by_mean = fit_features(
        text, None, blocks={"image": make_block((60, 5), missing="mean", lacking=[0])}
    )
    np.testing.assert_allclose(by_mean.embeddings.vectors[0, 8:], 0, atol=1e-5)
    block = make_block((60, 5), lacking=[0, 40])
    block.vectors[1:12] = block.vectors[1]
    alike = fit_features(text, None, blocks={"image": block}).embeddings.vectors
    np.testing.assert_allclose(alike[0, 8:], alike[1, 8:], atol=1e-5)
    assert np.abs(alike[40, 8:]).max() > 0.01


@pytest.mark.parametrize("missing", ["alike", "mean"])
def test_later_items_get_the_blocks_they_would_have_had(missing, tmp_path):
    text = make_embeddings((60, 20))
    blocks = {
        "image": make_block((60, 12), dim=4, missing=missing, lacking=[4, 9]),
        "sound": make_block((60, 3), seed=5, missing=missing, lacking=[9]),
    }
    fitted = fit_features(text, None, blocks=blocks)
    fitted.transform.save(tmp_path / "transform.safetensors")
    given = {name: block.given for name, block in blocks.items()}
    save_given(given, tmp_path)
    features, rows = fitted.embeddings.vectors, [3, 4, 9]
    again = build_new_features(
        FeatureTransform.load(tmp_path / "transform.safetensors"),
        text.vectors[rows],
        known=KnownItems(features, None, load_given(tmp_path, 60)),
        blocks={name: (block.vectors[rows], block.given[rows]) for name, block in blocks.items()},
    )
    np.testing.assert_allclose(again, features[rows], atol=1e-4)
    without = build_new_features(
        fitted.transform, text.vectors[rows], known=KnownItems(features, None, given)
    )
    np.testing.assert_allclose(without[1:, :24], features[rows[1:], :24], atol=1e-4)
    assert not np.allclose(without[0], features[3], atol=1e-3)


def test_a_transform_whose_arrays_do_not_fit_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "transform.safetensors"
    fitted = fit_features(make_embeddings((60, 20)), None, blocks={"image": make_block((60, 12))})
    fitted.transform.save(path)
    sound = load_file(path)
    for name in sound:
        for value in (None, sound[name].reshape(-1)[:0], np.full_like(sound[name], np.nan)):
            others = {other: array for other, array in sound.items() if other != name}
            save_file(others if value is None else {**others, name: value}, path)
            with pytest.raises(ArtifactError, match="damaged"):
                FeatureTransform.load(path)


def test_marks_of_another_catalogue_are_refused(tmp_path):
    save_given({"image": np.ones(5, bool)}, tmp_path)
    with pytest.raises(ArtifactError, match=r"expected bool \[6\]"):
        load_given(tmp_path, 6)
    assert load_given(tmp_path / "none", 6) == {}


@pytest.mark.parametrize("text_dim", [None, 64])
def test_fewer_items_than_dimensions_keep_all_distances(text_dim):
    """Features of 40 items have 39 dimensions, so later steps do not compute in all 4,096."""
    text = make_embeddings((40, 4096), scale=3, shift=5)
    fitted = fit_features(text, None, text_dim=text_dim)
    found = fitted.embeddings.vectors
    assert found.shape == (40, 39)
    scale = fitted.transform.text.scale
    before = np.linalg.norm(text.vectors[:, None] - text.vectors, axis=2)
    after = np.linalg.norm(found[:, None] - found, axis=2) * scale
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-2)
    later = build_new_features(
        fitted.transform, text.vectors[:3], known=KnownItems(found, None, {})
    )
    np.testing.assert_allclose(later, found[:3], atol=1e-4)


def test_leading_components_of_fewer_items_than_dimensions():
    text = make_embeddings((40, 4096))
    centred = text.vectors - text.vectors.mean(axis=0)
    started = time.process_time()
    found = build_features(text, None, text_dim=20).vectors
    assert time.process_time() - started < 5, "it took over half a minute by 4,096 dimensions"
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :20] * values[:20] / np.sqrt((values[:20] ** 2).sum() / 40)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


def test_one_item_has_features_too():
    assert build_features(make_embeddings((1, 8)), None, text_dim=None).vectors.tolist() == [[0.0]]
