import logging

import numpy as np
import pytest

from recgrit.embedding.cache import encode_cached


class CountingEncoder:
    """Vectors of text lengths, and how often they were asked for."""

    name = "counting"

    def __init__(self, fingerprint="one"):
        self.fingerprint = fingerprint
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_the_same_texts_are_encoded_once(tmp_path):
    encoder = CountingEncoder()
    first = encode_cached(["ab", "c"], encoder, tmp_path / "cache")
    second = encode_cached(["ab", "c"], encoder, tmp_path / "cache")
    assert encoder.calls == 1
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("texts", [["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["ab\ud800", "c"]])
def test_other_texts_are_encoded(tmp_path, texts):
    encoder = CountingEncoder()
    encode_cached(["ab", "c"], encoder, tmp_path)
    np.testing.assert_array_equal(
        encode_cached(texts, encoder, tmp_path)[:, 0], [len(text) for text in texts]
    )
    assert encoder.calls == 2


def test_another_encoder_has_its_own_entry(tmp_path):
    encode_cached(["ab"], CountingEncoder("one"), tmp_path)
    other = CountingEncoder("two")
    encode_cached(["ab"], other, tmp_path)
    assert other.calls == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "rows", "nan", "dtype", "zip"])
def test_damaged_files_are_made_anew(tmp_path, damage, caplog):
    encoder = CountingEncoder()
    vectors = encode_cached(["ab", "c"], encoder, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "zip":
        with path.open("wb") as stream:
            np.savez(stream, vectors)
    else:
        wrong = {"rows": vectors[:1], "nan": vectors * np.nan, "dtype": vectors.astype(int)}
        np.save(path, wrong[damage])
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        np.testing.assert_array_equal(encode_cached(["ab", "c"], encoder, tmp_path), vectors)
    assert "damaged" in caplog.text
    assert encoder.calls == 2
    encode_cached(["ab", "c"], encoder, tmp_path)
    assert encoder.calls == 2


def test_a_cache_that_cannot_be_written_costs_no_vectors(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    vectors = encode_cached(["ab"], CountingEncoder(), tmp_path / "file")
    assert len(vectors) == 1
    assert "Cannot cache" in caplog.text


def test_nothing_half_written_is_left(tmp_path):
    encode_cached(["ab"], CountingEncoder(), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
