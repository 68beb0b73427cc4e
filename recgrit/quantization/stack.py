"""The codebooks of a stack, and what is done with them without learning: codes and back.

Shapes: B vectors (any leading dimensions), D dimensions, C dimensions of the codes, L levels, K
codes.
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

# A mean of this many times the spread eats digits of the distances: it is taken off first.
LARGE_MEAN = 3.0


class CodebookStack(WithStatistics):
    """Codebooks that each quantize what those before left over.

    Args:
        dim: D.
        levels: The codebooks, of C dimensions.
        code_dim: C; projections are learned where it is not D.
        channel_first: Whether vectors lie in dimension 1; None for the last, unless both would do.
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
        """Let one level quantize some dimensions only; the other levels see the rest.

        Args:
            level: From 0.
            columns: Of the C dimensions of the codes.
        """
        codes = self._codebooks()[level]
        mask = torch.zeros(codes.embedding.shape[1], dtype=torch.bool)
        mask[columns] = True
        codes.limit_(mask)

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each level."""
        return tuple(level.codebook_size for level in self._codebooks())

    @property
    def codebooks(self) -> list[Tensor]:
        """The codes that assignment compares with: one ``[K, C]`` per level, copied."""
        with torch.no_grad():
            # Without a transform these are the parameters themselves, which go on learning.
            return [level.effective().clone() for level in self._codebooks()]

    def effective_codebooks(self) -> list[Tensor]:
        """What each code adds to a vector: one ``[K, D]`` per level, with gradients to the codes.

        Codes of a vector, none of them -1, decode to `offset` plus the sum of their rows.
        """
        books = [level.effective() for level in self._codebooks()]
        if self.projection is None:
            return books
        return [self.projection.lift(book) for book in books]

    @property
    def offset(self) -> Tensor:
        """What every decoded vector has beside its codes, ``[D]``."""
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
        """Codes of ``[..., D]``, int64 ``[..., L]``: the nearest of each level, or others.

        Args:
            latent: The vectors.
            beam_width: Paths through the levels that are followed: more of them find codes whose
                sum is nearer to the vector.
            balanced: Use the codes of each level about equally often; all vectors have to be given
                at once.
            temperature: Draw codes, as in training.
            generator: Draws.

        Raises:
            QuantizerError: Wrong dimension, values that are not finite, or two ways at once.
        """
        if (beam_width > 1) + balanced + (temperature > 0) > 1:
            raise QuantizerError("Choose one of beam_width, balanced and temperature.")
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
        """Vectors ``[..., D]`` that codes ``[..., l]`` stand for, l of the first levels or all.

        A level of -1 adds nothing; a first code of -1 stands for no vector, 0.

        Raises:
            QuantizerError: More levels than there are, or a code that a level does not have.
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
        """What the codes ``[..., l]`` of each level add, float32 ``[..., l, D]``; 0 for -1.

        With gradients to codes, transform and projection. Their sum and `offset` is what the codes
        decode to.

        Raises:
            QuantizerError: More levels than there are, or a code that a level does not have.
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
                f"Expected codes of 1 to {self.num_levels} levels in the last place, got shape "
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
                    f"Code {wrong} on level {level}, which has codes 0 to {size - 1}; -1 stands "
                    "for none."
                )

    @torch.no_grad()
    def _fit_start(self, rows: Tensor, *, seed: int, balanced: bool = False) -> Tensor:
        """Start projections and codes from rows ``[N, D]``; returns the mean gap, a scalar."""
        if self.projection is not None:
            with full_precision(rows):
                self.projection.fit_(rows)
        return self._fit_levels(self._project_in(rows), seed=seed, balanced=balanced)

    @torch.no_grad()
    def _fit_levels(self, flat: Tensor, *, seed: int, balanced: bool = False) -> Tensor:
        """Start the codes from ``[N, C]``; returns the mean gap, a scalar."""
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
        """What the last level is given for ``[B, D]``, and its codes ``[K, C]``."""
        codebooks = self.codebooks
        with full_precision(latent):
            residual = self._project_in(latent) - self.center
            for codes in codebooks[:-1]:
                residual = residual - F.embedding(nearest_codes(residual, codes), codes)
        return residual, codebooks[-1]

    def _add_up(self, vectors: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """Levels ``[B, C]`` become a sum, in one order wherever they do.

        A later level counts as often as its weight ``[B, L]`` says, 0 or 1.
        """
        total = vectors[0]
        for i, vector in enumerate(vectors[1:], start=1):
            total = total + (vector if weights is None else vector * weights[:, i : i + 1])
        return total + self.center

    def _project_in(self, rows: Tensor) -> Tensor:
        """``[B, D]`` -> float32 ``[B, C]``."""
        return rows.float() if self.projection is None else self.projection(rows)

    def _project_out(self, rows: Tensor) -> Tensor:
        """``[..., C]`` -> ``[..., D]``."""
        return rows if self.projection is None else self.projection.back(rows)


def walk_levels(
    latent: Tensor, codebooks: Iterable[Tensor], temperature: float
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Codes ``[B, L]``, what each level was given and all left over, and each level's vectors."""
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
