"""Text encoders of the sentence-transformers library, by default all-MiniLM-L6-v2.

Encoding is the slowest stage on a CPU: about 115 texts of 60 tokens a second on two cores in
float32. bfloat16 autocast keeps the vectors (cosine .9999) but is a third slower on CPUs whose only
bfloat16 instructions are those of AVX-512. It is therefore the default on GPUs only.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from recgrit.checksums import digest_json
from recgrit.embedding.embeddings import normalize_rows
from recgrit.embedding.text import order_texts
from recgrit.embedding.weights import DEFAULT_MODEL, Weights, find_weights
from recgrit.errors import ConfigError, DataError, EncoderError
from recgrit.progress import progress_bar

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

# Number of batches between two steps of the progress bar.
CHUNK_BATCHES = 4


class SentenceTransformerEncoder:
    """A text encoder that uses a pretrained sentence encoder and returns vectors of length 1.

    Args:
        model: Sentence encoder: a folder or a name on the model hub.
        device: Device that encodes. ``auto`` uses a GPU if there is one.
        batch_size: Number of texts to encode at a time.
        max_length: Maximum number of tokens to read per text. None keeps the model's own limit.
        precision: Number format of the computation. ``auto`` uses bfloat16 on GPUs that support it
            and float32 elsewhere.

    Raises:
        EncoderError: The weights are neither on this machine nor can be downloaded.
        ConfigError: The device does not exist.
    """

    def __init__(
        self,
        *,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        batch_size: int = 64,
        max_length: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        # The name is the last part only. A folder's path would bind artifacts to one machine.
        self.name = model.rstrip("/").rsplit("/", 1)[-1]
        self.weights = find_weights(model)
        self.device = resolve_device(device)
        self.batch_size = batch_size
        self.max_length = max_length
        self.precision = _resolve_precision(precision, self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, ``max_length`` and precision, which determine the vectors."""
        return digest_json([self.weights.fingerprint(), self.max_length, self.precision])

    @property
    def space(self) -> str:
        """Hash of the weights and ``max_length``, which determine the vector space.

        Precision and device change the vectors by rounding only, so they are not part of the hash.
        """
        return digest_json([self.weights.fingerprint(), self.max_length])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode texts as vectors.

        Returns:
            float32 ``[len(texts), embedding_dim]``, with rows of length 1.

        Raises:
            DataError: There are no texts.
        """
        import torch

        if not texts:
            raise DataError("No texts to encode: the item table is empty.")
        unique = order_texts(texts)
        chunk_size = self.batch_size * CHUNK_BATCHES
        chunks = []
        device_type = self.device.split(":")[0]
        half = self.precision == "bfloat16"
        with (
            torch.autocast(device_type, dtype=torch.bfloat16, enabled=half),
            progress_bar("Encoding item texts", math.ceil(len(unique) / chunk_size)) as bar,
        ):
            for start in range(0, len(unique), chunk_size):
                chunk = self._model.encode(
                    unique[start : start + chunk_size],
                    batch_size=self.batch_size,
                    show_progress_bar=False,
                )
                chunks.append(np.asarray(chunk, dtype=np.float32))
                bar.advance()
        row_of = {text: row for row, text in enumerate(unique)}
        rows = np.fromiter((row_of[text] for text in texts), np.int64, len(texts))
        vectors: npt.NDArray[np.float32] = normalize_rows(np.concatenate(chunks))[rows]
        return vectors

    @cached_property
    def _model(self) -> SentenceTransformer:
        # The model is loaded at the first text, so a run with cached vectors never loads it.
        model = load_model(self.weights, self.device)
        if self.max_length is not None:
            model.max_seq_length = self.max_length
        return model


def load_model(
    weights: Weights, device: str, *, setting: str = "embedding.model"
) -> SentenceTransformer:
    """Load a model of the sentence-transformers library from a folder.

    Args:
        weights: Folder of the model.
        device: Device to load the model on.
        setting: Name of the setting that chose the model, for error messages.

    Raises:
        EncoderError: The model cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    log.info("Loading %s from the %s on %s", weights.path.name, weights.source, device)
    try:
        with quiet_loading():
            return SentenceTransformer(str(weights.path), device=device, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        other = ", or choose embedding.encoder=lsa" if setting == "embedding.model" else ""
        raise EncoderError(
            f"The model in {weights.path} cannot be loaded: {error}. Delete that folder to "
            f"download it again, or name another with {setting}{other}."
        ) from error


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bar of the transformers library while weights are loaded.

    The library draws its bar even if the output is not a terminal.
    """
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def resolve_device(device: str) -> str:
    """Return the device to encode on; ``auto`` becomes a GPU if there is one.

    Raises:
        ConfigError: The device does not exist.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"embedding.device={device} cannot be used here: {reason} Set embedding.device=auto."
        ) from None
    return device


def _resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16"]:
    import torch

    if precision == "auto":
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return precision
