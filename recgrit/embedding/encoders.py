"""Which encoder turns item texts into vectors, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from recgrit.config import Config
from recgrit.embedding.lsa import LSAEncoder
from recgrit.embedding.sentence_transformer import Precision, SentenceTransformerEncoder
from recgrit.embedding.weights import DEFAULT_MODEL
from recgrit.errors import ConfigError


class Encoder(Protocol):
    """Texts in, one normalized vector per text out; equal texts get equal vectors."""

    @property
    def name(self) -> str:
        """What it is called in artifacts and logs."""

    @property
    def fingerprint(self) -> str:
        """Hash of settings and weights: equal fingerprints give equal vectors."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), embedding_dim]; rows of length 1, or zeros without content."""


class EmbeddingConfig(Config):
    """How items become vectors.

    Args:
        encoder: ``minilm`` (a sentence encoder), ``lsa`` (word counts, no weights to fetch), or
            ``vectors`` (ready-made ones from a file).
        model: The sentence encoder: a name on the model hub, or a folder.
        template: Item text with fields in braces; None uses what the table has.
        dim: Length of the vectors (``lsa`` only).
        vectors_path: The file of ready-made vectors (``vectors`` only).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        batch_size: Texts encoded at a time.
        max_length: Tokens read of each text; None keeps the model's own limit.
        precision: ``auto`` is bfloat16 on GPUs that have it, else float32.
    """

    encoder: Literal["minilm", "lsa", "vectors"] = "minilm"
    model: str = DEFAULT_MODEL
    template: str | None = None
    dim: int = Field(128, ge=1)
    vectors_path: Path | None = None
    device: str = "auto"
    batch_size: int = Field(64, ge=1)
    max_length: int | None = Field(None, ge=1)
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _check_vectors_path(self) -> EmbeddingConfig:
        if (self.encoder == "vectors") != (self.vectors_path is not None):
            raise ValueError("encoder=vectors and vectors_path=FILE belong together")
        return self


def _build_minilm(config: EmbeddingConfig, seed: int) -> Encoder:
    return SentenceTransformerEncoder(
        model=config.model,
        device=config.device,
        batch_size=config.batch_size,
        max_length=config.max_length,
        precision=config.precision,
    )


def _build_lsa(config: EmbeddingConfig, seed: int) -> Encoder:
    return LSAEncoder(dim=config.dim, seed=seed)


ENCODERS: dict[str, Callable[[EmbeddingConfig, int], Encoder]] = {
    "minilm": _build_minilm,
    "lsa": _build_lsa,
}


def build_encoder(config: EmbeddingConfig, seed: int) -> Encoder:
    """The encoder the settings name.

    Raises:
        ConfigError: The name stands for no text encoder.
        EncoderError: Its weights cannot be had on this machine.
    """
    if config.encoder not in ENCODERS:
        raise ConfigError(
            f"{config.encoder!r} is no text encoder; known: {', '.join(ENCODERS)}. "
            "Ready-made vectors are read with load_vectors."
        )
    return ENCODERS[config.encoder](config, seed)
