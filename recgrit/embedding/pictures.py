"""Vectors of item pictures: a CLIP model encodes files or web addresses from a column of the items.

Web pictures are fetched once and kept in a folder. An item whose picture cannot be fetched or read
has no vector. Such pictures are counted and logged, and the next run tries to fetch them again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.checksums import digest_json
from recgrit.data.items import ItemTable
from recgrit.disk import replacing
from recgrit.embedding.embeddings import normalize_rows
from recgrit.embedding.sentence_transformer import load_model, resolve_device
from recgrit.embedding.vectors import SomeVectors
from recgrit.embedding.weights import find_weights
from recgrit.errors import DataError, EncoderError
from recgrit.progress import progress_bar, track

if TYPE_CHECKING:
    import httpx
    from PIL import Image
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

WEB = ("http://", "https://")
FETCHES_AT_ONCE = 16
FETCH_SECONDS = 20.0
MAX_BYTES = 64 * 2**20
# Maximum side of a picture in pixels. Larger pictures are shrunk when opened, because a whole batch
# is in memory at once.
MAX_SIDE = 1024


class PictureEncoder:
    """An encoder that turns pictures into vectors of length 1 with a CLIP model.

    Args:
        model: CLIP model: a folder or a name on the model hub.
        setting: Name of the setting that chose the model, for error messages.
        device: Device that encodes. ``auto`` uses a GPU if there is one.
        batch_size: Number of pictures to encode at a time.

    Raises:
        EncoderError: The weights are neither on this machine nor can be downloaded.
        ConfigError: The device does not exist.
    """

    def __init__(
        self, *, model: str, setting: str, device: str = "auto", batch_size: int = 64
    ) -> None:
        self.name = model.rstrip("/").rsplit("/", 1)[-1]
        self.weights = find_weights(model, setting=setting)
        self.setting = setting
        self.device = resolve_device(device)
        self.batch_size = batch_size

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, which determine the vectors."""
        return digest_json([self.weights.fingerprint(), "pictures"])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode picture files as vectors.

        Args:
            texts: References to picture files, from `refer_to`.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a file that
            cannot be read as a picture.

        Raises:
            EncoderError: The model does not encode pictures.
        """
        rows = np.zeros((len(texts), self._dim), np.float32)
        num_batches = math.ceil(len(texts) / self.batch_size)
        with progress_bar("Encoding pictures", num_batches) as bar:
            for start in range(0, len(texts), self.batch_size):
                pictures = {}
                for row in range(start, min(start + self.batch_size, len(texts))):
                    picture = _open(texts[row].rsplit("\n", 2)[0])
                    if picture is not None:
                        pictures[row] = picture
                if pictures:
                    rows[list(pictures)] = self._encode(list(pictures.values()))
                bar.advance()
        return rows

    def _encode(self, pictures: list[Image.Image]) -> npt.NDArray[np.float32]:
        found = self._model.encode(pictures, batch_size=self.batch_size, show_progress_bar=False)
        return normalize_rows(np.asarray(found, dtype=np.float32))

    @cached_property
    def _dim(self) -> int:
        from PIL import Image

        try:
            blank = Image.new("RGB", (32, 32))
            return int(self._model.encode([blank], show_progress_bar=False).shape[1])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EncoderError(
                f"The model {self.name} does not accept pictures ({error}). Name another with "
                f"{self.setting}, such as clip-ViT-B-32."
            ) from error

    @cached_property
    def _model(self) -> SentenceTransformer:
        return load_model(self.weights, self.device, setting=self.setting)


def refer_to(path: Path) -> str:
    """Return a text that names a picture file by path, size and time of its last change."""
    found = path.stat()
    return f"{path.absolute()}\n{found.st_size}\n{found.st_mtime_ns}"


def _open(path: str | Path) -> Image.Image | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            return ImageOps.exif_transpose(picture).convert("RGB")
    # Pillow's readers raise many kinds of errors for damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None


def encode_pictures(
    items: ItemTable,
    column: str,
    *,
    name: str,
    folder: Path,
    store: Path,
    encode: Callable[[Sequence[str]], npt.NDArray[np.float32]],
    encoder: str,
) -> SomeVectors:
    """Return vectors of the items' pictures; items without a readable picture have no vector.

    Args:
        items: Items to encode.
        column: Column of the item table that holds files or ``http(s)`` addresses. Nulls and blanks
            mean that an item has no picture.
        name: Name of the feature block, for messages.
        folder: Folder that relative paths start from.
        store: Folder in which fetched pictures are kept.
        encode: Function that returns one vector per reference from `refer_to`, with zeros for a
            file that cannot be read as a picture.
        encoder: Name of the encoder, for people to read.

    Raises:
        DataError: The item table has no text column of this name.
    """
    if items.frame.schema.get(column) not in (pl.String, pl.Null):
        others = [name for name, dtype in items.frame.schema.items() if dtype == pl.String]
        raise DataError(
            f"The item table has no column of text {column!r}; it has {', '.join(others)}. Name "
            f"yours with features.blocks.{name}.column."
        )
    values = [(value or "").strip() for value in items.frame[column]]
    files = _find_files(values, folder, store)
    references = {value: refer_to(path) for value, path in files.items()}
    rows = [place for place, value in enumerate(values) if value in references]
    # Each picture is encoded once: other pictures in a batch change the last bits of a vector.
    encoded = (
        encode(list(references.values())) if references else np.empty((0, 1), dtype=np.float32)
    )
    row_of = {value: row for row, value in enumerate(references)}
    vectors = np.zeros((len(values), encoded.shape[1]), np.float32)
    vectors[rows] = encoded[[row_of[values[place]] for place in rows]] if rows else 0
    given = np.asarray(vectors.any(axis=1), dtype=bool)
    named = np.array([value != "" for value in values], bool)
    lost = [value for value in values if value and value not in references]
    broken = [values[place] for place in rows if not given[place]]
    log.info("%s: %d of %d items name a picture", name, named.sum(), len(values))
    for what, them in (("are missing", lost), ("cannot be read", broken)):
        if them:
            log.warning("%s: %d pictures %s, such as %s", name, len(them), what, them[:3])
    return SomeVectors(vectors, given, encoder)


def _find_files(values: Sequence[str], folder: Path, store: Path) -> dict[str, Path]:
    """Return the file of each picture that exists, after fetching the web pictures."""
    wanted = sorted({value for value in values if value})
    web = [value for value in wanted if value.lower().startswith(WEB)]
    files = {value: folder / value for value in wanted}
    files |= _fetch_all(web, store)
    return {value: path for value, path in files.items() if _is_file(path)}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # The value is not a valid file name.
        return False


def _fetch_all(addresses: Sequence[str], store: Path) -> dict[str, Path]:
    import httpx

    places = {
        address: store / hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()
        for address in addresses
    }
    missing = [address for address in addresses if not places[address].is_file()]
    if not missing:
        return places
    store.mkdir(parents=True, exist_ok=True)
    with (
        httpx.Client(timeout=FETCH_SECONDS, follow_redirects=True) as client,
        ThreadPoolExecutor(FETCHES_AT_ONCE) as pool,
    ):
        done = pool.map(lambda address: _fetch(client, address, places[address]), missing)
        problems = list(filter(None, track(done, "Fetching pictures", len(missing))))
    if problems:
        log.warning("%d of %d pictures not fetched: %s", len(problems), len(missing), problems[:3])
    return places


def _fetch(client: httpx.Client, address: str, path: Path) -> str | None:
    """Fetch one picture; return the reason if it cannot be fetched, else None."""
    import httpx

    try:
        with client.stream("GET", address) as answer, replacing(path) as temporary:
            answer.raise_for_status()
            with temporary.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
                    if file.tell() > MAX_BYTES:
                        raise _UnusableError(f"more than {MAX_BYTES:,} bytes")
            # The server may send an error page instead of a picture. Such a page is not kept.
            if _open(temporary) is None:
                raise _UnusableError("the answer is not a picture")
    except (httpx.HTTPError, httpx.InvalidURL, _UnusableError) as error:
        return f"{address}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


class _UnusableError(Exception):
    pass
