"""A disk cache of encoded texts, so that one encoder never encodes the same catalogue twice.

An engine encodes the texts in shards. After an interruption, finished shards are not encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.checksums import fits_record, write_record
from recgrit.disk import replacing
from recgrit.embedding.embeddings import Encoder
from recgrit.embedding.text import order_texts
from recgrit.engines.engine import Engine
from recgrit.engines.shards import ShardFunction, Shards
from recgrit.errors import EngineError

logger = logging.getLogger(__name__)

# Each shard is one row group, so that a worker reads only its own shard.
TEXTS_NAME = "texts.parquet"


def encode_cached(
    texts: Sequence[str],
    encoder: Encoder,
    cache_dir: Path,
    *,
    engine: Engine,
    build: Callable[[], Encoder] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the encoder's vectors of texts, read from the cache if it has them.

    A damaged cache file is replaced. If the cache cannot be written, a warning is logged and the
    vectors are returned.

    Args:
        texts: One text per item.
        encoder: Encoder whose name and fingerprint identify the vectors in the cache.
        cache_dir: Folder of cached vectors. It is created if it does not exist.
        engine: Engine that encodes the texts that are not in the cache.
        build: Function that builds the encoder in the engine's workers. None uses ``encoder``.

    Returns:
        float32 ``[len(texts), embedding_dim]``, memory-mapped from the cache if it was written.

    Raises:
        EngineError: Some texts cannot be encoded.
    """
    path = cache_dir / f"{encoder.name}-{_digest(texts, encoder)}.npy"
    cached = _read(path, len(texts))
    if cached is not None:
        logger.info("Vectors of %d texts found in %s", len(texts), path)
        return cached
    unique = order_texts(texts)
    row_of = {text: row for row, text in enumerate(unique)}
    rows = np.fromiter((row_of[text] for text in texts), np.int64, len(texts))
    size = engine.config.shard_texts
    with _open_folder(path.with_name(f"{path.stem}-{size}.shards")) as folder:
        shards = Shards("embed", folder, len(unique), size, ".npy")
        _write_texts(unique, folder / TEXTS_NAME, size)
        work = EncodeShards(folder / TEXTS_NAME, build or (lambda: encoder))
        try:
            engine.map_shards(work, shards)
            _join(shards, rows, path)
            write_record(path)
        except (EngineError, OSError) as error:
            # Another run of the same texts may have finished first and removed the shards.
            cached = _read(path, len(texts))
            if cached is not None:
                return cached
            if isinstance(error, EngineError):
                raise
            logger.warning("Cannot cache vectors in %s: %s", path.parent, error)
            vectors: npt.NDArray[np.float32] = np.concatenate(
                [np.load(part) for part in shards.paths()]
            )
            return vectors[rows]
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class EncodeShards:
    """A callable that a worker uses to build the function that encodes one shard of texts.

    Args:
        texts_path: Parquet file of all texts, with the column ``text`` as bytes.
        build: Function that builds the encoder.
    """

    texts_path: Path
    build: Callable[[], Encoder]

    def __call__(self) -> ShardFunction:
        """Build the encoder, once per worker, and return the function that encodes one shard."""
        encoder = self.build()

        def encode(rows: slice, path: Path) -> None:
            table = pl.scan_parquet(self.texts_path, glob=False)[rows].collect()
            texts = [text.decode("utf-8", "surrogatepass") for text in table["text"]]
            with path.open("wb") as stream:
                np.save(stream, encoder.encode(texts))

        return encode


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[Path]:
    """Open the folder of shards, which is removed after success.

    If the folder cannot be created, a temporary folder is used instead.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("Cannot cache vectors in %s: %s", folder.parent, error)
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    yield folder.absolute()
    # Folders left by runs with another shard size are removed too.
    for leftover in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*.shards"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_texts(texts: list[str], path: Path, shard_texts: int) -> None:
    # Texts are written as bytes: files of reviews contain lone surrogates, which Parquet strings
    # refuse.
    encoded = pl.Series("text", [text.encode("utf-8", "surrogatepass") for text in texts])
    with replacing(path) as temporary:
        encoded.to_frame().write_parquet(temporary, row_group_size=shard_texts)


def _join(shards: Shards, rows: npt.NDArray[np.int64], path: Path) -> None:
    """Write the vectors of all texts into one file, with one shard in memory at a time.

    Args:
        shards: Encoded shards of the different texts.
        rows: Row of each text in the shards, int64 ``[number of texts]``.
        path: File to write.
    """
    size = shards.shard_rows
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], size * np.arange(1, shards.num_shards + 1))
    with replacing(path) as temporary:
        joined: npt.NDArray[np.float32] | None = None
        start = 0
        for number, end in enumerate(ends):
            part = np.load(shards.path(number))
            if joined is None:
                joined = np.lib.format.open_memmap(
                    temporary, "w+", np.float32, (len(rows), part.shape[1])
                )
                _reserve(temporary)
            places = order[start:end]
            joined[places] = part[rows[places] - number * size]
            start = end
        del joined  # Closes the file.


def _reserve(path: Path) -> None:
    """Reserve the disk space of the whole file.

    Without the reservation, a full disk would end the process with a signal when it writes into the
    memory map.

    Raises:
        OSError: There is not enough space.
    """
    if hasattr(os, "posix_fallocate"):  # Linux.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _digest(texts: Sequence[str], encoder: Encoder) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        # The length comes first, so that ["ab", "c"] and ["a", "bc"] differ.
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:32]


def _read(path: Path, num_texts: int) -> npt.NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        vectors = None
    if (
        isinstance(vectors, np.ndarray)
        and fits_record(path)
        and vectors.dtype == np.float32
        and vectors.ndim == 2
        and len(vectors) == num_texts
    ):
        return vectors
    logger.warning("The cached vectors in %s are damaged and are computed again", path)
    return None
