"""GRIT-VQ with one codebook, as used in a VQ-VAE: vectors in, codes and quantized vectors out.

Example of use in a model with an encoder and a decoder::

    vq = GRITVQ(dim=64, codebook_size=512)
    result = vq(encoder(images))                  # [B, N, 64] -> .quantized, .codes [B, N], .loss
    loss = reconstruction_loss(decoder(result.quantized)) + result.loss

Shapes: D dimensions of the vectors, C dimensions of the codes, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from torch import Tensor

from recgrit.quantization.quantizer import Quantized, QuantizerError
from recgrit.quantization.residual import ResidualGRITVQ


class GRITVQ(ResidualGRITVQ):
    """A GRIT-VQ codebook with radius surrogate and integrated transform (arXiv 2602.01140).

    It is a `ResidualGRITVQ` of one level whose codes have no dimension for levels.

    Example:
        >>> import torch
        >>> vq = GRITVQ(dim=8, codebook_size=16)
        >>> result = vq(torch.randn(4, 10, 8))
        >>> result.quantized.shape, result.codes.shape
        (torch.Size([4, 10, 8]), torch.Size([4, 10]))

    Args:
        dim: Number of dimensions D of the vectors.
        codebook_size: Number of codes K.
        **settings: Further settings of `ResidualGRITVQ`. The level is not normalized unless
            ``normalized_from=0``.
    """

    def __init__(self, dim: int, codebook_size: int = 512, **settings: Any) -> None:
        super().__init__(dim, 1, codebook_size, **settings)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build a quantizer from settings that `save` wrote.

        Args:
            settings: Settings by name.

        Raises:
            QuantizerError: The settings are those of a stack with several levels.
        """
        values = dict(settings)
        num_levels, sizes = values.pop("num_levels"), values.pop("codebook_size")
        if num_levels != 1:
            raise QuantizerError(
                f"The file holds a stack of {num_levels} levels: load it with ResidualGRITVQ.load."
            )
        return cls(codebook_size=sizes[0], **values)

    @property
    def codebook(self) -> Tensor:
        """A copy of the transformed codes that assignment compares vectors with, ``[K, C]``."""
        return self.codebooks[0]

    def effective_codebook(self) -> Tensor:
        """Return the contribution of each code to a vector, ``[K, D]``, with gradients to codes."""
        return self.effective_codebooks()[0]

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize vectors.

        Args:
            latent: Vectors, ``[..., D]``.
            mask: bool ``[...]``; False where there is no vector. None means that all vectors are
                present.

        Returns:
            The quantized vectors with their codes ``[...]``.
        """
        result = super().forward(latent, mask)
        return replace(result, codes=result.codes.squeeze(-1))

    def encode(self, latent: Tensor, **options: Any) -> Tensor:
        """Return the codes of vectors.

        Args:
            latent: Vectors, ``[..., D]``.
            **options: Options of `ResidualGRITVQ.encode`.

        Returns:
            Codes, int64 ``[...]``.
        """
        return super().encode(latent, **options).squeeze(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` that codes ``[...]`` decode to; 0 for a code of -1."""
        return super().decode(codes.unsqueeze(-1))

    def code_vectors(self, codes: Tensor) -> Tensor:
        """Return the contribution of each code to its vector, with gradients to the codes.

        Args:
            codes: Codes, ``[...]``. A code of -1 contributes 0.

        Returns:
            Contributions, float32 ``[..., D]``.
        """
        return super().code_vectors(codes.unsqueeze(-1)).squeeze(-2)
