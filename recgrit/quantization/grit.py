"""GRIT-VQ with one codebook, as a VQ-VAE takes it: vectors in, codes and vectors out.

Three numbers suffice::

    vq = GRITVQ(dim=64, codebook_size=512)
    result = vq(encoder(images))                  # [B, N, 64] -> .quantized, .codes [B, N], .loss
    loss = reconstruction_loss(decoder(result.quantized)) + result.loss

Shapes: D dimensions, K codes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from recgrit.quantization.quantizer import Quantized
from recgrit.quantization.residual import ResidualGRITVQ


class GRITVQ(nn.Module):
    """A GRIT-VQ codebook: radius surrogate and integrated transform (arXiv 2602.01140).

    A stack of one level whose codes have no level dimension.

    Example:
        >>> vq = GRITVQ(dim=8, codebook_size=16)
        >>> result = vq(torch.randn(4, 10, 8))
        >>> result.quantized.shape, result.codes.shape
        (torch.Size([4, 10, 8]), torch.Size([4, 10]))

    Args:
        dim: D, size of the vectors.
        codebook_size: K.
        **settings: See `ResidualGRITVQ`. Its levels are normalized from the second on, so this one
            is plain unless ``normalized_from=0``.
    """

    def __init__(self, dim: int, codebook_size: int = 512, **settings: Any) -> None:
        super().__init__()
        self.stack = ResidualGRITVQ(dim, 1, codebook_size, **settings)

    @property
    def dim(self) -> int:
        """D."""
        return self.stack.dim

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K, of the only level."""
        return self.stack.codebook_sizes

    @property
    def codebook(self) -> Tensor:
        """The codes in use, ``[K, D]``, transformed; a copy."""
        return self.stack.codebooks[0]

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``[..., D]``; codes are ``[...]``."""
        result: Quantized = self.stack(latent, mask)
        return replace(result, codes=result.codes.squeeze(-1))

    def encode(self, latent: Tensor) -> Tensor:
        """Codes of ``[..., D]``, int64 ``[...]``."""
        return self.stack.encode(latent).squeeze(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors ``[..., D]`` that codes ``[...]`` stand for; 0 for a code of -1."""
        return self.stack.decode(codes.unsqueeze(-1))

    def fit_init(self, vectors: Tensor, *, seed: int = 0, balanced: bool = False) -> None:
        """K-means++ on ``[N, D]``; see `ResidualGRITVQ.fit_init`."""
        self.stack.fit_init(vectors, seed=seed, balanced=balanced)

    def freeze(self) -> None:
        """Learn no more."""
        self.stack.freeze()

    def after_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Upkeep after an optimizer's step; see `ResidualGRITVQ.after_step`."""
        return self.stack.after_step(optimizer, generator=generator)

    def save(self, path: str | Path) -> None:
        """Write settings and weights as one safetensors file."""
        self.stack.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; in eval mode."""
        stack = ResidualGRITVQ.load(path)
        single = cls(stack.dim, stack.codebook_sizes[0])
        single.stack = stack
        return single.eval()
