"""Settings of item features; free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recgrit.config import Config
from recgrit.embedding.weights import DEFAULT_MODEL

PICTURE_MODEL = "sentence-transformers/clip-ViT-B-32"
BLOCK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
Precision = Literal["auto", "float32", "bfloat16"]


class EmbeddingConfig(Config):
    """How items become vectors.

    Args:
        encoder: ``minilm`` (a sentence encoder), ``static`` (a vector per token, distilled from the
            sentence encoder, for large catalogues on CPUs), ``lsa`` (word counts, no weights to
            fetch), or ``vectors`` (ready-made ones from a file).
        model: The sentence encoder: a name on the model hub, or a folder. With ``static``, that to
            distill, or a static model, which is taken as it is.
        template: Item text with fields in braces; None uses what the table has.
        dim: Length of the vectors (``lsa`` only).
        vectors_path: The file of ready-made vectors (``vectors`` only).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        batch_size: Texts, or pictures, encoded at a time.
        max_length: Tokens read of each text; None keeps the model's own limit.
        precision: ``auto`` is bfloat16 on GPUs that have it, else float32.
    """

    encoder: Literal["minilm", "static", "lsa", "vectors"] = "minilm"
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


class FeatureBlock(Config):
    """One more kind of item vectors beside text and co-occurrence, such as those of images.

    Args:
        path: Vectors as for ``embedding.vectors_path``, or a published table of codes
            (``NAME.index.json``), which become one-hot vectors. Items may be missing.
        column: In place of ``path``, a column of the item table with pictures: files or
            ``http(s)`` addresses.
        folder: Where relative paths in ``column`` start; None for the folder of the item table.
        model: The CLIP model that encodes the pictures: a name on the model hub, or a folder.
        dim: Principal components kept of them; None keeps all dimensions, centred.
        weight: Scale beside the text's; 0 leaves the block out.
        missing: What an item without a vector gets: ``alike``, the mean of those of the ten items
            whose texts are most like its own, or ``mean``, that of all items.
    """

    path: Path | None = None
    column: str | None = None
    folder: Path | None = None
    model: str = PICTURE_MODEL
    dim: int | None = Field(64, ge=1, le=65_536)
    weight: float = Field(0.5, ge=0)
    missing: Literal["alike", "mean"] = "alike"

    @model_validator(mode="after")
    def _check_source(self) -> FeatureBlock:
        if (self.path is None) == (self.column is None):
            raise ValueError("a block takes path=FILE of vectors, or column=NAME of pictures")
        if self.column is None and self.folder is not None:
            raise ValueError("folder=FOLDER belongs to column=NAME of pictures")
        return self


class FeatureConfig(Config):
    """How item features are put together.

    Args:
        text_dim: Principal components of the text embedding; None keeps all dimensions, centred,
            and of fewer items than dimensions those that they span.
        cooccurrence_dim: Dimensions of the co-occurrence part.
        cooccurrence_weight: Scale of the co-occurrence part beside the text's; 0 leaves it out.
        cooccurrence_window: Positions within which two items of a user count as a pair.
        blocks: Further item vectors by a name of your choice: ``features.blocks.image.path=FILE``.
    """

    text_dim: int | None = Field(64, ge=1, le=65_536)
    cooccurrence_dim: int = Field(64, ge=1, le=65_536)
    cooccurrence_weight: float = Field(0.5, ge=0)
    cooccurrence_window: int = Field(10, ge=1, le=1_000_000)
    blocks: dict[str, FeatureBlock] = Field(default_factory=dict)

    def with_recorded(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that features were made with, where those of blocks lack their files.

        A file counts by its content, so that where it lies is not recorded: it lies where these
        settings say, and nobody knows where that of a block is that they do not have.
        """
        blocks = recorded.get("blocks", {})
        if not isinstance(blocks, Mapping) or not all(
            isinstance(b, Mapping) for b in blocks.values()
        ):
            return dict(recorded)  # Damaged: validation says so.
        return {
            **recorded,
            "blocks": {
                name: {**self._files_of(name, block), **block} for name, block in blocks.items()
            },
        }

    def _files_of(self, name: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
        planned = self.blocks.get(name)
        if recorded.get("column") is not None:
            return {} if planned is None else {"folder": planned.folder, "model": planned.model}
        path = None if planned is None else planned.path
        return {"path": Path("not recorded") if path is None else path}

    @property
    def blocks_in_use(self) -> dict[str, FeatureBlock]:
        """The blocks that are not left out, by name in the order in which they stand."""
        return {name: block for name, block in sorted(self.blocks.items()) if block.weight > 0}

    @field_validator("blocks")
    @classmethod
    def _check_names(cls, blocks: dict[str, FeatureBlock]) -> dict[str, FeatureBlock]:
        for name in blocks:
            if not BLOCK_NAME.fullmatch(name) or name in ("text", "cooccurrence"):
                raise ValueError(
                    "the name of a block has small letters, digits and _, begins with a letter, "
                    f"and is not text or cooccurrence: got {name[:80]!r}"
                )
        return blocks
