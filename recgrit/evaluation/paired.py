"""Is one model better than another? Paired differences over users and seeds.

Both models are measured on the same users, each trained with several seeds. A difference varies
with the users drawn and with the seeds drawn, so its uncertainty counts both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.errors import DataError
from recgrit.evaluation.bootstrap import CONFIDENCE
from recgrit.evaluation.metrics import PerUser, Ranks

# Chance to find a difference that is as large as the minimum detectable effect.
POWER = 0.8


@dataclass(frozen=True)
class PairedDifference:
    """How much better the first of two models is.

    Args:
        mean: Mean difference over users and seeds.
        low: Lower end of its 95% interval.
        high: Upper end.
        detectable: Minimum detectable effect: the true difference that such a comparison would
            call significant at 5% with a chance of 80%.
        baseline: Mean of the second model, for relative differences.
        num_seeds: Seeds of each model.
        num_users: Users both were measured on.
    """

    mean: float
    low: float
    high: float
    detectable: float
    baseline: float
    num_seeds: int
    num_users: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> PairedDifference:
    """Difference of two models' metric, paired by user and by seed.

    The variance of the mean is that over seeds (of means over users) divided by S plus that over
    users (of means over seeds) divided by U, less the part counted twice; both stand for all seeds
    and users that might have been drawn. The interval takes Student's t with Satterthwaite's
    degrees of freedom, so few seeds make it wide. With one seed only users are counted, and the
    result says nothing about other seeds.

    Args:
        first: float64 [S, U], metric of each user under each seed.
        second: float64 [S, U], the same users and seeds.

    Raises:
        DataError: The shapes differ, or there are fewer than two users.

    >>> better = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    >>> paired_difference(better, better - 0.5).mean
    0.5
    """
    from scipy import stats

    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise DataError(
            "A paired difference needs the same seeds and at least two users on both sides, as "
            f"[S, U]; got {first.shape} and {second.shape}."
        )
    difference = first - second
    num_seeds, num_users = difference.shape
    by_user = difference.mean(axis=0).var(ddof=1) / num_users
    variance, degrees = by_user, float(num_users - 1)
    if num_seeds > 1:
        by_seed = difference.mean(axis=1).var(ddof=1) / num_seeds
        noise = (
            difference
            - difference.mean(axis=0, keepdims=True)
            - difference.mean(axis=1, keepdims=True)
            + difference.mean()
        )
        # What is neither the user's nor the seed's own is in both variances of means.
        both = np.square(noise).sum() / ((num_seeds - 1) * (num_users - 1)) / difference.size
        variance = max(by_user + by_seed - both, by_user, by_seed)
        if variance > 0:
            degrees = variance**2 / (by_seed**2 / (num_seeds - 1) + by_user**2 / (num_users - 1))
    error = math.sqrt(variance)
    mean = float(difference.mean())
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
    return PairedDifference(
        mean=mean,
        low=mean - reach * error,
        high=mean + reach * error,
        detectable=(reach + float(stats.t.ppf(POWER, degrees))) * error,
        baseline=float(second.mean()),
        num_seeds=num_seeds,
        num_users=num_users,
    )


def compare_ranks(
    first: Mapping[int, Ranks],
    second: Mapping[int, Ranks],
    metric: Callable[[Ranks, int], PerUser],
    k: int,
) -> PairedDifference | None:
    """First less second in a metric, on the seeds that both have; None if there are none.

    Args:
        first: Ranks of the same users' targets, by seed.
        second: Likewise, of what is compared with.
        metric: Such as `recall_at_k`.
        k: Its cut-off.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    return paired_difference(
        *(np.stack([metric(ranks[seed], k) for seed in seeds]) for ranks in (first, second))
    )
