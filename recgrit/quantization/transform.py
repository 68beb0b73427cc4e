"""The integrated transform, through which all codes of a level move together.

The codebook in use is ``E' = M E W``, where ``M`` mixes codes and ``W`` is a linear map over
dimensions (GRIT-VQ, arXiv 2602.01140). A gradient step on any used code changes the shared
parameters, and through them all codes of the level, used or not. ``M`` has one of these forms:

- **linear**: ``I + A Bᵀ`` of rank r. Computing the codebook costs O(K r D + K D²). ``A`` starts at
  zero and ``B`` at random, so training starts exactly from ``E``. If both started at zero, neither
  would ever get a gradient. Row i of ``A`` learns only when code i is used; ``B`` is shared. With r
  ≥ D, ``M`` is as free as codes that are learned one by one.
- **attention**: ``I + diag(g) softmax(Q Kᵀ/√r)``, with queries and keys projected from the codes.
  It costs O(K² D), so it is refused above `MAX_ATTENTION_CODES` codes. ``g`` starts at zero.
- **identity matrix**: only ``W`` is applied, or no transform at all.

Shapes: K codes, D dimensions, r rank, n chosen rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recgrit.errors import ConfigError

TransformKind = Literal["identity", "linear", "attention"]

# Largest number of codes of the attention transform. Its [K, K] weights then need 64 MiB.
MAX_ATTENTION_CODES = 4096
# Number of power iterations that estimate the bounds of the spectrum.
POWER_ITERATIONS = 8


def snapshot(parameter: Tensor) -> Tensor:
    """Return a copy of a parameter if gradients are enabled, else the parameter itself.

    Codebook maintenance writes into parameters between two steps. With a copy in the graph, a
    backward pass that runs after the maintenance still computes the gradients of the codes that
    made the output.
    """
    return parameter.clone() if torch.is_grad_enabled() else parameter


class LowRankMixing(nn.Module):
    """The part ``A Bᵀ E`` that the linear transform adds to the codes ``E``.

    Args:
        codebook_size: Number of codes K.
        rank: Rank r of ``A`` and ``B``.
    """

    def __init__(self, codebook_size: int, rank: int) -> None:
        super().__init__()
        self.mix_out = nn.Parameter(torch.zeros(codebook_size, rank))  # A
        self.mix_in = nn.Parameter(torch.randn(codebook_size, rank) / codebook_size**0.5)  # B

    def forward(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the added part for all codes, ``[K, D]``, or for n chosen ``rows``, ``[n, D]``."""
        mix_out = snapshot(self.mix_out) if rows is None else self.mix_out[rows]
        mixed: Tensor = mix_out.float() @ (snapshot(self.mix_in).float().T @ codes)
        return mixed

    @property
    def per_code(self) -> nn.Parameter:
        """The parameter ``A`` with one row per code. A row of zeros adds nothing to its code."""
        return self.mix_out


