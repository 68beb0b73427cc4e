"""Settings of the tokenizer; free of torch, so that a config is read in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recgrit.config import Config
from recgrit.errors import ConfigError

# Far more than is of use: what is larger is a mistake, and would take all memory first.
MAX_DIM, MAX_HIDDEN, MAX_CODES = 65_536, 64, 2**20


class TokenizerConfig(Config):
    """Settings of the tokenizer.

    Args:
        objective: What the IDs are fitted to: the ``reconstruction`` of features, or the
            reconstruction of ``item_vectors`` that predict the ``next_item``; with ``next_item``
            codebooks and vectors then learn this prediction together, through the quantizer.
        quantizer: ``grit``, or a baseline of `recgrit.quantization.baselines` to compare with; what
            makes a baseline what it is goes before the settings below.
        num_levels: Codebooks in the stack.
        codebook_size: Codes per level: one number, or one per level.
        radius: How the gradient splits between encoder and codes.
        surrogate: ``additive``, or ``multiplicative`` to the paper's letter.
        direction_noise: Relative noise on the surrogate's direction.
        transform: Kind of the integrated transform.
        transform_rank: Rank of the integrated transform's mixing over codes.
        codebook_learning: ``joint`` by gradients, ``frozen``, or ``ema`` (with transform_rank 0).
        normalization: ``two_sided`` compares directions, ``codes`` is as published, or ``none``.
        normalized_from: First level, from 0, that is normalized; ``num_levels`` for none.
        autoencoder: ``none`` quantizes the features themselves, ``mlp`` a latent of ``code_dim``,
            ``residual`` the features plus what an MLP, which starts at 0, makes of them.
        hidden_dims: Layer widths of the MLP encoder.
        code_dim: Size of the MLP's latent.
        init: ``kmeans`` on all items, ``balanced_kmeans`` whose clusters are about equally large,
            or ``random`` codes.
        epochs: Passes over the items; 0 keeps the start.
        batch_size: Items per step.
        learning_rate: Of Adam, falling to 0 along a cosine.
        commitment_weight: Pulls latents to their codes (``mlp`` only).
        codebook_weight: Pulls codes to their latents.
        usage_weight: Rewards an even use of the codes; costs a softmax over all of them.
        reset_interval: Steps between resets of dead codes; null for none.
        cache_interval: Steps between refreshes of the codebooks that items are assigned by.
        item_weight: Power of an item's training interactions by which it weighs in the fit: 0
            weighs all items alike, 1 by their interactions. What many people interact with then
            gets finer codes.
        level_blocks: Parts of the features, such as ``[text, image]``, each quantized by one of the
            first levels alone; the levels after them quantize what is left of all. Null for levels
            that all quantize everything.
        sample_items: Items to fit to, drawn at random where there are more; all are assigned.
        control: A negative control, which has to recommend worse: ``permuted`` gives every item the
            ID of another, ``random`` draws codes; ``none`` is the tokenizer as it is.
        semantic_ids_path: A published ``NAME.index.json`` whose IDs the items get in place of
            fitted ones; what is set above then matters no more.
        unique_ids: ``greedy`` moves colliding items to free codes, ``sinkhorn`` spreads them evenly
            over the last level first, ``disambiguation`` adds a level.
    """

    objective: Literal["reconstruction", "item_vectors", "next_item"] = "reconstruction"
    quantizer: Literal[
        "grit", "straight_through", "ema", "simvq", "rotation", "diveq", "rq_kmeans", "opq"
    ] = "grit"
    num_levels: int = Field(3, ge=1, le=24)
    codebook_size: int | tuple[int, ...] = 256
    radius: Literal[
        "euclidean", "power", "huber", "pseudo_huber", "clipped", "straight_through"
    ] = "euclidean"
    surrogate: Literal["additive", "multiplicative"] = "additive"
    direction_noise: float = Field(0.0, ge=0)
    transform: Literal["linear", "attention", "identity"] = "linear"
    transform_rank: int = Field(8, ge=0, le=MAX_DIM)
    codebook_learning: Literal["joint", "frozen", "ema"] = "joint"
    normalization: Literal["two_sided", "none", "codes"] = "two_sided"
    normalized_from: int = Field(1, ge=0)
    autoencoder: Literal["none", "mlp", "residual"] = "none"
    hidden_dims: tuple[int, ...] = (256, 128)
    code_dim: int = Field(32, ge=1, le=MAX_DIM)
    init: Literal["kmeans", "balanced_kmeans", "random"] = "kmeans"
    epochs: int = Field(40, ge=0, le=1_000_000)
    batch_size: int = Field(1024, ge=1, le=2**24)
    learning_rate: float = Field(1e-3, gt=0)
    commitment_weight: float = Field(0.05, ge=0)
    codebook_weight: float = Field(0.0, ge=0)
    usage_weight: float = Field(0.0, ge=0)
    reset_interval: int | None = Field(50, ge=1)
    cache_interval: int = Field(1, ge=1)
    item_weight: float = Field(0.0, ge=0, le=2)
    level_blocks: tuple[str, ...] | None = None
    sample_items: int = Field(262_144, ge=1)
    control: Literal["none", "permuted", "random"] = "none"
    semantic_ids_path: Path | None = None
    unique_ids: Literal["greedy", "sinkhorn", "disambiguation"] = "disambiguation"

    @field_validator("codebook_size")
    @classmethod
    def _check_sizes(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        sizes = (value,) if isinstance(value, int) else value
        if not sizes or min(sizes) < 2:
            raise ValueError("codebook_size must be at least 2 on every level")
        if max(sizes) > MAX_CODES:
            raise ValueError(f"codebook_size must be at most {MAX_CODES:,} on every level")
        return value

    @field_validator("hidden_dims")
    @classmethod
    def _check_dims(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if len(dims) > MAX_HIDDEN or (dims and not 1 <= min(dims) <= max(dims) <= MAX_DIM):
            raise ValueError(f"hidden_dims are at most {MAX_HIDDEN} numbers from 1 to {MAX_DIM:,}")
        return dims

    @model_validator(mode="after")
    def _check_published(self) -> TokenizerConfig:
        if self.semantic_ids_path is not None and self.unique_ids != "disambiguation":
            raise ValueError(
                f"unique_ids={self.unique_ids} moves items by the distance to codes, which "
                "published IDs (semantic_ids_path) come without: set "
                "tokenizer.unique_ids=disambiguation"
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> TokenizerConfig:
        if self.objective != "reconstruction" and self.autoencoder != "none":
            raise ValueError(
                f"objective={self.objective} learns an encoder of its own: set "
                "tokenizer.autoencoder=none, or tokenizer.objective=reconstruction"
            )
        return self

    @model_validator(mode="after")
    def _check_level_blocks(self) -> TokenizerConfig:
        if self.level_blocks is None:
            return self
        if not 1 <= len(self.level_blocks) <= self.num_levels:
            raise ValueError(
                f"level_blocks names {len(self.level_blocks)} parts for {self.num_levels} levels: "
                "name at least one and at most one a level"
            )
        if (self.objective, self.autoencoder) != ("reconstruction", "none"):
            raise ValueError(
                "level_blocks needs levels that quantize the features themselves: set "
                "tokenizer.objective=reconstruction and tokenizer.autoencoder=none"
            )
        if self.quantizer == "opq":
            raise ValueError("quantizer=opq chooses the dimensions of its levels itself")
        return self

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """One size per level.

        Raises:
            ConfigError: A list of sizes does not have one entry per level.
        """
        if isinstance(self.codebook_size, int):
            return (self.codebook_size,) * self.num_levels
        if len(self.codebook_size) != self.num_levels:
            raise ConfigError(
                f"tokenizer.codebook_size lists {len(self.codebook_size)} sizes for "
                f"{self.num_levels} levels: give one per level, or a single number."
            )
        return self.codebook_size
