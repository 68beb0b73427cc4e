"""How well the codes are used, and what to change when they are not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A later level this much less even than the first is the "hourglass" of raw residuals.
HOURGLASS_RATIO = 0.25


@dataclass(frozen=True)
class LevelDiagnostics:
    """One level's use of its codebook.

    Args:
        level: From 0.
        codebook_size: Number of codes.
        codebook_usage: Share of codes that some item has.
        perplexity: exp of the entropy of the codes' frequencies: the number of equally used codes
            that would be as even.
        dead_codes: Codes no item has.
        residual_norm: Mean length of what this level was given; NaN if not measured.
        neighbours_kept: Fidelity of the levels up to this one: the share of an item's ten nearest
            neighbours that are among the ten nearest after quantization; NaN if not measured.
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
    """How semantic IDs spread over a catalogue, before collisions are resolved.

    Args:
        levels: One entry per level.
        unique_share: Number of different IDs over the number of items.
        collision_rate: Share of items whose ID another item has too.
        largest_bucket: Most items on one ID.
        gini: Inequality of the items per ID, 0 if all IDs have equally many.
        entropy_ratio: Entropy of the IDs over that of all-unique IDs; 1 is best.
    """

    levels: tuple[LevelDiagnostics, ...]
    unique_share: float
    collision_rate: float
    largest_bucket: int
    gini: float
    entropy_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """What is wrong with these IDs and what to change; empty if they are fine."""
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
                    f"{level.codebook_size}): compare directions there "
                    "(tokenizer.normalized_from), or use fewer levels."
                )
        return found


def diagnose_codes(
    codes: npt.NDArray[np.int64],
    codebook_sizes: tuple[int, ...],
    residual_norms: tuple[float, ...] | None = None,
    neighbours_kept: tuple[float, ...] | None = None,
) -> IdDiagnostics:
    """Diagnostics of the codes ``[N, L]`` of N items; codes of -1 are no code's use.

    Of no items nothing is used and nothing collides; mean lengths are NaN.

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
