"""Static text encoders, which look up one vector per token and average the vectors of a text.

Encoding is a look-up. On a CPU it is hundreds of times as fast as a sentence encoder. The token
vectors are distilled once from a sentence encoder (model2vec): each token of its vocabulary is
encoded alone, the outputs are reduced to their principal components, and frequent tokens get a
smaller weight. A published static model is used unchanged.

An artifact keeps the whole static model. Distilling again on another machine would round
differently and could flip the signs of components, so later items would lie in another space.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recgrit.checksums import digest_file, digest_json, fits_record, write_record
from recgrit.disk import replace_folder
from recgrit.embedding.embeddings import normalize_rows
from recgrit.embedding.sentence_transformer import quiet_loading, resolve_device
from recgrit.embedding.weights import DEFAULT_MODEL, Weights, find_weights
from recgrit.errors import DataError, EncoderError, MissingExtraError
from recgrit.progress import progress_bar

if TYPE_CHECKING:
    from model2vec import StaticModel

log = logging.getLogger(__name__)

STATIC_FOLDER = "static"
MODEL_FILES = ("model.safetensors", "tokenizer.json", "config.json")
# Paths of the model files inside an artifact.
STATIC_FILES = tuple(f"{STATIC_FOLDER}/{name}" for name in MODEL_FILES)

# All options are written out, so that a change of the library's defaults does not change the models
# under a cache key. Half precision on disk makes no visible difference to a mean of token vectors.
DISTILLATION: dict[str, Any] = {
    "pca_dims": 256,
    "sif_coefficient": 1e-4,
    "quantize_to": "float16",
    "pooling": "mean",
}
# Number of texts to encode at a time.
CHUNK = 8192


class StaticEncoder:
    """A text encoder that averages token vectors, distilled from a sentence encoder or published.

    The vectors have length 1.

    Args:
        model: Sentence encoder to distill, or a static model: a folder or a name on the model hub.
        device: Device that encodes the tokens during distillation. ``auto`` uses a GPU if there is
            one.
        max_length: Maximum number of tokens to read per text. None keeps the static model's own
            limit.

    Raises:
        EncoderError: The weights are neither on this machine nor can be downloaded.
        ConfigError: The device does not exist.
    """

    def __init__(
        self, *, model: str = DEFAULT_MODEL, device: str = "auto", max_length: int | None = None
    ) -> None:
        self.name = f"static-{model.rstrip('/').rsplit('/', 1)[-1]}"
        self.weights = find_weights(model)
        self.device = resolve_device(device)
        self.max_length = max_length

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and settings that determine the vectors."""
        return digest_json([self._source, self.max_length])

    @property
    def _source(self) -> str:
        """Hash of the weights and the distillation settings, which determine the static model."""
        return digest_json([self.weights.fingerprint(), DISTILLATION])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Make the static model in a temporary folder and return the vectors of texts.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a text
            without tokens.

        Raises:
            DataError: There are no texts.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.make(Path(folder)).encode(texts)

    def make(self, directory: Path, *, cache_dir: Path | None = None) -> KeptStaticEncoder:
        """Write the static model into a folder; distill it if the cache does not have it.

        Args:
            directory: Folder in which `STATIC_FILES` are written.
            cache_dir: Folder that keeps distilled models by content. None keeps nothing.

        Raises:
            EncoderError: The model cannot be loaded or distilled.
            MissingExtraError: model2vec is not installed.
        """
        folder = directory / STATIC_FOLDER
        cached = None if cache_dir is None else cache_dir / f"{self.name}-{self._source[:32]}"
        if cached is not None and all(fits_record(cached / name) for name in MODEL_FILES):
            log.info("The static model of %s was found in %s", self.weights.path.name, cached)
            _copy(cached, folder)
        else:
            model = self._load() if _is_static(self.weights) else self._distill()
            with tempfile.TemporaryDirectory() as written:
                model.save_pretrained(written)
                _copy(Path(written), folder)
            if cached is not None and not _is_static(self.weights):
                _cache(folder, cached)
        return KeptStaticEncoder(folder.absolute(), self.name, self.max_length)

    def _load(self) -> StaticModel:
        return _load_model(self.weights.path)

    def _distill(self) -> StaticModel:
        try:
            from model2vec.distill import distill, inference
        except ImportError:
            raise _missing() from None

        folder = _find_transformer(self.weights.path)
        log.info("Distilling %s from the %s", self.weights.path.name, self.weights.source)
        try:
            with quiet_loading(), _as_ours(inference):
                model = distill(str(folder), device=self.device, **DISTILLATION)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncoderError(
                f"The model in {self.weights.path} cannot be distilled: {error}. Name another with "
                "embedding.model, which may also be a static model, or choose "
                "embedding.encoder=minilm."
            ) from error
        # A path of this machine would give the model another fingerprint elsewhere.
        model.config["tokenizer_name"] = self.name
        return model


