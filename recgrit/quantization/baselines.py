"""Quantizers to compare GRIT-VQ with, all with the interface of `Quantizer`.

Most baselines differ from GRIT-VQ in what trains the codes, and not in how a stack assigns and
decodes. They are settings of the same stack, so that a comparison varies the method only. The
stacks start from the same k-means. Those that learn, except SimVQ, reset dead codes by one rule.

============== ==================================== ===========================================
name           gradient to the encoder              what trains the codes
============== ==================================== ===========================================
grit           surrogate radius                     surrogate radius, through M and W
straight_      straight through                     codebook loss
through
ema            straight through                     moving averages, decay .99
simvq          straight through                     codebook loss on W alone; codes frozen
                                                    (arXiv 2411.02038)
rotation       rotation trick (arXiv 2410.06424)    moving averages, decay .99
diveq          DiVeQ                                DiVeQ, noise included
rq_kmeans      straight through                     nothing after k-means, level by level
opq            straight through                     nothing after a rotation and k-means; one
                                                    subspace per level, levels have no order
identity       the whole gradient                   no codes: upper bound of an ablation
============== ==================================== ===========================================

Shapes: B vectors, N vectors to start from, D dimensions, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.errors import ConfigError
from recgrit.quantization.assignment import nearest_codes
from recgrit.quantization.estimators import DiVeQ, RotationTrick
from recgrit.quantization.quantizer import (
    Layout,
    Quantized,
    Quantizer,
    QuantizerError,
    check_sizes,
    full_precision,
)
from recgrit.quantization.residual import ResidualGRITVQ

_PLAIN: dict[str, Any] = {"radius": "straight_through", "transform": "identity"}
# Settings of ResidualGRITVQ that define each baseline. They override the user's settings.
STACKS: dict[str, dict[str, Any]] = {
    "grit": {},
    "straight_through": {**_PLAIN, "codebook_weight": 1.0, "commitment_weight": 0.25},
    "ema": {**_PLAIN, "codebook_learning": "ema"},
    "simvq": {
        **_PLAIN,
        "transform": "linear",
        "transform_rank": 0,
        "codebook_learning": "frozen",
        "codebook_weight": 1.0,
        "commitment_weight": 0.25,
        "reset_interval": None,
    },
    "rotation": {**_PLAIN, "surrogate": RotationTrick(), "codebook_learning": "ema"},
    "diveq": {**_PLAIN, "surrogate": DiVeQ(), "commitment_weight": 0.0},
    "rq_kmeans": {**_PLAIN, "codebook_learning": "frozen", "reset_interval": None},
}


class OptimizedProductQuantizer(nn.Module):
    """Optimized product quantization (OPQ) by faiss: a rotation, then k-means in each subspace.

    Its levels have no order, because each level quantizes another subspace of the vectors.

    Args:
        dim: Number of dimensions D of the vectors.
        num_levels: Number of subspaces, one per level. Each has D / L dimensions, rounded up.
        codebook_size: Number of codes K of each level, a power of two from 2 on.

    Raises:
        QuantizerError: K is not a power of two from 2 on, or there are more subspaces than
            dimensions.
    """

    rotation: Tensor
    centroids: Tensor

    def __init__(self, dim: int, num_levels: int = 3, codebook_size: int = 256) -> None:
        super().__init__()
        (codebook_size, *_) = check_sizes(dim, num_levels, codebook_size)
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise QuantizerError(f"OPQ needs a power of two as codebook_size, got {codebook_size}.")
        if not 0 < num_levels <= dim:
            raise QuantizerError(f"{num_levels} levels are too many for {dim} dimensions.")
        self.dim = dim
        self.codebook_sizes = (codebook_size,) * num_levels
        self.sub_dim = -(-dim // num_levels)
        self.register_buffer("rotation", torch.eye(self.sub_dim * num_levels, dim))
        self.register_buffer("centroids", torch.zeros(num_levels, codebook_size, self.sub_dim))

    @torch.no_grad()
    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Fit the rotation and the centroids of all subspaces to vectors.

        Args:
            vectors: Vectors, ``[N, D]``.
            seed: Seed of k-means.
            balanced: Has no effect; the clusters are not balanced.

        Raises:
            ConfigError: faiss is not installed.
            QuantizerError: There are fewer vectors than codes of a level.
        """
        try:
            import faiss
        except ImportError:
            raise ConfigError(
                "The opq baseline needs faiss: install recgrit[cpu] or recgrit[gpu]."
            ) from None
        _, vectors = Layout.take(vectors, self.dim)
        num_levels, size = len(self.codebook_sizes), self.codebook_sizes[0]
        if len(vectors) < size:
            raise QuantizerError(
                f"{len(vectors)} vectors are too few for {size} codes: give more vectors, or lower "
                "codebook_size."
            )
        data = np.ascontiguousarray(vectors.cpu().numpy(), dtype=np.float32)
        rotation = faiss.OPQMatrix(self.dim, num_levels, self.sub_dim * num_levels)
        product = faiss.ProductQuantizer(
            self.sub_dim * num_levels, num_levels, size.bit_length() - 1
        )
        product.cp.seed = seed
        product.cp.min_points_per_centroid = 1
        product.cp.max_points_per_centroid = len(data)
        rotation.pq = product  # Otherwise faiss trains another quantizer with 256 centroids.
        rotation.train(data)
        self.rotation.copy_(
            torch.from_numpy(faiss.vector_to_array(rotation.A).reshape(-1, self.dim))
        )
        product.train(rotation.apply(data))
        self.centroids.copy_(
            torch.from_numpy(faiss.vector_to_array(product.centroids)).reshape_as(self.centroids)
        )

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize vectors ``[..., D]``; the gradient goes straight through to the vectors."""
        layout, rows = Layout.take(latent, self.dim, mask=mask)
        with full_precision(rows):
            flat = rows.float()
            codes, subspaces = self._assign(flat.detach())
            quantized = self.decode(codes)
            rest = flat - quantized
            present = layout.present(flat)
            commitment = rest.square().sum(dim=-1) @ present / present.sum().clamp_min(1)
        zero = commitment.new_zeros(())
        return Quantized(
            quantized=layout.vectors(quantized + (flat - flat.detach())),
            codes=layout.codes(codes),
            loss=zero,
            commitment_loss=commitment,
            codebook_loss=commitment.detach(),
            usage_loss=zero,
            residuals=list(subspaces),
            codebook_sizes=self.codebook_sizes,
            left=rest.detach(),
            rest=rest,
            present=present,
        )

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Return the nearest centroid in each subspace, int64 ``[..., L]``."""
        layout, rows = Layout.take(latent, self.dim)
        with full_precision(rows):
            return layout.codes(self._assign(rows.float())[0])

    def _assign(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes ``[B, L]``, and the input of each level, ``[L, B, D / L]``."""
        parts = self._rotate(flat).transpose(0, 1)
        codes = [
            nearest_codes(part, book) for part, book in zip(parts, self.centroids, strict=True)
        ]
        return torch.stack(codes, dim=-1), parts

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the centroids of all subspaces, concatenated and rotated back, ``[..., D]``.

        The result is 0 if a code is -1.
        """
        parts = [
            F.embedding(codes[..., level].clamp_min(0), book)
            for level, book in enumerate(self.centroids)
        ]
        vectors = torch.cat(parts, dim=-1) @ self.rotation
        return vectors.masked_fill((codes < 0).any(dim=-1, keepdim=True), 0.0)

    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Do nothing and return 0, because the quantizer needs no maintenance."""
        return 0

    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last subspace of vectors ``[B, D]``, and its centroids ``[K, D / L]``."""
        return self._rotate(latent.float())[:, -1], self.centroids[-1]

    def _rotate(self, flat: Tensor) -> Tensor:
        return (flat @ self.rotation.T).reshape(len(flat), len(self.codebook_sizes), self.sub_dim)


class IdentityQuantizer(nn.Module):
    """A quantizer that returns its input unchanged, and has one code per level without meaning.

    Args:
        dim: Number of dimensions D of the vectors.
        num_levels: Number of levels.
        codebook_size: Has no effect; each level has one code.
    """

    def __init__(self, dim: int, num_levels: int = 1, codebook_size: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_sizes = (1,) * int(num_levels)

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Return the vectors themselves, with code 0 at each level."""
        layout, rows = Layout.take(latent, self.dim, mask=mask)
        zero = rows.new_zeros((), dtype=torch.float32)
        return Quantized(
            quantized=layout.vectors(rows),
            codes=layout.codes(self._no_codes(rows)),
            loss=zero,
            commitment_loss=zero,
            codebook_loss=zero,
            usage_loss=zero,
            residuals=[rows.detach().float()] * len(self.codebook_sizes),
            codebook_sizes=self.codebook_sizes,
            left=torch.zeros_like(rows, dtype=torch.float32),
            rest=torch.zeros_like(rows, dtype=torch.float32),
            present=layout.present(rows),
        )

    def encode(self, latent: Tensor) -> Tensor:
        """Return code 0 for each level, int64 ``[..., L]``."""
        layout, rows = Layout.take(latent, self.dim)
        return layout.codes(self._no_codes(rows))

    def decode(self, codes: Tensor) -> Tensor:
        """Raise an error, because the codes of this quantizer hold no vectors.

        Raises:
            QuantizerError: Always.
        """
        raise QuantizerError(
            "The codes of the identity quantizer have no vectors to decode: use its output instead."
        )

    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors ``[B, D]`` themselves, and one code of zeros."""
        return latent.float(), latent.new_zeros(1, self.dim, dtype=torch.float32)

    def _no_codes(self, rows: Tensor) -> Tensor:
        return torch.zeros(
            len(rows), len(self.codebook_sizes), dtype=torch.int64, device=rows.device
        )

    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """Check the shape of the vectors; nothing is fitted."""
        Layout.take(vectors, self.dim)

    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Do nothing and return 0, because the quantizer needs no maintenance."""
        return 0


def build_quantizer(
    name: str, dim: int, num_levels: int, codebook_size: int | tuple[int, ...], **settings: Any
) -> Quantizer:
    """Build a quantizer by its name.

    Args:
        name: ``grit`` or the name of a baseline in this module.
        dim: Number of dimensions D of the vectors.
        num_levels: Number of levels L.
        codebook_size: Number of codes K: one number for all levels, or one number per level.
        **settings: Settings of `ResidualGRITVQ`. Settings that define the baseline override them.
            They have no effect on ``opq`` and ``identity``.

    Raises:
        ConfigError: The name is unknown, or the quantizer needs the same number of codes at all
            levels.
    """
    if name in STACKS:
        return ResidualGRITVQ(dim, num_levels, codebook_size, **(settings | STACKS[name]))
    if name not in OTHERS:
        raise ConfigError(f"Unknown quantizer {name!r}: choose from {', '.join(QUANTIZERS)}.")
    sizes = check_sizes(dim, num_levels, codebook_size)
    if len(set(sizes)) > 1:
        raise ConfigError(f"{name} needs one codebook_size for all levels, got {codebook_size}.")
    other: Quantizer = OTHERS[name](int(dim), len(sizes), sizes[0])
    return other


OTHERS: dict[str, Callable[[int, int, int], Any]] = {
    "opq": OptimizedProductQuantizer,
    "identity": IdentityQuantizer,
}
QUANTIZERS: tuple[str, ...] = (*STACKS, *OTHERS)
