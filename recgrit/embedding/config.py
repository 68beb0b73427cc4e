"""Settings of the item encoder and of the item features. This module does not import torch."""

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
    """Settings of the encoder that turns each item into a vector.

    Args:
        encoder: Source of the item vectors. ``minilm`` is a sentence encoder. ``static`` looks up
            one vector per token, distilled from the sentence encoder, and suits large catalogues on
            CPUs. ``lsa`` uses word counts and needs no pretrained weights. ``vectors`` reads
            ready-made vectors from a file.
        model: Sentence encoder to use: a name on the model hub or a folder. With
            ``encoder=static``, this is the sentence encoder to distill, or a static model that is
            used unchanged.
        template: Item text with column names in braces, such as ``{title} by {brand}``. None uses
            all known columns that the item table has, such as title, brand and categories. With
            ``data.source=table``, None also uses the other columns that hold text.
        dim: Length of the item vectors. Used with ``encoder=lsa`` only.
        vectors_path: File of ready-made item vectors. Required with ``encoder=vectors`` and not
            allowed with other encoders.
        device: Device that encodes: ``cpu``, ``cuda``, a numbered GPU such as ``cuda:1``, or
            ``auto``, which uses a GPU if there is one.
        batch_size: Number of texts or pictures to encode at a time. Lower it if memory runs out.
        max_length: Maximum number of tokens to read per text. None keeps the model's own limit.
        precision: Number format of the sentence encoder's computation: ``float32``, ``bfloat16``,
            or ``auto``, which uses bfloat16 on GPUs that support it and float32 elsewhere.
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
            raise ValueError(
                "encoder=vectors and vectors_path=FILE work only together: set both or neither"
            )
        return self


class FeatureBlock(Config):
    """Settings of one further kind of item vectors beside text and co-occurrence, such as images.

    Args:
        path: File of item vectors, in a format that ``embedding.vectors_path`` reads, or a
            published table of codes (``NAME.index.json``), whose codes become one-hot vectors.
            Items may be missing from the file.
        column: Column of the item table that names each item's picture: a file or an ``http(s)``
            address. Set either ``column`` or ``path``.
        folder: Folder that relative paths in ``column`` start from. None uses the folder of the
            item table.
        model: CLIP model that encodes the pictures: a name on the model hub or a folder.
        dim: Number of principal components to keep of the block's vectors. None keeps all
            dimensions and subtracts the mean.
        weight: Scale of the block relative to the text part, which has scale 1. 0 leaves the block
            out.
        missing: Vector of an item that has none in this block. ``alike`` uses the mean of the ten
            items with the most similar texts, out of the items that have a vector. ``mean`` uses
            the mean of all items that have one.
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
            raise ValueError("a block needs either path=FILE of vectors or column=NAME of pictures")
        if self.column is None and self.folder is not None:
            raise ValueError("folder=FOLDER works only with column=NAME of pictures")
        return self


class FeatureConfig(Config):
    """Settings of the item features: text, co-occurrence and further vectors, joined side by side.

    Args:
        text_dim: Number of principal components to keep of the text vectors. None keeps all
            dimensions and subtracts the mean. With fewer items than dimensions, at most one
            dimension less than there are items is kept.
        cooccurrence_dim: Number of dimensions of the co-occurrence part, which places items that
            are near each other in training histories close together.
        cooccurrence_weight: Scale of the co-occurrence part relative to the text part, which has
            scale 1. 0 leaves the co-occurrence part out.
        cooccurrence_window: Maximum distance, in positions of a user's history, at which two items
            count as a pair.
        blocks: Further kinds of item vectors, by a name of your choice, such as
            ``features.blocks.image.path=FILE``.
    """

    text_dim: int | None = Field(64, ge=1, le=65_536)
    cooccurrence_dim: int = Field(64, ge=1, le=65_536)
    cooccurrence_weight: float = Field(0.5, ge=0)
    cooccurrence_window: int = Field(10, ge=1, le=1_000_000)
    blocks: dict[str, FeatureBlock] = Field(default_factory=dict)

    def with_recorded(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return recorded feature settings with the files and folders of their blocks filled in.

        A manifest records a block's file by its content, without its path. The path therefore comes
        from the block of the same name in these settings. If these settings lack that block, its
        path is ``not recorded``. A block of pictures gets its folder in the same way, and its model
        if that is a folder, because neither is recorded.

        Args:
            recorded: Feature settings from the manifest of an embed stage.
        """
        blocks = recorded.get("blocks", {})
        if not isinstance(blocks, Mapping) or not all(
            isinstance(b, Mapping) for b in blocks.values()
        ):
            return dict(recorded)  # The record is damaged. Validation raises an error later.
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
        """The blocks with a weight above 0, by name, in alphabetical order."""
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