class KeptStaticEncoder:
    """A text encoder that loads a static model from a folder and returns vectors of length 1.

    Args:
        folder: Folder of the static model, ``static`` in the directory of `StaticEncoder.make`.
        name: Name of the encoder in artifacts and logs.
        max_length: Maximum number of tokens to read per text. None keeps the model's own limit.

    Raises:
        EncoderError: The model cannot be loaded.
        MissingExtraError: model2vec is not installed.
    """

    def __init__(self, folder: Path, name: str, max_length: int | None) -> None:
        self.folder = folder
        self.name = name
        self.max_length = max_length
        self._model = _load_model(folder)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model files and of ``max_length``, which determine the vectors."""
        files = [digest_file(self.folder / name) for name in MODEL_FILES]
        return digest_json([files, self.max_length])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts as vectors.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1, or zeros for a text
            without tokens.

        Raises:
            DataError: There are no texts.
        """
        if not texts:
            raise DataError("No texts to encode: the item table is empty.")
        rows = np.empty((len(texts), self._model.dim), np.float32)
        limit = self._model.max_length if self.max_length is None else self.max_length
        with progress_bar("Encoding item texts", math.ceil(len(texts) / CHUNK)) as bar:
            for start in range(0, len(texts), CHUNK):
                chunk = [_as_unicode(text) for text in texts[start : start + CHUNK]]
                found = self._model.encode(chunk, max_length=limit, use_multiprocessing=False)
                rows[start : start + CHUNK] = normalize_rows(found)
                bar.advance()
        return rows


def _as_unicode(text: str) -> str:
    """Replace halves of surrogate pairs by question marks, because tokenizers refuse them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _load_model(folder: Path) -> StaticModel:
    try:
        from model2vec import StaticModel
    except ImportError:
        raise _missing() from None
    try:
        # float32, because half precision would round the mean of each text again.
        return StaticModel.from_pretrained(folder, quantize_to="float32", force_download=False)
    except Exception as error:  # The tokenizer raises plain Exception.
        raise EncoderError(
            f"The static model in {folder} cannot be loaded: {error}. Run the embed stage again, "
            "or name another model with embedding.model."
        ) from error


def _missing() -> MissingExtraError:
    return MissingExtraError(
        "embedding.encoder=static needs model2vec: pip install 'recgrit[static]', or "
        "-e '.[static]' in a checkout."
    )


def _is_static(weights: Weights) -> bool:
    """Return whether the weights are a static model of model2vec or of sentence-transformers."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in (weights.path / "config.json", weights.path / "modules.json")
        if path.is_file()
    ]
    return any('"model2vec"' in text or "StaticEmbedding" in text for text in texts)


def _find_transformer(folder: Path) -> Path:
    """Return the folder of the transformer inside the folder of a sentence encoder."""
    if (folder / "config.json").is_file():
        return folder
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return folder / str(modules[0]["path"])


def _copy(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(source / name, destination / name)


def _cache(folder: Path, cached: Path) -> None:
    """Copy a distilled model into the cache; log a warning if the cache cannot be written."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{cached.name}.", dir=cached.parent) as name:
            made = Path(name) / "model"
            _copy(folder, made)
            for file in MODEL_FILES:
                write_record(made / file)
            replace_folder(made, cached)
    except OSError as error:
        log.warning("Cannot cache the static model in %s: %s", cached.parent, error)


@contextmanager
def _as_ours(module: Any) -> Iterator[None]:
    """Replace a library's progress bar by the package's own, and silence the library's warnings."""
    shown = module.tqdm
    loggers = [logging.getLogger(name) for name in ("model2vec", "skeletoken")]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:

        def open_bar(*, total: int, desc: str, **_: Any) -> SimpleNamespace:
            bar = stack.enter_context(progress_bar(desc, total))
            return SimpleNamespace(update=bar.advance)

        module.tqdm = open_bar
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            module.tqdm = shown
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
