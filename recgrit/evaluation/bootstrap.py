"""95% percentile bootstrap intervals of metrics over users.

Most metrics depend on the rank of the target alone. If each user has one target, users with equal
ranks are interchangeable. To draw U users with replacement is then to draw the number of times that
each rank occurs from one multinomial distribution. The cost of a resample depends on the number of
distinct ranks (at most K + 1 for lists of K items) and not on the number of users.

If users have several targets, a user is drawn together with all of these targets. The hits of one
user are not independent, so intervals over single targets would be too narrow.

Shapes: T targets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from recgrit.evaluation.metrics import PerTarget, Ranks

CONFIDENCE = 0.95
# Number of weights, resamples times users or ranks, that are held in memory at once.
BLOCK_WEIGHTS = 2**23


def bootstrap_intervals(
    ranks: Ranks,
    metrics: Mapping[str, PerTarget],
    num_bootstrap: int,
    seed: int,
    *,
    owners: npt.NDArray[np.int64] | None = None,
) -> dict[str, tuple[float, float]]:
    """Compute the 95% interval of each metric's mean over targets.

    Args:
        ranks: Rank of each target, int32 ``[T]``; 0 if it is not listed. Other numbers are possible
            if targets with equal numbers have equal values of all metrics.
        metrics: Values of each metric by name, float64 ``[T]``.
        num_bootstrap: Number of resamples.
        seed: Seed of the resampling. All metrics share the same resamples.
        owners: User of each target, int64 ``[T]``. None if each user has one target.

    Returns:
        The lower and the upper bound of each metric, by name.
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
    """Return the mean of each metric in each resample, if each user has one target."""
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
    """Return the mean of each metric in each resample, if users have several targets.

    A user is drawn together with all targets. The mean is the total of the drawn users divided by
    the number of their targets.
    """
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
