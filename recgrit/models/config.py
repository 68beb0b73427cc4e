"""Settings of all models except the trie model, without importing torch.

The settings of the trie model are in `recgrit.retrieval.config`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from recgrit.config import Config
from recgrit.retrieval.config import NeighbourKind
from recgrit.training.config import TrainingConfig, TransformerConfig


class ModelConfig(Config):
    """Choice of the model that is trained. ``model=sasrec`` is short for ``model.kind=sasrec``.

    Args:
        kind: Name of the model: ``trie``, ``sasrec``, ``tiger``, ``decoder``, ``transitions``,
            ``item_knn`` or ``popularity``. The settings of ``trie`` are in the section
            ``retriever``, those of the others in the section of the model's name; ``popularity``
            has no settings. For a model of your own, give its dotted path, such as
            ``package.module.Class``.
        settings: Settings of a model of your own, with the names that its ``settings_class``
            defines. Leave it empty for the models of recgrit.
    """

    kind: str = "trie"
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _take_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class SASRecConfig(TransformerConfig):
    """Settings of SASRec and its training.

    Args:
        neighbours: Kinds of item neighbours whose scores are combined with the model's scores:
            ``near`` (items that occur near the history's items in other histories), ``next`` (items
            that come right after them there) and ``alike`` (items with a similar text). Empty uses
            the model alone.
    """

    epochs: int = Field(30, ge=1, le=1_000_000)
    valid_users: int | None = Field(5000, ge=1)
    neighbours: tuple[NeighbourKind, ...] = ()


class ItemVectorConfig(TransformerConfig):
    """Settings for learning item vectors from sequences, which semantic IDs are then fitted to.

    The settings are used if ``tokenizer.objective`` is ``item_vectors`` or ``next_item``.

    Args:
        quantized_epochs: Number of epochs in which codebooks and item vectors are trained together.
            Used only with ``tokenizer.objective=next_item``.
        quantized_learning_rate: Learning rate of these epochs. A larger rate lets more items change
            their codes in each epoch.
    """

    epochs: int = Field(10, ge=1, le=1_000_000)
    patience: int = Field(2, ge=1, le=1_000_000)
    valid_users: int | None = Field(5000, ge=1)
    quantized_epochs: int = Field(5, ge=1, le=1_000_000)
    quantized_learning_rate: float = Field(3e-4, gt=0)


class TokenModelConfig(TrainingConfig):
    """Settings that are common to the models over tokens of semantic IDs, TIGER and the decoder.

    Args:
        valid_beam_width: Beam width of the beam search in the validation after each epoch.
    """

    epochs: int = Field(200, ge=1, le=1_000_000)
    valid_users: int | None = Field(1000, ge=1)
    valid_beam_width: int = Field(20, ge=10, le=100_000)


class TigerConfig(TokenModelConfig):
    """Settings of TIGER and its training. The defaults are the published sizes.

    Args:
        model_dim: Number of dimensions of all token vectors.
        num_layers: Number of layers of the encoder, and also of the decoder.
        num_heads: Number of attention heads of each layer.
        head_dim: Number of dimensions of each attention head.
        hidden_dim: Number of hidden units of each feed-forward network.
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
        dropout: Dropout rate in all parts of the network.
    """

    batch_targets: int = Field(256, ge=1, le=2**24)
    warmup_steps: int = Field(500, ge=0, le=10**9)
    model_dim: int = Field(128, ge=8, le=16_384)
    num_layers: int = Field(4, ge=1, le=256)
    num_heads: int = Field(6, ge=1, le=1024)
    head_dim: int = Field(64, ge=1, le=16_384)
    hidden_dim: int = Field(1024, ge=1, le=65_536)
    history_length: int = Field(20, ge=1, le=100_000)
    dropout: float = Field(0.1, ge=0, lt=1)


class DecoderConfig(TokenModelConfig, TransformerConfig):
    """Settings of the decoder-only model and its training."""

    dropout: float = Field(0.3, ge=0, lt=1)


class TransitionsConfig(Config):
    """Settings of the model ``transitions``, which ranks by item neighbours without training.

    Args:
        neighbours: Kinds of item neighbours to use, at least one: ``near`` (items that occur near
            the history's items in other histories), ``next`` (items that come right after them
            there) and ``alike`` (items with a similar text).
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
    """

    neighbours: tuple[NeighbourKind, ...] = Field(("near", "next", "alike"), min_length=1)
    history_length: int = Field(50, ge=1, le=100_000)


class ItemKNNConfig(Config):
    """Settings of the model ``item_knn``, which ranks by similarity to the history's items.

    Args:
        num_neighbours: Number of most similar items to keep per item.
        window: Largest distance, in positions of a user's history, at which two items count as a
            pair.
        shrinkage: Constant that is added to the denominator of the cosine similarity. A larger
            value lowers similarities that rest on few interactions.
        discount: Weight of an item of the history relative to the item after it, so that recent
            items count more. 1 weighs all items equally.
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
    """

    num_neighbours: int = Field(100, ge=1, le=1_000_000)
    window: int = Field(20, ge=1, le=1_000_000)
    shrinkage: float = Field(10.0, ge=0)
    discount: float = Field(0.8, gt=0, le=1)
    history_length: int = Field(50, ge=1, le=100_000)
