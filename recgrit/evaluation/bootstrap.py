"""95% percentile bootstrap intervals over users.

All metrics depend on a user through the rank of the target alone, so users of equal rank are
interchangeable: drawing U users with replacement is drawing how often each rank occurs, from one
multinomial. A resample therefore costs as much as there are distinct ranks (at most K + 1), not as
much as there are users, and a million users take no more memory than a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recgrit.evaluation.metrics import PerUser, Ranks

CONFIDENCE = 0.95


def bootstrap_intervals(
    ranks: Ranks, metrics: Mapping[str, PerUser], num_bootstrap: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Lower and upper bound of each metric's mean over users.

    Args:
        ranks: int32 [U], rank of each user's target, 0 where missed.
        metrics: Per-user values of each metric by name, float64 [U]; functions of the rank.
        num_bootstrap: Number of resamples.
        seed: Seed of the resampling; all metrics share the same resamples.

    Returns:
        The bounds by metric name.
    """
    num_users = len(ranks)
    _, representatives, counts = np.unique(ranks, return_index=True, return_counts=True)
    resampled = np.random.default_rng(seed).multinomial(
        num_users, counts / num_users, size=num_bootstrap
    )
    tail = (1.0 - CONFIDENCE) / 2.0
    intervals = {}
    for name, values in metrics.items():
        means = resampled @ values[representatives] / num_users
        low, high = np.quantile(means, (tail, 1.0 - tail))
        intervals[name] = (float(low), float(high))
    return intervals
