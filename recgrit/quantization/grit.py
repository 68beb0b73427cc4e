"""GRIT-VQ with one codebook, as a VQ-VAE takes it: vectors in, codes and vectors out.

Three numbers suffice::

    vq = GRITVQ(dim=64, codebook_size=512)
    result = vq(encoder(images))                  # [B, N, 64] -> .quantized, .codes [B, N], .loss
    loss = reconstruction_loss(decoder(result.quantized)) + result.loss

Shapes: D dimensions, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from recgrit.quantization.quantizer import Quantized, QuantizerError
from recgrit.quantization.residual import ResidualGRITVQ


class GRITVQ(ResidualGRITVQ):
    """A GRIT-VQ codebook: radius surrogate and integrated transform (arXiv 2602.01140).

    This is a stack of one level. Its codes have no dimension for levels.

    Example:
        >>> import torch
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
        super().__init__(dim, 1, codebook_size, **settings)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A quantizer of settings that `save` wrote.

        Raises:
            QuantizerError: They are of several levels.
        """
        values = dict(settings)
        num_levels, sizes = values.pop("num_levels"), values.pop("codebook_size")
        if num_levels != 1:
            raise QuantizerError(
                f"The file holds a stack of {num_levels} levels: read it by ResidualGRITVQ.load."
            )
        return cls(codebook_size=sizes[0], **values)

    @property
    def codebook(self) -> Tensor:
        """The codes that assignment compares with, ``[K, C]``, transformed; a copy."""
        return self.codebooks[0]

    def effective_codebook(self) -> Tensor:
        """What each code adds to a vector, ``[K, D]``, with gradients to the codes."""
        return self.effective_codebooks()[0]

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize ``[..., D]``; codes are ``[...]``."""
        result = super().forward(latent, mask)
        return replace(result, codes=result.codes.squeeze(-1))

    def encode(self, latent: Tensor, **options: Any) -> Tensor:
        """Codes of ``[..., D]``, int64 ``[...]``; ``options`` as for `ResidualGRITVQ.encode`."""
        return super().encode(latent, **options).squeeze(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors ``[..., D]`` that codes ``[...]`` stand for; 0 for a code of -1."""
        return super().decode(codes.unsqueeze(-1))

    def code_vectors(self, codes: Tensor) -> Tensor:
        """What codes ``[...]`` add to a vector, float32 ``[..., D]``, with gradients; 0 for -1."""
        return super().code_vectors(codes.unsqueeze(-1)).squeeze(-2)
