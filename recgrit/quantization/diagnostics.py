"""Diagnostics of codes: how evenly they are used, and what to change if they are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A later level has collapsed if its perplexity per code is below this share of that of the first
# level. Collapsed later levels are the "hourglass" of raw residuals.
HOURGLASS_RATIO = 0.25


@dataclass(frozen=True)
class LevelDiagnostics:
    """Measures of how one level uses its codebook.

    Args:
        level: Number of the level, from 0.
        codebook_size: Number of codes of the level.
        codebook_usage: Share of the codes that at least one item has.
        perplexity: Exponential of the entropy of the codes' frequencies. It is the number of
            equally used codes that would have the same entropy.
        dead_codes: Number of codes that no item has.
        residual_norm: Mean length of the residuals that the level quantizes; NaN if it was not
            measured.
        neighbours_kept: Fidelity of the levels up to this one: the share of an item's ten nearest
            neighbours that are still among its ten nearest neighbours after quantization. NaN if it
            was not measured.
    """

    level: int
    codebook_size: int
    codebook_usage: float
    perplexity: float
    dead_codes: int
    residual_norm: float
    neighbours_kept: float


@dataclass(frozen=True)
class IdDiagnostics:
    """Measures of how semantic IDs spread over a catalogue, before collisions are resolved.

    Args:
        levels: Diagnostics of each level.
        unique_share: Number of different IDs divided by the number of items.
        collision_rate: Share of the items whose ID another item has too.
        largest_bucket: Largest number of items with the same ID.
        gini: Gini coefficient of the number of items per ID. It is 0 if all IDs have equally many
            items.
        entropy_ratio: Entropy of the IDs divided by the entropy of IDs that are all different. 1 is
            the best value.
    """

    levels: tuple[LevelDiagnostics, ...]
    unique_share: float
    collision_rate: float
    largest_bucket: int
    gini: float
    entropy_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnostics as a dictionary of values that JSON can hold."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """Return one message per fault of these IDs, with what to change; empty without faults."""
        found = []
        first = self.levels[0]
        if first.perplexity < first.codebook_size / 2:
            found.append(
                f"Level 0 uses its {first.codebook_size} codes unevenly (perplexity "
                f"{first.perplexity:.0f}): lower tokenizer.codebook_size, or check the item texts "
                "for boilerplate that makes items alike."
            )
        for level in self.levels[1:]:
            even = level.perplexity / level.codebook_size
            if even < HOURGLASS_RATIO * first.perplexity / first.codebook_size:
                found.append(
                    f"Level {level.level} collapses (perplexity {level.perplexity:.0f} of "
                    f"{level.codebook_size}): normalize from this level on "
                    "(tokenizer.normalized_from), or use fewer levels."
                )
        return found


def diagnose_codes(
    codes: npt.NDArray[np.int64],
    codebook_sizes: tuple[int, ...],
    residual_norms: tuple[float, ...] | None = None,
    neighbours_kept: tuple[float, ...] | None = None,
) -> IdDiagnostics:
    """Compute the diagnostics of the codes of all items.

    Without items, no code is used, no IDs collide, and the residual norms are NaN if they are not
    given.

    Args:
        codes: Codes of N items at L levels, ``[N, L]``. A code of -1 means that the item has no
            code at this level.
        codebook_sizes: Number of codes of each level.
        residual_norms: Mean length of each level's residuals. None if they were not measured.
        neighbours_kept: Fidelity of each level. None if it was not measured.

    Example:
        >>> found = diagnose_codes(np.array([[0, 0], [0, 1], [1, 0], [1, 0]]), (2, 4))
        >>> [round(level.perplexity, 2) for level in found.levels], found.collision_rate
        ([2.0, 1.75], 0.5)
    """
    unmeasured = (float("nan"),) * len(codebook_sizes)
    measured = zip(
        codebook_sizes, residual_norms or unmeasured, neighbours_kept or unmeasured, strict=True
    )
    levels = []
    for level, (size, norm, kept) in enumerate(measured):
        used = codes[:, level]
        counts = np.bincount(used[used >= 0], minlength=size)
        levels.append(
            LevelDiagnostics(
                level=level,
                codebook_size=size,
                codebook_usage=float(np.mean(counts > 0)),
                perplexity=float(np.exp(_entropy(counts))) if counts.any() else 0.0,
                dead_codes=int(np.sum(counts == 0)),
                residual_norm=norm,
                neighbours_kept=kept,
            )
        )
    _, buckets = np.unique(codes, axis=0, return_counts=True)
    num_items = max(1, len(codes))
    ordered = np.sort(buckets)
    ranks = np.arange(1, len(ordered) + 1)
    return IdDiagnostics(
        levels=tuple(levels),
        unique_share=len(buckets) / num_items if len(codes) else 1.0,
        collision_rate=float(buckets[buckets > 1].sum() / num_items),
        largest_bucket=int(buckets.max(initial=0)),
        gini=float((2 * ranks - len(ordered) - 1) @ ordered / (max(1, len(ordered)) * num_items)),
        entropy_ratio=float(_entropy(buckets) / np.log(num_items)) if num_items > 1 else 1.0,
    )


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log(share)))
