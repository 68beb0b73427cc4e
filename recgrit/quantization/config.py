"""Settings of the tokenizer.

This module does not import torch, so that a configuration is read without delay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recgrit.config import Config
from recgrit.errors import ConfigError

# Largest allowed values, far above useful ones. A larger value is a mistake that would otherwise
# show only when the memory is full.
MAX_DIM, MAX_HIDDEN, MAX_CODES = 65_536, 64, 2**20


class TokenizerConfig(Config):
    """Settings of the tokenizer, which gives each item a semantic ID of one code per level.

    Args:
        objective: What the IDs are fitted to. ``reconstruction`` fits them to the item features.
            ``item_vectors`` first learns item vectors that predict the next item of a history, and
            fits the IDs to these vectors. ``next_item`` starts like ``item_vectors``; then the
            vectors and the codebooks learn this prediction together, and its gradient passes
            through the quantizer.
        quantizer: Kind of quantizer. ``grit`` is GRIT-VQ. All others are baselines of
            `recgrit.quantization.baselines` to compare GRIT-VQ with. A setting that defines a
            baseline overrides the settings below.
        num_levels: Number of codebooks in the stack. An ID has one code per codebook and, with
            ``unique_ids=disambiguation``, a last number that tells items with equal codes apart.
        codebook_size: Number of codes per level. Give one number for all levels, such as ``256``,
            or one number per level, such as ``[256, 256, 64]``.
        radius: Family of the radius, which splits the gradient between the encoder and the codes.
            ``euclidean`` gives the codes all of the gradient along the gap between a vector and its
            code. ``straight_through`` gives the codes no gradient. The other families give the
            codes a share that depends on the length of the gap.
        surrogate: Form of the radius surrogate. ``additive`` has the Jacobians that the GRIT-VQ
            paper states. ``multiplicative`` is the formula of the paper taken literally. Both are
            equal for the Euclidean radius.
        direction_noise: Strength of the noise on the direction of the gap in the backward pass: the
            root mean square length of the random vector, relative to the length of the gap. 0 adds
            no noise.
        transform: Kind of the integrated transform, through which all codes of a level move
            together. ``linear`` mixes the codes by a matrix of low rank, ``attention`` by attention
            over all codes of the level, and ``identity`` applies no transform.
        transform_rank: Rank of the part of the transform that mixes codes. 0 keeps only the linear
            map over dimensions, which all codes share.
        codebook_learning: How the codes are learned. ``joint`` trains them by gradients. ``frozen``
            trains the transform only. ``ema`` sets them to moving averages of the vectors that are
            assigned to them, and needs ``transform_rank=0`` or ``transform=identity``.
        normalization: How the levels from ``normalized_from`` on are normalized. ``two_sided``
            compares the directions of residuals and codes, and scales the codes by one learned gain
            per level. ``codes`` gives the codes unit length and leaves the residuals as they are,
            as published. ``none`` normalizes nothing.
        normalized_from: First level, from 0, that is normalized. Set it to ``num_levels`` to
            normalize no level.
        autoencoder: What encodes the features before they are quantized. ``none`` quantizes the
            features themselves. ``mlp`` quantizes a latent vector of ``code_dim`` dimensions that
            an MLP computes. ``residual`` quantizes the features plus the output of an MLP, which is
            0 at the start.
        hidden_dims: Layer widths of the MLP encoder, with ``autoencoder=mlp`` or ``residual``. The
            decoder has the same widths in reverse order.
        code_dim: Number of dimensions of the latent vector, with ``autoencoder=mlp``.
        init: How the codes start. ``kmeans`` runs k-means on the items to fit to.
            ``balanced_kmeans`` keeps the clusters about equally large. ``random`` draws the codes.
        epochs: Number of passes over the items. 0 keeps the codes as they start.
        batch_size: Number of items per training step.
        learning_rate: Learning rate of Adam at the start. It falls to 0 along a cosine.
        commitment_weight: Weight of the loss that pulls latent vectors to their codes. It has an
            effect only where latent vectors are learned: with ``autoencoder=mlp`` or ``residual``,
            or with ``objective=next_item``.
        codebook_weight: Weight of the loss that pulls codes to their latent vectors. Raise it if
            nothing else trains the codes, as with ``radius=straight_through``.
        usage_weight: Weight of the loss that rewards an even use of the codes. Above 0, each step
            costs a softmax over all codes.
        reset_interval: Number of steps between dead-code resets, which place unused codes on badly
            quantized items. Null switches the resets off.
        cache_interval: Number of steps for which items are assigned by the same copy of the
            transformed codebooks. A value above 1 saves time for small batches with large
            codebooks.
        item_weight: Exponent of an item's number of training interactions in its weight in the fit.
            0 gives all items the same weight. 1 weighs each item by its interactions, which gives
            finer codes to items that many people interact with.
        level_blocks: Parts of the features, such as ``[text, image]``, that the first levels
            quantize, one part per level. The levels after them quantize what remains of all parts.
            Null lets every level quantize all features.
        sample_items: Largest number of items to fit to. A larger catalogue is sampled at random for
            the fit. All items get codes.
        control: Negative control, which should give worse recommendations than real IDs.
            ``permuted`` shuffles the IDs among the items. ``random`` draws the codes.
            ``none`` keeps the IDs of the tokenizer.
        semantic_ids_path: File with published IDs, ``NAME.index.json``, which the items get in
            place of fitted IDs. No tokenizer is fitted then, so the settings of the fit have no
            effect, and ``unique_ids`` has to be ``disambiguation``. Null fits the IDs.
        unique_ids: How items with equal codes get different IDs. ``disambiguation`` adds a level
            that numbers these items. ``greedy`` keeps the number of levels: all but one of the
            items get the nearest free last code. ``sinkhorn`` first spreads these items evenly over
            the codes of the last level. If more items share a prefix than the last level has codes,
            ``greedy`` and ``sinkhorn`` use ``disambiguation`` instead.
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
            raise ValueError(
                f"hidden_dims must be at most {MAX_HIDDEN} numbers, each from 1 to {MAX_DIM:,}"
            )
        return dims

    @model_validator(mode="after")
    def _check_published(self) -> TokenizerConfig:
        if self.semantic_ids_path is not None and self.unique_ids != "disambiguation":
            raise ValueError(
                f"unique_ids={self.unique_ids} needs distances to codes, which published IDs "
                "(semantic_ids_path) do not have: set tokenizer.unique_ids=disambiguation"
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
                "name at least one part, and at most one per level"
            )
        if (self.objective, self.autoencoder) != ("reconstruction", "none"):
            raise ValueError(
                "level_blocks needs levels that quantize the features themselves: set "
                "tokenizer.objective=reconstruction and tokenizer.autoencoder=none"
            )
        if self.quantizer == "opq":
            raise ValueError(
                "level_blocks does not work with quantizer=opq, which chooses the dimensions of "
                "its levels itself: unset tokenizer.level_blocks, or choose another "
                "tokenizer.quantizer"
            )
        return self

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level.

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
