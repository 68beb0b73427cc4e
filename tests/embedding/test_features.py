import numpy as np
import pytest

from recgrit.embedding.embeddings import Embeddings, normalize_rows
from recgrit.embedding.features import (
    FeatureTransform,
    build_new_features,
    fill_missing,
    fit_features,
)


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
    # Components have no sign of their own: compare how items lie to one another.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize(("num_items", "text_dim"), [(30, 10), (30, 99), (4, 8)])
def test_asking_for_all_components_or_more_keeps_the_text(num_items, text_dim):
    text = make_embeddings((num_items, 10))
    found = build_features(text, None, text_dim=text_dim).vectors
    np.testing.assert_array_equal(found, build_features(text, None, text_dim=None).vectors)


def test_text_and_company_stand_side_by_side():
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


def test_items_that_are_all_alike_stay_finite():
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


def test_items_without_cooccurrence_stand_where_their_text_says() -> None:
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


def test_of_a_large_catalogue_an_even_spread_of_items_fills_the_others(monkeypatch):
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
    taken[[4, 9]] = 0  # nobody took these two
    cooccurrence = Embeddings(taken, encoder="cooccurrence", normalized=True)
    fitted = fit_features(text, cooccurrence, text_dim=text_dim, cooccurrence_weight=0.5)
    fitted.transform.save(tmp_path / "transform.safetensors")
    features, width = fitted.embeddings.vectors, text_dim or 20
    again = build_new_features(
        FeatureTransform.load(tmp_path / "transform.safetensors"),
        text.vectors[[4, 9]],
        known_text=features[:, :width],
        known_cooccurrence=taken,
    )
    np.testing.assert_allclose(again, features[[4, 9]], atol=1e-4)
    alone = fit_features(text, None, text_dim=text_dim)
    np.testing.assert_allclose(
        build_new_features(
            alone.transform,
            text.vectors,
            known_text=alone.embeddings.vectors,
            known_cooccurrence=None,
        ),
        alone.embeddings.vectors,
        atol=1e-4,
    )


def test_components_of_vectors_that_memory_does_not_hold(monkeypatch):
    """Chunk by chunk, up to rounding what all at once gives."""
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
        in_chunks.transform.reduce_text(vectors), in_chunks.embeddings.vectors, atol=1e-5
    )
