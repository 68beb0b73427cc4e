import json

import numpy as np
import pytest

from recgrit.embedding.embeddings import Embeddings, normalize_rows
from recgrit.errors import ArtifactError, DataError


@pytest.fixture
def embeddings():
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    return Embeddings(normalize_rows(vectors), "lsa", normalized=True)


def test_says_its_sizes(embeddings):
    assert embeddings.num_items == 5
    assert embeddings.embedding_dim == 3


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((2, 3)),
        np.zeros(3, np.float32),
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 0), np.float32),
    ],
)
def test_refuses_other_shapes_and_types(vectors):
    with pytest.raises(DataError, match=r"float32 vectors of shape \[num_items, embedding_dim\]"):
        Embeddings(vectors, "lsa", normalized=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_values_that_are_not_finite(value):
    vectors = np.ones((6, 2), np.float32)
    vectors[[1, 3, 4, 5], 1] = value
    with pytest.raises(DataError, match=r"4 of 6 .* item_idx \[1, 3, 4\]"):
        Embeddings(vectors, "lsa", normalized=False)


def test_refuses_rows_marked_as_normalized_that_are_not():
    with pytest.raises(DataError, match=r"1 of 2 .* do not have length 1.*\[1\]"):
        Embeddings(np.array([[1, 0], [1, 1]], np.float32), "lsa", normalized=True)


def test_zero_rows_are_allowed_among_normalized_ones():
    Embeddings(np.array([[1, 0], [0, 0]], np.float32), "lsa", normalized=True)


def test_refuses_another_catalogue(embeddings):
    embeddings.require_num_items(5)
    with pytest.raises(DataError, match=r"5 embeddings \(lsa\) for 7 items"):
        embeddings.require_num_items(7)


def test_two_sets_can_be_saved_in_one_folder(embeddings, tmp_path):
    other = Embeddings(np.ones((2, 2), np.float32), "cooccurrence", normalized=False)
    embeddings.save(tmp_path)
    other.save(tmp_path, name="cooccurrence")

    text = Embeddings.load(tmp_path)
    assert isinstance(text.vectors, np.memmap)
    np.testing.assert_array_equal(text.vectors, embeddings.vectors)
    assert (text.encoder, text.normalized) == ("lsa", True)
    loaded = Embeddings.load(tmp_path, name="cooccurrence")
    assert (loaded.encoder, loaded.num_items, loaded.normalized) == ("cooccurrence", 2, False)


def test_loading_what_is_not_there_names_the_files(tmp_path):
    with pytest.raises(ArtifactError, match=r"text_vectors\.npy and text_embeddings\.json"):
        Embeddings.load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "json", "key"])
def test_loading_damaged_files_says_so(embeddings, tmp_path, damage):
    embeddings.save(tmp_path)
    vectors, description = tmp_path / "text_vectors.npy", tmp_path / "text_embeddings.json"
    if damage == "truncated":
        vectors.write_bytes(vectors.read_bytes()[:-4])
    elif damage == "json":
        description.write_text("{")
    else:
        description.write_text(json.dumps({"encoder": "lsa"}))
    with pytest.raises(ArtifactError, match="damaged"):
        Embeddings.load(tmp_path)


def test_tables_have_one_row_per_item(embeddings, tmp_path):
    embeddings.save(tmp_path)
    frame = Embeddings.load(tmp_path).to_polars()
    assert frame.columns == ["item_idx", "vector"]
    np.testing.assert_array_equal(frame["vector"].to_numpy(), embeddings.vectors)
    assert len(embeddings.to_pandas()) == 5


def test_normalize_rows_leaves_rounding_residue_at_zero():
    rows = normalize_rows(np.array([[1e-9, 0.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(rows, [[0, 0], [0, 1]])
    assert rows.dtype == np.float32
