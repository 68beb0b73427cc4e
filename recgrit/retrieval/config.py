"""Settings of the retriever and of recommendations; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from recgrit.config import Config


class TrainingConfig(Config):
    """How a sequence model is trained.

    Args:
        epochs: At most so many passes over the training targets.
        patience: Epochs without a better validation NDCG@10 before stopping.
        batch_targets: Targets per step, about.
        accumulation: Parts in which a step is computed, for want of memory; the step is the same.
        learning_rate: Of AdamW, after warm-up; falls to a tenth along a cosine over ``epochs``.
        weight_decay: Of AdamW, on matrices and embeddings.
        warmup_steps: Steps of linear warm-up.
        average_decay: Decay per step of the moving average of all weights, which is what is
            validated and kept; 0 for none.
        valid_users: Users read by validation while training; None for all.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto`` is bfloat16 where the hardware has instructions for it.
    """

    epochs: int = Field(20, ge=1)
    patience: int = Field(4, ge=1)
    batch_targets: int = Field(1024, ge=1)
    accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(200, ge=0)
    average_decay: float = Field(0.99, ge=0, lt=1)
    valid_users: int | None = Field(None, ge=1)
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class TransformerConfig(TrainingConfig):
    """Sizes of a transformer over histories, and how it is trained.

    Args:
        model_dim: Size of all vectors.
        num_layers: Transformer layers.
        num_heads: Attention heads.
        history_length: Longest history read, in items.
        dropout: Rate everywhere.
    """

    model_dim: int = Field(128, ge=8)
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    history_length: int = Field(50, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim {self.model_dim} must be a multiple of num_heads {self.num_heads}"
            )
        return self


class RetrieverConfig(TransformerConfig):
    """Settings of the retriever and its training.

    Args:
        node_dropout: Share of nodes that use the fallback vector in a training step.
        content: Project item features into the node vectors.
        label_smoothing: Share of each target spread over its siblings.
        neighbour_weight: Share of an item's probability that comes from how often it was taken near
            the last items of the history; 0 for none.
        neighbour_boost: Power of the same counts in the item's score, which is more than its log
            probability then: what both find likely comes first. Needs a ``neighbour_weight``.
        seen_scores: Learn what it means for an item's score that the history holds it already.
        node_vectors: Which nodes have a vector of their own beside their code's: ``all``, those
            ``shared`` by several items (no vector per item then), or ``none``.
        node_buckets: Rows of the table of these vectors, at least as many as the largest codebook
            has codes; nodes share them by a hash, children of one node never. None for a row per
            node, which at 100 million items no longer fits.
        trie_softmax: Normalise over the children of a node; false over all codes of the level.
        valid_beam_width: Beam width of validation while training.
    """

    node_dropout: float = Field(0.05, ge=0, lt=1)
    content: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    neighbour_weight: float = Field(0.3, ge=0, lt=1)
    neighbour_boost: float = Field(0.0, ge=0, le=1)
    seen_scores: bool = True
    node_vectors: Literal["all", "shared", "none"] = "all"
    node_buckets: int | None = Field(None, ge=1)
    trie_softmax: bool = True
    valid_beam_width: int = Field(30, ge=10)

    @model_validator(mode="after")
    def _check_buckets(self) -> RetrieverConfig:
        if self.node_buckets is not None and self.node_vectors == "none":
            raise ValueError(
                f"node_buckets {self.node_buckets} is a table for node vectors, of which "
                "node_vectors=none leaves none: set node_buckets to null, or node_vectors to all"
            )
        return self

    @model_validator(mode="after")
    def _check_boost(self) -> RetrieverConfig:
        if self.neighbour_boost and not self.neighbour_weight:
            raise ValueError(
                f"neighbour_boost {self.neighbour_boost} boosts what neighbours say, of whom "
                "neighbour_weight 0 leaves none: set neighbour_boost to 0 as well, or "
                "neighbour_weight to 0.1"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without buckets or boost, as before there were any: what was trained stays as good."""
        values: dict[str, Any] = dump(self)
        for name in ("node_buckets", "neighbour_boost"):
            if not values.get(name):
                values.pop(name, None)
        return values


class RecommendationConfig(Config):
    """What is recommended to every user at the end of a run.

    Args:
        top_k: Items per user.
        exclude_seen: Keep out what the user already has.
        allowed_items: A text file of item ids, one a line: nothing else is recommended.
        blocked_items: Likewise; what is never recommended.
    """

    top_k: int = Field(10, ge=1)
    exclude_seen: bool = True
    allowed_items: Path | None = None
    blocked_items: Path | None = None
