"""95% percentile bootstrap intervals over users.

All metrics depend on a target through its rank alone, so users whose one target has equal rank are
interchangeable: drawing U users with replacement is drawing how often each rank occurs, from one
multinomial. A resample therefore costs as much as there are distinct ranks (at most K + 1), not as
much as there are users, and a million users take no more memory than a hundred.

Where users have several targets each, a user is drawn with all of them: hits of one user are not
independent, and intervals that took them for such would be too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from recgrit.evaluation.metrics import PerTarget, Ranks

CONFIDENCE = 0.95
# Resamples whose weights of all users are held at once, as numbers.
BLOCK_WEIGHTS = 2**23


def bootstrap_intervals(
    ranks: Ranks,
    metrics: Mapping[str, PerTarget],
    num_bootstrap: int,
    seed: int,
    *,
    owners: npt.NDArray[np.int64] | None = None,
) -> dict[str, tuple[float, float]]:
    """Lower and upper bound of each metric's mean over targets.

    Args:
        ranks: int32 [T], rank of each target, 0 where missed; or other numbers that are equal where
            targets have equal values.
        metrics: Values of each metric by name, float64 [T]; functions of the rank.
        num_bootstrap: Number of resamples.
        seed: Seed of the resampling; all metrics share the same resamples.
        owners: int64 [T], the user of each target; None where each user has one.

    Returns:
        The bounds by metric name.
    """
    if owners is not None and len(np.unique(owners)) < len(owners):
        means_of = _resample_owners(owners, metrics, num_bootstrap, seed)
    else:
        means_of = _resample_ranks(ranks, metrics, num_bootstrap, seed)
    tail = (1.0 - CONFIDENCE) / 2.0
    intervals = {}
    for name, means in means_of.items():
        low, high = np.quantile(means, (tail, 1.0 - tail))
        intervals[name] = (float(low), float(high))
    return intervals


def _resample_ranks(
    ranks: Ranks, metrics: Mapping[str, PerTarget], num_bootstrap: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of each resample, by metric."""
    num_users = len(ranks)
    _, representatives, counts = np.unique(ranks, return_index=True, return_counts=True)
    draw = np.random.default_rng(seed)
    values = np.column_stack([found[representatives] for found in metrics.values()])
    size = max(1, BLOCK_WEIGHTS // len(counts))
    means = np.concatenate(
        [
            draw.multinomial(num_users, counts / num_users, size=min(size, left)) @ values
            for left in range(num_bootstrap, 0, -size)
        ]
    )
    return {name: means[:, i] / num_users for i, name in enumerate(metrics)}


def _resample_owners(
    owners: npt.NDArray[np.int64], metrics: Mapping[str, PerTarget], num_bootstrap: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """The same with users drawn whole: totals of the drawn over the number of their targets."""
    _, user, num_targets = np.unique(owners, return_inverse=True, return_counts=True)
    num_users = len(num_targets)
    totals = np.column_stack(
        [num_targets, *(np.bincount(user, weights=values) for values in metrics.values())]
    )
    draw = np.random.default_rng(seed)
    size = max(1, BLOCK_WEIGHTS // num_users)
    sums = [
        draw.multinomial(num_users, np.full(num_users, 1 / num_users), size=min(size, left))
        @ totals
        for left in range(num_bootstrap, 0, -size)
    ]
    means = np.concatenate(sums)
    return {name: means[:, i] / means[:, 0] for i, name in enumerate(metrics, start=1)}
