"""Encoded texts kept on disk by content: the same encoder never sees the same catalogue twice."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recgrit.embedding.encoders import Encoder

log = logging.getLogger(__name__)


def encode_cached(
    texts: Sequence[str], encoder: Encoder, cache_dir: Path
) -> npt.NDArray[np.float32]:
    """The encoder's vectors of these texts, read from the cache if they were made before.

    A damaged cache file is made anew. A cache that cannot be written is no reason to lose the
    vectors: it is logged and passed over.

    Args:
        texts: One text per item.
        encoder: Asked only if the cache has no vectors of this encoder and these texts.
        cache_dir: The folder of cached vectors, created if need be.
    """
    path = cache_dir / f"{encoder.name}-{_digest(texts, encoder)}.npy"
    cached = _read(path, len(texts))
    if cached is not None:
        log.info("Vectors of %d texts found in %s", len(texts), path)
        return cached
    vectors = encoder.encode(texts)
    try:
        _write(path, vectors)
    except OSError as error:
        log.warning("Cannot cache vectors in %s: %s", cache_dir, error)
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


def _write(path: Path, vectors: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            np.save(stream, vectors)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
