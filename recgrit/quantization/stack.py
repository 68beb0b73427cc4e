"""A stack of codebooks and its use without training: vectors to codes, and codes to vectors.

Shapes: B vectors (any leading dimensions), D dimensions of the vectors, C dimensions of the codes,
L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recgrit.quantization.assignment import (
    balance_codes,
    nearest_codes,
    sample_codes,
    search_codes,
)
from recgrit.quantization.codebook import Codebook, WithStatistics
from recgrit.quantization.projection import Projection
from recgrit.quantization.quantizer import (
    Layout,
    QuantizerError,
    full_precision,
    is_graph_captured,
)

# If the mean of the vectors is longer than this multiple of their spread, it is subtracted first.
# Otherwise it would cost the distances float32 digits.
LARGE_MEAN = 3.0


class CodebookStack(WithStatistics):
    """A stack of codebooks, in which each quantizes the residuals of the levels before.

    Args:
        dim: Number of dimensions D of the vectors.
        levels: The codebooks, whose codes have C dimensions.
        code_dim: Number of dimensions C of the codes. If it is not D, linear projections are
            learned.
        channel_first: Whether the vectors lie along dimension 1. None means the last dimension, and
            raises an error for four or more dimensions if both have size D.
    """

    center: Tensor

    def __init__(
        self, dim: int, levels: Iterable[Codebook], *, code_dim: int, channel_first: bool | None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.channel_first = channel_first
        self.projection = None if code_dim == dim else Projection(dim, code_dim)
        self.levels = nn.ModuleList(levels)
        self.register_buffer("center", torch.zeros(code_dim))

    def _codebooks(self) -> list[Codebook]:
        return [level for level in self.levels if isinstance(level, Codebook)]

    def limit_level_(self, level: int, columns: slice) -> None:
        """Restrict the codes of one level to some dimensions; the level then quantizes only these.

        Levels without a restriction quantize the residuals in all dimensions.

        Args:
            level: Number of the level, from 0.
            columns: The dimensions, out of the C dimensions of the codes.
        """
        codes = self._codebooks()[level]
        mask = torch.zeros(codes.embedding.shape[1], dtype=torch.bool)
        mask[columns] = True
        codes.limit_(mask)

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each level."""
        return tuple(level.codebook_size for level in self._codebooks())

    @property
    def codebooks(self) -> list[Tensor]:
        """Copies of the codes that assignment compares vectors with, one ``[K, C]`` per level."""
        with torch.no_grad():
            # Without a transform these would be the parameters, which change in training.
            return [level.effective().clone() for level in self._codebooks()]

    def effective_codebooks(self) -> list[Tensor]:
        """Return the contribution of each code to a vector, with gradients to the codes.

        A vector whose codes are all at least 0 decodes to the sum of their contributions plus
        `offset`.

        Returns:
            Contributions, one tensor ``[K, D]`` per level.
        """
        books = [level.effective() for level in self._codebooks()]
        if self.projection is None:
            return books
        return [self.projection.lift(book) for book in books]

    @property
    def offset(self) -> Tensor:
        """The constant ``[D]`` that decoding adds to the contributions of a vector's codes."""
        return self._project_out(self.center)

    @torch.no_grad()
    def encode(
        self,
        latent: Tensor,
        *,
        beam_width: int = 1,
        balanced: bool = False,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the codes of vectors: by default the nearest code at each level.

        At most one of ``beam_width``, ``balanced`` and ``temperature`` can be set.

        Args:
            latent: Vectors, ``[..., D]``.
            beam_width: Number of paths through the levels to keep. More paths find codes whose sum
                is nearer to the vector. 1 takes the nearest code at each level.
            balanced: Whether to use the codes of each level about equally often. All vectors have
                to be given in one call.
            temperature: Temperature at which codes are drawn, as in training. 0 draws no codes.
            generator: Source of the random numbers for ``temperature``. None uses the default
                generator of torch.

        Returns:
            Codes, int64 ``[..., L]``.

        Raises:
            QuantizerError: The vectors have a wrong dimension or values that are not finite, or
                more than one way of assignment is set.
        """
        if (beam_width > 1) + balanced + (temperature > 0) > 1:
            raise QuantizerError("Set only one of beam_width, balanced and temperature.")
        layout, rows = Layout.take(latent, self.dim, channel_first=self.channel_first)
        with full_precision(rows):
            residual = self._project_in(rows) - self.center
            if beam_width > 1:
                return layout.codes(search_codes(residual, self.codebooks, beam_width))
            chosen = []
            for level in self._codebooks():
                codes = level.effective()
                if balanced:
                    chosen.append(balance_codes(residual, codes))
                elif temperature > 0:
                    chosen.append(sample_codes(residual, codes, temperature, generator))
                else:
                    chosen.append(nearest_codes(residual, codes))
                residual = residual - F.embedding(chosen[-1], codes)
        return layout.codes(torch.stack(chosen, dim=-1))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors that codes decode to.

        Args:
            codes: Codes ``[..., l]`` of the first l levels, or of all levels. A code of -1 adds
                nothing. A code of -1 at the first level means that there is no vector; the result
                is then 0.

        Returns:
            Vectors, ``[..., D]``.

        Raises:
            QuantizerError: There are more codes than levels, a code does not exist at its level
                (checked on the CPU only), or the codes are not int64 or int32.
        """
        self._check_codes(codes)
        with full_precision(codes):
            flat = codes.reshape(-1, codes.shape[-1])
            weights = (flat >= 0).float()
            places = flat.clamp_min(0)
            vectors = [
                F.embedding(places[:, i], level.effective())
                for i, level in enumerate(self._codebooks()[: flat.shape[1]])
            ]
            total = self._project_out(self._add_up(vectors, weights))
            total = total.masked_fill(flat[:, :1] < 0, 0.0)
        dtype = self._codebooks()[0].embedding.dtype
        return Layout(codes.shape[:-1], bool(self.channel_first), dtype, None).vectors(total)

    def code_vectors(self, codes: Tensor) -> Tensor:
        """Return the contribution of each code to its vector, with gradients to all parameters.

        The gradients reach codes, transform and projection. The sum of the contributions plus
        `offset` is the vector that the codes decode to.

        Args:
            codes: Codes ``[..., l]`` of the first l levels, or of all levels. A code of -1
                contributes 0.

        Returns:
            Contributions, float32 ``[..., l, D]``.

        Raises:
            QuantizerError: There are more codes than levels, a code does not exist at its level
                (checked on the CPU only), or the codes are not int64 or int32.
        """
        self._check_codes(codes)
        books = self.effective_codebooks()[: codes.shape[-1]]
        places = codes.clamp_min(0)
        vectors = [F.embedding(places[..., i], book) for i, book in enumerate(books)]
        return torch.stack(vectors, dim=-2) * (codes >= 0).unsqueeze(-1)

    def _check_codes(self, codes: Tensor) -> None:
        if not isinstance(codes, Tensor) or codes.dtype not in (torch.int64, torch.int32):
            kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise QuantizerError(f"Expected codes as a tensor of int64 or int32, got {kind}.")
        num_levels = codes.shape[-1] if codes.ndim else 0
        if not 1 <= num_levels <= self.num_levels:
            raise QuantizerError(
                f"Expected codes of 1 to {self.num_levels} levels on the last axis, got shape "
                f"{tuple(codes.shape)}."
            )
        if is_graph_captured(codes) or not codes.is_cpu or codes.numel() == 0:
            return
        flat = codes.reshape(-1, num_levels)
        highest, lowest = flat.amax(dim=0).tolist(), flat.amin(dim=0).tolist()
        for level, size in enumerate(self.codebook_sizes[:num_levels]):
            if highest[level] >= size or lowest[level] < -1:
                wrong = highest[level] if highest[level] >= size else lowest[level]
                raise QuantizerError(
                    f"Code {wrong} does not exist on level {level}, which has codes 0 to "
                    f"{size - 1}; -1 means no code."
                )

    @torch.no_grad()
    def _fit_start(self, rows: Tensor, *, seed: int, balanced: bool = False) -> Tensor:
        """Start projections and codes from rows ``[N, D]``.

        Returns:
            The mean distance between a vector and the sum of its codes, a scalar.
        """
        if self.projection is not None:
            with full_precision(rows):
                self.projection.fit_(rows)
        return self._fit_levels(self._project_in(rows), seed=seed, balanced=balanced)

    @torch.no_grad()
    def _fit_levels(self, flat: Tensor, *, seed: int, balanced: bool = False) -> Tensor:
        """Start the codes from vectors ``[N, C]``.

        Returns:
            The mean distance between a vector and the sum of its codes, a scalar.
        """
        with full_precision(flat):
            return self._place_levels(flat, seed=seed, balanced=balanced)

    def _place_levels(self, flat: Tensor, *, seed: int, balanced: bool) -> Tensor:
        mean = flat.mean(dim=0)
        spread = (flat - mean).square().sum(dim=-1).mean()
        self.center.copy_(mean if mean.square().sum() > LARGE_MEAN**2 * spread else 0.0 * mean)
        residual = flat - self.center
        for level in self._codebooks():
            level.fit_init_(residual, seed=seed, balanced=balanced)
            codes = level.effective()
            residual = residual - F.embedding(nearest_codes(residual, codes), codes)
        gap: Tensor = residual.norm(dim=-1).mean()
        return gap

    @torch.no_grad()
    def last_level(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the last level, and the codes of that level.

        Args:
            latent: Vectors, ``[B, D]``.

        Returns:
            Residuals ``[B, C]`` and codes ``[K, C]``.
        """
        codebooks = self.codebooks
        with full_precision(latent):
            residual = self._project_in(latent) - self.center
            for codes in codebooks[:-1]:
                residual = residual - F.embedding(nearest_codes(residual, codes), codes)
        return residual, codebooks[-1]

    def _add_up(self, vectors: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """Return the sum of the codes of all levels, always added in the same order.

        The fixed order makes the output of a forward pass equal to the decoded codes.

        Args:
            vectors: Codes of each level, L tensors ``[B, C]``.
            weights: Weight 0 or 1 of each level, ``[B, L]``; the first level always counts. None
                counts all levels.
        """
        total = vectors[0]
        for i, vector in enumerate(vectors[1:], start=1):
            total = total + (vector if weights is None else vector * weights[:, i : i + 1])
        return total + self.center

    def _project_in(self, rows: Tensor) -> Tensor:
        """Project vectors ``[B, D]`` to the dimensions of the codes, float32 ``[B, C]``."""
        return rows.float() if self.projection is None else self.projection(rows)

    def _project_out(self, rows: Tensor) -> Tensor:
        """Project vectors ``[..., C]`` back to the dimensions of the input, ``[..., D]``."""
        return rows if self.projection is None else self.projection.back(rows)


def walk_levels(
    latent: Tensor, codebooks: Iterable[Tensor], temperature: float
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Assign codes to vectors level by level, and subtract each chosen code from the residual.

    Args:
        latent: Vectors, ``[B, C]``.
        codebooks: Codes of each level, L tensors ``[K, C]``.
        temperature: Temperature at which codes are drawn. 0 takes the nearest code.

    Returns:
        The codes ``[B, L]``; the input ``[B, C]`` of each level; the residuals after all levels;
        and the chosen codes as vectors ``[B, C]`` of each level.
    """
    residual, residuals, chosen, vectors = latent, [], [], []
    for codes in codebooks:
        residuals.append(residual)
        if temperature > 0:
            chosen.append(sample_codes(residual, codes, temperature))
        else:
            chosen.append(nearest_codes(residual, codes))
        vectors.append(F.embedding(chosen[-1], codes))
        residual = residual - vectors[-1].detach()
    return torch.stack(chosen, dim=-1), residuals, residual, vectors
