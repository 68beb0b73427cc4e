"""Settings of item features; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recgrit.config import Config
from recgrit.embedding.weights import DEFAULT_MODEL

Precision = Literal["auto", "float32", "bfloat16"]


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
    dim: int = Field(128, ge=1, le=65_536)
    vectors_path: Path | None = None
    device: str = "auto"
    batch_size: int = Field(64, ge=1, le=1_000_000)
    max_length: int | None = Field(None, ge=1, le=1_000_000)
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _check_vectors_path(self) -> EmbeddingConfig:
        if (self.encoder == "vectors") != (self.vectors_path is not None):
            raise ValueError("encoder=vectors and vectors_path=FILE belong together")
        return self


class FeatureConfig(Config):
    """How item features are put together.

    Args:
        text_dim: Principal components of the text embedding; None keeps all dimensions, centred.
        cooccurrence_dim: Dimensions of the co-occurrence part.
        cooccurrence_weight: Scale of the co-occurrence part beside the text's; 0 leaves it out.
        cooccurrence_window: Positions within which two items of a user count as taken together.
    """

    text_dim: int | None = Field(64, ge=1, le=65_536)
    cooccurrence_dim: int = Field(64, ge=1, le=65_536)
    cooccurrence_weight: float = Field(0.5, ge=0)
    cooccurrence_window: int = Field(10, ge=1, le=1_000_000)
