"""Settings of training and of transformers over histories, without importing torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recgrit.config import Config


class TrainingConfig(Config):
    """Settings for the training of a sequence model.

    Args:
        epochs: Largest number of passes over the training targets. The training ends earlier if
            validation stops improving, see ``patience``.
        patience: Number of epochs in a row without a better validation NDCG@10 after which the
            training stops.
        batch_targets: Approximate number of training targets per optimizer step. Lower it if memory
            does not suffice and ``accumulation`` is not enough.
        accumulation: Number of parts in which the gradient of a step is computed, one after
            another. Raise it if memory does not suffice. The gradient is still that of the whole
            step.
        learning_rate: Learning rate of AdamW after the warm-up. It falls to a tenth of this value
            along a cosine over ``epochs``.
        weight_decay: Weight decay of AdamW on matrices and embeddings. Norms and biases have none.
        warmup_steps: Number of steps at the start in which the learning rate rises linearly.
        average_decay: Decay per step of a moving average of all weights. The averaged weights are
            validated and kept. 0 uses the weights of the last step without averaging.
        valid_users: Number of users, drawn at random, on whom each epoch is validated. None uses
            all users with a validation target.
        max_seconds: Time limit of the training in seconds, at which the current epoch is cut short,
            validated and made the last. None sets no limit. Two runs with a limit may give
            different weights.
        device: Device of the training: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
        precision: Number format of the training: ``float32``, ``bfloat16`` or ``auto``. ``auto`` is
            bfloat16 on a GPU with instructions for it, and float32 on every CPU. On a CPU with AMX,
            ``bfloat16`` is faster; on a CPU with AVX-512 alone it was 1.4 times slower than
            ``float32``.
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
    """Settings for the size of a transformer over histories, and for its training.

    Args:
        model_dim: Number of dimensions of all item vectors and states. It has to be a multiple of
            ``num_heads``.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads of each layer.
        history_length: Largest number of items of a history that the model reads. The most recent
            items are read.
        dropout: Dropout rate in all parts of the transformer.
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
