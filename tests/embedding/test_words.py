"""Test words of item texts, and the items that share rare words."""

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from recgrit.embedding import words as module
from recgrit.embedding.likeness import Likeness
from recgrit.embedding.words import (
    Terms,
    find_same_words,
    has_words,
    keep_largest,
    load_words,
    save_words,
)
from recgrit.errors import DataError

TEXTS = ["red lip balm", "blue lip balm", "red nail polish", "Glossy GLOSSY polish", "M", "7"]


@pytest.fixture(scope="module")
def catalogue():
    """Return terms of a hundred texts whose word frequencies are as uneven as those of titles."""
    rng = np.random.default_rng(0)
    names = np.array([f"word{number}" for number in range(60)])
    shares = 1 / np.arange(1, 61)
    drawn = rng.choice(names, (100, 6), p=shares / shares.sum())
    texts = [" ".join(row) for row in drawn]
    return Terms.fit(texts).encode(texts)


def test_terms_equal_those_of_scikit_learn():
    expected = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b")
    np.testing.assert_allclose(
        Terms.fit(TEXTS).encode(TEXTS).toarray(), expected.fit_transform(TEXTS).toarray(), rtol=1e-5
    )


def test_texts_that_come_later_are_read_in_the_same_terms(tmp_path):
    terms = Terms.fit(TEXTS)
    terms.save(tmp_path)
    later = ["a green lip balm", "nothing known"]
    found = Terms.load(tmp_path).encode(later)
    np.testing.assert_array_equal(found.toarray(), terms.encode(later).toarray())
    assert np.linalg.norm(found.toarray(), axis=1).tolist() == pytest.approx([1, 0])


def test_texts_without_words_are_refused():
    assert not has_words(["", "--"])
    with pytest.raises(DataError, match="None of the 2 item texts has a word"):
        Terms.fit(["", "--"])


def test_words_of_all_items_are_kept(catalogue, tmp_path):
    assert load_words(tmp_path) is None
    save_words(catalogue, tmp_path)
    kept = load_words(tmp_path)
    assert kept.shape == catalogue.shape
    assert (kept != catalogue).nnz == 0


@pytest.mark.parametrize("pairs_at_once", [1, 500, 2**25])
def test_the_same_words_are_the_largest_cosines(catalogue, monkeypatch, pairs_at_once):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", pairs_at_once)
    items, among = np.array([5, 99, 0]), np.arange(0, 100, 3)
    found = find_same_words(catalogue, items, among, 4).toarray()
    expected = (catalogue @ catalogue.T).toarray()[items]
    expected[:, np.setdiff1d(np.arange(100), among)] = 0
    expected[np.arange(3), items] = 0
    for row, cosines in zip(found, expected, strict=True):
        kept = row[row > 0]
        np.testing.assert_allclose(np.sort(kept), np.sort(cosines)[-4:], rtol=1e-5)
        np.testing.assert_allclose(kept, cosines[row > 0], rtol=1e-5)


def test_the_most_frequent_words_are_ignored_if_pairs_are_too_many(catalogue, monkeypatch, caplog):
    """A word of almost every item would make too many pairs and says little about similarity."""
    everything = np.arange(100)
    frequencies = np.bincount(catalogue.indices, minlength=catalogue.shape[1])
    monkeypatch.setattr(module, "MAX_PAIRS", int(np.sum(np.sort(frequencies)[:-1] ** 2)))
    with caplog.at_level("INFO"):
        found = find_same_words(catalogue, everything, everything, 100).toarray()
    assert "ignores the 1 most frequent" in caplog.text
    kept = catalogue.toarray()
    kept[:, frequencies.argmax()] = 0
    expected = kept @ kept.T
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(expected, (catalogue @ catalogue.T).toarray() - np.eye(100))


def test_no_items_give_an_empty_table():
    words = Terms.fit(TEXTS).encode(TEXTS)
    assert find_same_words(words, np.empty(0, np.int64), np.arange(6), 3).shape == (0, 6)


def test_the_largest_entries_are_kept():
    table = sp.csr_array(np.array([[3.0, 1, 2], [0, 5, 0]]))
    assert keep_largest(table, 2).toarray().tolist() == [[3, 0, 2], [0, 5, 0]]


def test_without_words_similarity_is_that_of_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    items, among = np.array([3, 8]), np.arange(3, 30)
    found = Likeness(features, None).find(items, among, 4).toarray()
    expected = (unit[items] @ unit.T).clip(0)
    expected[:, :3] = 0
    expected[[0, 1], items] = 0
    assert ((found > 0).sum(axis=1) == 4).all()
    np.testing.assert_allclose(np.sort(found)[:, -4:], np.sort(expected)[:, -4:], rtol=1e-4)
    assert Likeness(features, None).find(items, np.empty(0, np.int64), 4).nnz == 0


@pytest.mark.parametrize(("name", "value"), [("indptr", 10**6), ("indptr", -1), ("indices", 10**6)])
def test_offsets_and_terms_out_of_range_are_refused(catalogue, tmp_path, name, value):
    save_words(catalogue, tmp_path)
    path = tmp_path / module.ITEM_WORDS_NAME
    arrays = load_file(path)
    arrays[name][1] = value
    save_file(arrays, path)
    with pytest.raises(ValueError, match=r"index|indices|indptr|values"):
        load_words(tmp_path)
