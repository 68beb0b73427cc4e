"""Choice of the text encoder by settings, and what an artifact keeps of an encoder for later items.

A sentence encoder is loaded again by its name, and its weights are compared by their hash. They are
not copied, because many bundles share the same 90 MB. An encoder that was fitted to the texts
(`LSAEncoder`) or distilled (`StaticEncoder`) is kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recgrit.embedding.cache import encode_cached
from recgrit.embedding.config import EmbeddingConfig
from recgrit.embedding.embeddings import Encoder
from recgrit.embedding.lsa import DIRECTIONS_NAME, FittedLSA, LSAEncoder
from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder
from recgrit.embedding.static import (
    STATIC_FILES,
    STATIC_FOLDER,
    KeptStaticEncoder,
    StaticEncoder,
)
from recgrit.embedding.words import TERMS_NAME
from recgrit.engines.engine import Engine
from recgrit.errors import ConfigError, EncoderError

# Files of encoders that were fitted to texts or distilled.
ENCODER_FILES = (TERMS_NAME, DIRECTIONS_NAME, *STATIC_FILES)


def _build_minilm(config: EmbeddingConfig, seed: int) -> Encoder:
    return SentenceTransformerEncoder(
        model=config.model,
        device=config.device,
        batch_size=config.batch_size,
        max_length=config.max_length,
        precision=config.precision,
    )


def _build_static(config: EmbeddingConfig, seed: int) -> Encoder:
    return StaticEncoder(model=config.model, device=config.device, max_length=config.max_length)


def _build_lsa(config: EmbeddingConfig, seed: int) -> Encoder:
    return LSAEncoder(dim=config.dim, seed=seed)


ENCODERS: dict[str, Callable[[EmbeddingConfig, int], Encoder]] = {
    "minilm": _build_minilm,
    "static": _build_static,
    "lsa": _build_lsa,
}


def build_encoder(config: EmbeddingConfig, seed: int) -> Encoder:
    """Build the text encoder that the settings name.

    Args:
        config: Settings of the encoder.
        seed: Seed of the experiment, which `LSAEncoder` uses.

    Raises:
        ConfigError: The name is not that of a text encoder.
        EncoderError: The weights are neither on this machine nor can be downloaded.
    """
    if config.encoder not in ENCODERS:
        raise ConfigError(
            f"{config.encoder!r} is not a text encoder; known: {', '.join(ENCODERS)}. "
            "Ready-made vectors are read with load_vectors."
        )
    return ENCODERS[config.encoder](config, seed)


@dataclass(frozen=True)
class EncodedItems:
    """Vectors of all items, with the name of their encoder and a hash of their vector space.

    Args:
        vectors: float32 ``[number of items, embedding_dim]``.
        encoder: Name of the encoder.
        space: Hash of everything that determines the vector space. Vectors of two encoders are
            comparable only if their hashes are equal.
    """

    vectors: npt.NDArray[np.float32]
    encoder: str
    space: str


def encode_items(
    texts: Sequence[str],
    config: EmbeddingConfig,
    seed: int,
    *,
    cache_dir: Path,
    directory: Path,
    engine: Engine,
) -> EncodedItems:
    """Encode item texts; write the files of a fitted or distilled encoder to ``directory``.

    The engine computes the vectors of a pretrained encoder, and they are cached. LSA vectors are
    not cached, because fitting takes most of the time.

    Args:
        texts: One text per item.
        config: Settings of the encoder.
        seed: Seed of the experiment.
        cache_dir: Folder that keeps vectors and distilled models by content.
        directory: Folder in which `ENCODER_FILES` are written.
        engine: Engine that encodes the texts in shards.
    """
    encoder = build_encoder(config, seed)
    if isinstance(encoder, LSAEncoder):
        fitted = encoder.fit(texts)
        fitted.save(directory)
        return EncodedItems(fitted.encode(texts), fitted.name, fitted.fingerprint)
    build: Callable[[], Encoder] = partial(build_encoder, config, seed)
    if isinstance(encoder, StaticEncoder):
        encoder = encoder.make(directory, cache_dir=cache_dir)
        build = partial(KeptStaticEncoder, encoder.folder, encoder.name, encoder.max_length)
    if isinstance(encoder, SentenceTransformerEncoder):
        # All workers use this machine's precision, so that a catalogue has one precision.
        settled = config.model_copy(update={"precision": encoder.precision})
        if Path(config.model).is_dir():  # Workers must not look up the folder as a name on the hub.
            settled = settled.model_copy(update={"model": str(Path(config.model).absolute())})
        build = partial(build_encoder, settled, seed)
    vectors = encode_cached(texts, encoder, cache_dir, engine=engine, build=build)
    return EncodedItems(vectors, encoder.name, _space_of(encoder))


def load_encoder(config: EmbeddingConfig, seed: int, *, directory: Path, space: str) -> Encoder:
    """Load the encoder that made the vectors of an artifact, to encode later items.

    Args:
        config: Settings of the encoder.
        seed: Seed of the experiment.
        directory: Folder in which `encode_items` wrote the encoder's files.
        space: Hash of the vector space that `encode_items` returned.

    Raises:
        EncoderError: The weights cannot be found or downloaded, or differ from those that made the
            vectors.
    """
    if config.encoder == "lsa":
        return FittedLSA.load(directory)
    if config.encoder == "static":
        name = Path(config.model).name
        return KeptStaticEncoder(directory / STATIC_FOLDER, f"static-{name}", config.max_length)
    encoder = build_encoder(config, seed)
    found = _space_of(encoder)
    if found != space:
        raise EncoderError(
            f"The weights of {config.model} on this machine are not those that encoded the items: "
            f"expected {space}, found {found}. Vectors of two models cannot be compared: "
            "restore the expected weights."
        )
    return encoder


def _space_of(encoder: Encoder) -> str:
    return encoder.space if isinstance(encoder, SentenceTransformerEncoder) else encoder.fingerprint
