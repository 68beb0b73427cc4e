"""Settings of the models; free of torch.

Those of the trie model are in `recgrit.retrieval.config`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from recgrit.config import Config
from recgrit.retrieval.config import NeighbourKind
from recgrit.training.config import TrainingConfig, TransformerConfig


class ModelConfig(Config):
    """Which model is trained. ``model=sasrec`` for short.

    Args:
        kind: ``trie`` (settings in ``retriever``), ``sasrec``, ``tiger``, ``decoder``,
            ``transitions``, ``item_knn`` (settings in sections of these names), ``popularity``, or
            the dotted path of a model of your own.
        settings: Settings of a model of your own, as its ``settings_class`` has them.
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
        neighbours: Kinds of neighbours that count beside the model, as in ``retriever``.
    """

    epochs: int = Field(30, ge=1, le=1_000_000)
    valid_users: int | None = Field(5000, ge=1)
    neighbours: tuple[NeighbourKind, ...] = ()


class ItemVectorConfig(TransformerConfig):
    """How item vectors are learned from sequences, where semantic IDs are fitted to them.

    Args:
        quantized_epochs: With ``tokenizer.objective=next_item``, passes in which codebooks and
            vectors learn together.
        quantized_learning_rate: Of these passes; each moves items to other codes.
    """

    epochs: int = Field(10, ge=1, le=1_000_000)
    patience: int = Field(2, ge=1, le=1_000_000)
    valid_users: int | None = Field(5000, ge=1)
    quantized_epochs: int = Field(5, ge=1, le=1_000_000)
    quantized_learning_rate: float = Field(3e-4, gt=0)


class TokenModelConfig(TrainingConfig):
    """Settings that models over tokens of semantic IDs have in common.

    Args:
        valid_beam_width: Beam width of validation while training.
    """

    epochs: int = Field(200, ge=1, le=1_000_000)
    valid_users: int | None = Field(1000, ge=1)
    valid_beam_width: int = Field(20, ge=10, le=100_000)


class TigerConfig(TokenModelConfig):
    """Settings of TIGER, of the published size, and its training.

    Args:
        model_dim: Size of all vectors.
        num_layers: Layers of the encoder, and of the decoder.
        num_heads: Attention heads.
        head_dim: Size of each head.
        hidden_dim: Size of the feed-forward nets.
        history_length: Longest history read, in items.
        dropout: Rate everywhere.
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
    """Settings of neighbours alone.

    Args:
        neighbours: Kinds of them, as in ``retriever``.
        history_length: Items of a history that are read.
    """

    neighbours: tuple[NeighbourKind, ...] = Field(("near", "next", "alike"), min_length=1)
    history_length: int = Field(50, ge=1, le=100_000)


class ItemKNNConfig(Config):
    """Settings of item-kNN.

    Args:
        num_neighbours: Most similar items kept of each item.
        window: How many positions apart two items of a user may stand to count as a pair.
        shrinkage: Added to the norm: small counts are trusted less.
        discount: Weight of an item of the history relative to the one after it.
        history_length: Items of a history that are read.
    """

    num_neighbours: int = Field(100, ge=1, le=1_000_000)
    window: int = Field(20, ge=1, le=1_000_000)
    shrinkage: float = Field(10.0, ge=0)
    discount: float = Field(0.8, gt=0, le=1)
    history_length: int = Field(50, ge=1, le=100_000)
