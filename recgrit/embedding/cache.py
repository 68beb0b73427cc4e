"""Encoded texts kept on disk by content: the same encoder never sees the same catalogue twice.

Nor, after an interruption, the same part of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recgrit.embedding.encoders import Encoder
from recgrit.embedding.text import order_texts
from recgrit.progress import progress_bar

log = logging.getLogger(__name__)

# A minute or two of a CPU's work; a multiple of what encoders take at a time.
SHARD_TEXTS = 8192


def encode_cached(
    texts: Sequence[str], encoder: Encoder, cache_dir: Path, *, shard_texts: int = SHARD_TEXTS
) -> npt.NDArray[np.float32]:
    """The encoder's vectors of these texts, read from the cache if they were made before.

    Texts are encoded in shards, which are kept as they are done: whoever is interrupted goes on
    with the shard he was at. A damaged cache file is made anew. A cache that cannot be written is
    no reason to lose the vectors: it is logged and passed over.

    Args:
        texts: One text per item.
        encoder: Asked only if the cache has no vectors of this encoder and these texts.
        cache_dir: The folder of cached vectors, created if need be.
        shard_texts: Texts encoded between two files.
    """
    path = cache_dir / f"{encoder.name}-{_digest(texts, encoder)}.npy"
    cached = _read(path, len(texts))
    if cached is not None:
        log.info("Vectors of %d texts found in %s", len(texts), path)
        return cached
    shards = path.with_suffix(".shards")
    vectors = _encode_in_shards(texts, encoder, shards, shard_texts)
    if _try_to_write(path, vectors):
        shutil.rmtree(shards, ignore_errors=True)
    return vectors


def _encode_in_shards(
    texts: Sequence[str], encoder: Encoder, folder: Path, shard_texts: int
) -> npt.NDArray[np.float32]:
    """The vectors of texts, each different one encoded once, in the order `order_texts` gives."""
    unique = order_texts(texts)
    parts, num_encoded, started = [], 0, time.perf_counter()
    with progress_bar("Encoding item texts", len(unique)) as bar:
        for start in range(0, len(unique), shard_texts):
            shard = unique[start : start + shard_texts]
            path = folder / f"{shard_texts}-{start // shard_texts:06d}.npy"
            part = _read(path, len(shard))
            if part is None:
                part = encoder.encode(shard)
                _try_to_write(path, part)
                num_encoded += len(shard)
            parts.append(part)
            done = start + len(shard)
            rate = num_encoded / (time.perf_counter() - started)
            bar.advance(len(shard), note=f"{rate:,.0f} a second")
            if num_encoded and done < len(unique):
                log.info(
                    "Encoded %s of %s texts, %.0f a second, %s left",
                    f"{done:,}",
                    f"{len(unique):,}",
                    rate,
                    timedelta(seconds=round((len(unique) - done) / rate)),
                )
    row_of = {text: row for row, text in enumerate(unique)}
    rows = np.fromiter((row_of[text] for text in texts), np.int64, len(texts))
    vectors: npt.NDArray[np.float32] = np.concatenate(parts)[rows]
    return vectors


def _digest(texts: Sequence[str], encoder: Encoder) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        # The length first: ["ab", "c"] and ["a", "bc"] must differ.
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:32]


def _read(path: Path, num_texts: int) -> npt.NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        vectors = None
    if (
        isinstance(vectors, np.ndarray)
        and vectors.dtype == np.float32
        and vectors.ndim == 2
        and len(vectors) == num_texts
        and np.isfinite(vectors).all()
    ):
        return vectors
    log.warning("The cached vectors in %s are damaged and are made anew", path)
    return None


def _try_to_write(path: Path, vectors: npt.NDArray[np.float32]) -> bool:
    try:
        _write(path, vectors)
    except OSError as error:
        log.warning("Cannot cache vectors in %s: %s", path.parent, error)
        return False
    return True


def _write(path: Path, vectors: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            np.save(stream, vectors)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
