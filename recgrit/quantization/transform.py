"""The integrated transform: all codes of a level move together.

The codebook in use is ``E' = M E W`` with ``M`` over codes and ``W`` over dimensions, GRIT-VQ
(arXiv 2602.01140). A step on any used code moves the shared parts and through them every code, used
or not. ``M`` is one of

- **linear**, ``I + A Bᵀ`` of rank r: a refresh costs O(K r D + K D²). ``A`` starts at zero and
  ``B`` at random, so that training starts from ``E`` exactly and can leave it: were both zero,
  neither would ever get a gradient. Row i of ``A`` learns only when code i is used; ``B`` is
  shared. With r ≥ D, ``M`` is as free as codes that are learned one by one.
- **attention**, ``I + diag(g) softmax(Q Kᵀ/√r)`` with queries and keys projected from the codes:
  O(K² D), hence refused above `MAX_ATTENTION_CODES`. ``g`` starts at zero.
- nothing: ``W`` alone, or neither.

Shapes: K codes, D dimensions, r rank, n chosen rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recgrit.errors import ConfigError

TransformKind = Literal["identity", "linear", "attention"]

# The [K, K] weights of the attention transform take 64 MiB here and grow with the square.
MAX_ATTENTION_CODES = 4096
# Power iterations before the bounds of the spectrum are believed.
POWER_ITERATIONS = 8


def snapshot(parameter: Tensor) -> Tensor:
    """A parameter as it is now, for a graph that may outlive it.

    Codebook maintenance writes into parameters between two steps. An output whose backward pass
    comes later than that still has the gradients of the codes it was made of.
    """
    return parameter.clone() if torch.is_grad_enabled() else parameter


class LowRankMixing(nn.Module):
    """What ``A Bᵀ E`` adds to the codes ``E``."""

    def __init__(self, codebook_size: int, rank: int) -> None:
        super().__init__()
        self.mix_out = nn.Parameter(torch.zeros(codebook_size, rank))  # A
        self.mix_in = nn.Parameter(torch.randn(codebook_size, rank) / codebook_size**0.5)  # B

    def forward(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[K, D]``, or only some rows of it, ``[n, D]``."""
        mix_out = snapshot(self.mix_out) if rows is None else self.mix_out[rows]
        mixed: Tensor = mix_out.float() @ (snapshot(self.mix_in).float().T @ codes)
        return mixed

    @property
    def per_code(self) -> nn.Parameter:
        """The parameter with a row per code; zero there means that nothing is added."""
        return self.mix_out


class AttentionMixing(nn.Module):
    """What each code takes from the others by attention over all of them."""

    def __init__(self, codebook_size: int, dim: int, rank: int) -> None:
        if codebook_size > MAX_ATTENTION_CODES:
            raise ConfigError(
                f"The attention transform costs K² and stops at {MAX_ATTENTION_CODES} codes, got "
                f"{codebook_size}. Take transform='linear'."
            )
        super().__init__()
        self.query = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.key = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.gate = nn.Parameter(torch.zeros(codebook_size, 1))

    def forward(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """``[K, D]``, or only some rows of it, ``[n, D]``."""
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
        """The parameter with a row per code; zero there means that nothing is added."""
        return self.gate


class IntegratedTransform(nn.Module):
    """``E' = M E W`` for a codebook ``[K, D]``.

    Args:
        codebook_size: K.
        dim: D.
        kind: ``linear``, ``attention``, or ``identity`` for neither M nor W.
        rank: r; 0 leaves only W.

    Raises:
        ConfigError: Attention over too many codes.
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
        """``[K, D]`` -> ``[K, D]``, or only the transformed ``rows``, ``[n, D]``; in float32."""
        codes = codes.float()
        result: Tensor = codes if rows is None else codes[rows]
        if self.mixing is not None:
            result = result + self.mixing(codes, rows)
        return result if self.rotate is None else result @ snapshot(self.rotate).float()

    @torch.no_grad()
    def reset_(self) -> None:
        """Back to the identity."""
        if self.mixing is not None:
            self.mixing.per_code.zero_()
        if self.rotate is not None:
            nn.init.eye_(self.rotate)

    @torch.no_grad()
    def untransform(self, targets: Tensor) -> Tensor:
        """The codes that ``W`` takes to ``targets`` ``[n, D]``."""
        if self.rotate is None:
            return targets
        codes: Tensor = torch.linalg.solve(self.rotate.float(), targets, left=False)
        return codes

    @torch.no_grad()
    def clip_spectrum_(self, low: float = 0.5, high: float = 2.0) -> None:
        """Bring the singular values of W back between ``low`` and ``high``.

        A few power iterations on W and on its inverse say whether any value is near a bound; only
        then is W decomposed. From k-means codes it never is; from random codes it happens.
        """
        if self.rotate is None:
            return
        matrix = self.rotate.float()
        gram = matrix.T @ matrix
        margin = 0.9  # Power iterations come from below and stop short.
        largest = _largest_eigenvalue(gram)
        smallest = 1 / _largest_eigenvalue(torch.linalg.inv_ex(gram).inverse)
        if largest < (margin * high) ** 2 and smallest > (low / margin) ** 2:
            return
        left, values, right = torch.linalg.svd(matrix)
        if values.min() < low or values.max() > high:
            self.rotate.copy_(left @ torch.diag(values.clamp(low, high)) @ right)


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Of a symmetric positive matrix, by power iteration from the row sums' direction."""
    vector = matrix.abs().sum(dim=1)
    for _ in range(POWER_ITERATIONS):
        vector = matrix @ (vector / vector.norm().clamp_min(1e-30))
    largest: Tensor = vector.norm()
    return largest
