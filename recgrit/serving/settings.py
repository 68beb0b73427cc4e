"""Settings that a bundle keeps in its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from recgrit.config import Config
from recgrit.data.config import TableConfig
from recgrit.embedding.config import EmbeddingConfig
from recgrit.evaluation.config import MAX_BEAM_WIDTH
from recgrit.quantization.config import TokenizerConfig

if TYPE_CHECKING:
    pass

BUNDLE_VERSION = 5


class Ancestor(Config):
    """One of the earlier bundles that a bundle was made from.

    Args:
        fingerprint: Fingerprint of the earlier bundle.
        created: Time when the earlier bundle was written, in UTC.
        num_added: Number of items that it added to its own previous bundle.
        num_removed: Number of items that it removed from its own previous bundle.
    """

    fingerprint: str
    created: str
    num_added: int
    num_removed: int


class PictureSettings(Config):
    """Settings by which pictures of items become vectors.

    Args:
        column: Column of the item table with files or addresses of pictures.
        model: Name of the CLIP model.
        space: Hash of the model's weights. Vectors with equal hashes can be compared.
    """

    column: str
    model: str
    space: str


class TokenizerSettings(Config):
    """Settings by which items of a bundle get features and semantic IDs.

    Args:
        seed: Seed of the run.
        embedding: Settings of the encoder of item texts.
        encoder_space: Hash of what determines the text vectors, such as the encoder's weights. None
            if the vectors are the user's own.
        tokenizer: Settings of the tokenizer. None if the run read published IDs from a file.
        pictures: Settings of the feature blocks that are made of pictures, by block name.
    """

    seed: int
    embedding: EmbeddingConfig
    encoder_space: str | None
    tokenizer: TokenizerConfig | None
    pictures: dict[str, PictureSettings] = Field(default_factory=dict)


class BundleSettings(Config):
    """All settings that a bundle keeps in its manifest.

    Args:
        version: Version of the layout of bundles.
        run: Fingerprint of each artifact of the run that the bundle was exported from, by stage.
        ancestors: The earlier bundles that this bundle was made from, oldest first.
        model: Kind of the model.
        settings: Settings of the model.
        ids: Settings by which items get semantic IDs. None for a model without IDs.
        beam_width: Number of prefixes that the beam search keeps at each level, as in the run's
            evaluation.
        num_known_items: Number of items that the catalogue had in training. They are the first
            rows.
        table: Column names and formats of the run's own files, for reading later files.
    """

    version: int
    run: dict[str, str]
    ancestors: tuple[Ancestor, ...]
    model: str
    settings: dict[str, Any]
    ids: TokenizerSettings | None
    beam_width: int = Field(ge=1, le=MAX_BEAM_WIDTH)
    num_known_items: int = Field(ge=0)
    table: TableConfig = TableConfig()