class AttentionMixing(nn.Module):
    """The part that the attention transform adds to each code: a gated mean of all codes.

    Args:
        codebook_size: Number of codes K.
        dim: Number of dimensions D.
        rank: Number of dimensions r of queries and keys.

    Raises:
        ConfigError: There are more than `MAX_ATTENTION_CODES` codes.
    """

    def __init__(self, codebook_size: int, dim: int, rank: int) -> None:
        if codebook_size > MAX_ATTENTION_CODES:
            raise ConfigError(
                "The attention transform compares all pairs of codes and supports at most "
                f"{MAX_ATTENTION_CODES} codes, got {codebook_size}. Use transform='linear'."
            )
        super().__init__()
        self.query = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.key = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.gate = nn.Parameter(torch.zeros(codebook_size, 1))

    def forward(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the added part for all codes, ``[K, D]``, or for n chosen ``rows``, ``[n, D]``."""
        asking, gate = codes, snapshot(self.gate)
        if rows is not None:
            asking, gate = codes[rows], self.gate[rows]
        queries = asking @ snapshot(self.query).float()
        keys = codes @ snapshot(self.key).float()
        scores = queries @ keys.T / self.query.shape[1] ** 0.5
        mixed: Tensor = gate.float() * (scores.softmax(dim=-1) @ codes)
        return mixed

    @property
    def per_code(self) -> nn.Parameter:
        """The gate ``g`` with one row per code. A row of zero adds nothing to its code."""
        return self.gate


class IntegratedTransform(nn.Module):
    """The transform ``E' = M E W`` of a codebook ``E`` of K codes with D dimensions.

    Args:
        codebook_size: Number of codes K.
        dim: Number of dimensions D.
        kind: Form of ``M``: ``linear`` or ``attention``. ``identity`` has neither ``M`` nor ``W``.
        rank: Rank r of ``M``. 0 keeps only ``W``.

    Raises:
        ConfigError: ``kind`` is ``attention`` and there are more than `MAX_ATTENTION_CODES` codes.
    """

    def __init__(
        self, codebook_size: int, dim: int, *, kind: TransformKind = "linear", rank: int = 8
    ) -> None:
        super().__init__()
        self.mixing: LowRankMixing | AttentionMixing | None = None
        self.rotate: nn.Parameter | None = None  # W
        if kind == "identity":
            return
        if rank > 0:
            self.mixing = (
                LowRankMixing(codebook_size, rank)
                if kind == "linear"
                else AttentionMixing(codebook_size, dim, rank)
            )
        self.rotate = nn.Parameter(torch.eye(dim))

    def forward(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """Transform codes in float32.

        Args:
            codes: Codes, ``[K, D]``.
            rows: Indices of n codes to return. None returns all codes.

        Returns:
            Transformed codes, ``[K, D]`` or ``[n, D]``.
        """
        codes = codes.float()
        result: Tensor = codes if rows is None else codes[rows]
        if self.mixing is not None:
            result = result + self.mixing(codes, rows)
        return result if self.rotate is None else result @ snapshot(self.rotate).float()

    @torch.no_grad()
    def reset_(self) -> None:
        """Reset the transform to the identity."""
        if self.mixing is not None:
            self.mixing.per_code.zero_()
        if self.rotate is not None:
            nn.init.eye_(self.rotate)

    @torch.no_grad()
    def untransform(self, targets: Tensor) -> Tensor:
        """Return the vectors ``[n, D]`` that ``W`` maps to ``targets`` ``[n, D]``."""
        if self.rotate is None:
            return targets
        codes: Tensor = torch.linalg.solve(self.rotate.float(), targets, left=False)
        return codes

    @torch.no_grad()
    def clip_spectrum_(self, low: float = 0.5, high: float = 2.0) -> None:
        """Clip the singular values of ``W`` to the range from ``low`` to ``high``.

        A few power iterations on ``W`` and its inverse estimate whether a value is near a bound.
        ``W`` is decomposed only then. This never happens with codes from k-means, but it can happen
        with random codes.

        Args:
            low: Smallest allowed singular value.
            high: Largest allowed singular value.
        """
        if self.rotate is None:
            return
        matrix = self.rotate.float()
        gram = matrix.T @ matrix
        margin = 0.9  # Power iterations approach the value from below.
        largest = _largest_eigenvalue(gram)
        smallest = 1 / _largest_eigenvalue(torch.linalg.inv_ex(gram).inverse)
        if largest < (margin * high) ** 2 and smallest > (low / margin) ** 2:
            return
        left, values, right = torch.linalg.svd(matrix)
        if values.min() < low or values.max() > high:
            self.rotate.copy_(left @ torch.diag(values.clamp(low, high)) @ right)


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Return the largest eigenvalue of a symmetric positive matrix, by power iteration."""
    vector = matrix.abs().sum(dim=1)
    for _ in range(POWER_ITERATIONS):
        vector = matrix @ (vector / vector.norm().clamp_min(1e-30))
    largest: Tensor = vector.norm()
    return largest
