"""What a bundle says of itself in its manifest."""

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
    """One bundle in the line that led to another.

    Args:
        fingerprint: Of that bundle.
        created: When, in UTC.
        num_added: Items it added to the one before.
        num_removed: Items it removed.
    """

    fingerprint: str
    created: str
    num_added: int
    num_removed: int


class PictureSettings(Config):
    """How pictures of items become vectors.

    Args:
        column: Of the item table: files or addresses.
        model: The CLIP model.
        space: Hash of what decides where its vectors lie.
    """

    column: str
    model: str
    space: str


class TokenizerSettings(Config):
    """How items of a bundle get features and semantic IDs.

    Args:
        seed: Of the run.
        embedding: How item texts become vectors.
        encoder_space: Hash of what decides where those lie; None for vectors of the user's own.
        tokenizer: Settings of the tokenizer; None where the IDs were published.
        pictures: Blocks of features that are made of pictures, by name.
    """

    seed: int
    embedding: EmbeddingConfig
    encoder_space: str | None
    tokenizer: TokenizerConfig | None
    pictures: dict[str, PictureSettings] = Field(default_factory=dict)


class BundleSettings(Config):
    """What a bundle says of itself, beside its files.

    Args:
        version: Of the layout of bundles.
        run: Fingerprint of each artifact of the run it came from.
        ancestors: The bundles before it, oldest first.
        model: Kind of the model.
        settings: Of the model.
        ids: How items get semantic IDs; None for a model without them.
        beam_width: Prefixes kept at each level, as the run was evaluated.
        num_known_items: The first items, which the catalogue had in training.
        table: How the run's own files name their columns, for files that come later.
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
