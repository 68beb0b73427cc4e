import logging
import signal
import subprocess
import sys

import numpy as np
import pytest

from recgrit.embedding import cache
from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine


def encode_cached(texts, encoder, cache_dir, shard_texts=8192):
    engine = LocalEngine(EngineConfig(shard_texts=shard_texts))
    return cache.encode_cached(texts, encoder, cache_dir, engine=engine)


class CountingEncoder:
    """An encoder whose vectors hold the lengths of the texts. It counts its calls."""

    name = "counting"

    def __init__(self, fingerprint="one", fail_at=None):
        self.fingerprint = fingerprint
        self.calls = 0
        self.fail_at = fail_at
        self.seen = []

    def encode(self, texts):
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.seen.extend(texts)
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


@pytest.mark.parametrize("damage", ["truncated", "empty", "rows", "nan", "dtype", "zip", "bit"])
def test_damaged_files_are_rebuilt(tmp_path, damage, caplog):
    encoder = CountingEncoder()
    # The array is copied, because it would otherwise change with the mapped file.
    vectors = np.array(encode_cached(["ab", "c"], encoder, tmp_path))
    (path,) = tmp_path.glob("*.npy")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "zip":
        with path.open("wb") as stream:
            np.savez(stream, vectors)
    elif damage == "bit":
        content = bytearray(path.read_bytes())
        content[-2] ^= 0x40
        path.write_bytes(content)
    else:
        wrong = {"rows": vectors[:1], "nan": vectors * np.nan, "dtype": vectors.astype(int)}
        np.save(path, wrong[damage])
    with caplog.at_level(logging.WARNING, logger="recgrit"):
        np.testing.assert_array_equal(encode_cached(["ab", "c"], encoder, tmp_path), vectors)
    assert "damaged" in caplog.text
    assert encoder.calls == 2
    encode_cached(["ab", "c"], encoder, tmp_path)
    assert encoder.calls == 2


def test_vectors_are_returned_even_if_the_cache_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    vectors = encode_cached(["ab"], CountingEncoder(), tmp_path / "file")
    assert len(vectors) == 1
    assert "Cannot cache" in caplog.text


def test_nothing_half_written_is_left(tmp_path):
    encode_cached(["ab"], CountingEncoder(), tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


TEXTS = [f"{'x' * (i % 13)}{i % 40}" for i in range(100)]


def test_equal_texts_are_encoded_once_in_shards(tmp_path):
    encoder = CountingEncoder()
    vectors = encode_cached(TEXTS, encoder, tmp_path, shard_texts=16)
    assert len(encoder.seen) == len(set(encoder.seen)) == len(set(TEXTS))
    assert encoder.calls == -(-len(set(TEXTS)) // 16)
    np.testing.assert_array_equal(vectors[:, 0], [len(text) for text in TEXTS])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"], "no shards"


def test_an_interrupted_encoding_resumes_where_it_stopped(tmp_path, caplog):
    first = CountingEncoder(fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        encode_cached(TEXTS, first, tmp_path, shard_texts=16)
    second = CountingEncoder()
    with caplog.at_level(logging.INFO, logger="recgrit"):
        vectors = encode_cached(TEXTS, second, tmp_path, shard_texts=16)
    assert not set(first.seen) & set(second.seen)
    assert set(first.seen) | set(second.seen) == set(TEXTS)
    np.testing.assert_array_equal(vectors[:, 0], [len(text) for text in TEXTS])
    assert "embed: 64 of" in caplog.text


def test_a_killed_encoding_leaves_whole_shards(tmp_path):
    """After a kill during a write, finished shards are used and half a shard is not."""
    script = f"""
import os, signal, sys
import numpy as np
from recgrit.embedding import cache
from recgrit.engines.config import EngineConfig
from recgrit.engines.local import LocalEngine

class Encoder:
    name, fingerprint = "counting", "one"
    calls = 0
    def encode(self, texts):
        self.calls += 1
        return np.array([[len(text), 1] for text in texts], np.float32)

encoder, save = Encoder(), np.save
def save_and_die(stream, vectors):
    if encoder.calls == 4:
        stream.write(b"half")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(stream, vectors)
np.save = save_and_die
engine = LocalEngine(EngineConfig(shard_texts=16))
cache.encode_cached({TEXTS!r}, encoder, cache.Path(sys.argv[1]), engine=engine)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    encoder = CountingEncoder()
    vectors = encode_cached(TEXTS, encoder, tmp_path, shard_texts=16)
    assert encoder.calls == -(-len(set(TEXTS)) // 16) - 3
    np.testing.assert_array_equal(vectors[:, 0], [len(text) for text in TEXTS])


def test_a_damaged_shard_is_rebuilt(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode_cached(TEXTS, CountingEncoder(fail_at=3), tmp_path, shard_texts=16)
    damaged = sorted(tmp_path.glob("*.shards/*.npy"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    encoder = CountingEncoder()
    vectors = encode_cached(TEXTS, encoder, tmp_path, shard_texts=16)
    assert encoder.calls == -(-len(set(TEXTS)) // 16) - 2
    np.testing.assert_array_equal(vectors[:, 0], [len(text) for text in TEXTS])
