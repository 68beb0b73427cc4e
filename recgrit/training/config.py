"""Settings of training and of transformers over histories; free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
        max_seconds: Training ends within the epoch after so many seconds; None for no limit. Two
            runs with a limit need not give the same weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto`` is bfloat16 on a GPU with instructions for it, and float32 on every CPU.
            On a CPU with AMX ``bfloat16`` is the faster choice; with AVX-512 alone it was 1.4 times
            slower than ``float32``.
    """

    epochs: int = Field(20, ge=1, le=1_000_000)
    patience: int = Field(4, ge=1, le=1_000_000)
    batch_targets: int = Field(1024, ge=1, le=2**24)
    accumulation: int = Field(1, ge=1, le=1_000_000)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(200, ge=0, le=10**9)
    average_decay: float = Field(0.99, ge=0, lt=1)
    valid_users: int | None = Field(None, ge=1)
    max_seconds: float | None = Field(None, gt=0)
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

    model_dim: int = Field(128, ge=8, le=16_384)
    num_layers: int = Field(2, ge=1, le=256)
    num_heads: int = Field(4, ge=1, le=1024)
    history_length: int = Field(50, ge=1, le=100_000)
    dropout: float = Field(0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim {self.model_dim} must be a multiple of num_heads {self.num_heads}"
            )
        return self
