"""Is one model better than another? Paired differences over users and seeds.

Both models are measured on the same targets, each trained with several seeds. A difference varies
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
from recgrit.evaluation.metrics import PerTarget, Ranks

# Chance to find a difference that is as large as the minimum detectable effect.
POWER = 0.8


@dataclass(frozen=True)
class PairedDifference:
    """How much better the first of two models is.

    Args:
        mean: Mean difference over targets and seeds.
        low: Lower end of its 95% interval.
        high: Upper end.
        detectable: Minimum detectable effect: the true difference that such a comparison would
            call significant at 5% with a chance of 80%.
        baseline: Mean of the second model, for relative differences.
        num_seeds: Seeds of each model.
        num_users: Users whose targets both were measured on.
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
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
    *,
    owners: npt.NDArray[np.int64] | None = None,
) -> PairedDifference:
    """Difference of two models' metric, paired by target and by seed.

    The mean is over targets. Its variance is that over seeds (of means over targets) divided by S
    plus that over users (of means over seeds) divided by U, less the part counted twice; both stand
    for all seeds and users that might have been drawn. A user is drawn with all targets: where
    users have several, the variance over users is that of their contributions to the mean
    (`_by_user`). The interval takes Student's t with Satterthwaite's degrees of freedom, so few
    seeds make it wide. With one seed only users are counted, and the result says nothing about
    other seeds.

    Args:
        first: float64 [S, T], metric of each target under each seed.
        second: float64 [S, T], the same targets and seeds.
        owners: int64 [T], the user of each target; None where each user has one.

    Raises:
        DataError: The shapes differ, or there are fewer than two users.

    >>> better = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    >>> paired_difference(better, better - 0.5).mean
    0.5
    """
    from scipy import stats

    if first.shape != second.shape or first.ndim != 2:
        raise DataError(
            "A paired difference needs the same seeds and targets on both sides, as [S, T]; got "
            f"{first.shape} and {second.shape}."
        )
    by_target = first - second
    difference = by_target if owners is None else _by_user(by_target, owners)
    num_seeds, num_users = difference.shape
    if num_users < 2:
        raise DataError(f"A paired difference needs at least two users, got {num_users}.")
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
    mean = float(by_target.mean())
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


def mean_over_seeds(
    values: npt.NDArray[np.float64], *, owners: npt.NDArray[np.int64] | None = None
) -> PairedDifference:
    """The mean of a metric with its interval over users and seeds: its difference from nothing.

    Args:
        values: float64 [S, T], metric of each target under each seed.
        owners: As for `paired_difference`.
    """
    return paired_difference(values, np.zeros_like(values), owners=owners)


def _by_user(
    values: npt.NDArray[np.float64], owners: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """What each user contributes to the mean over targets: float64 [S, U].

    The mean over targets is a ratio, the users' totals over their numbers of targets. To first
    order, user u with n of T targets and total s moves it as if users had one value each,
    ``m + (s - n m) U / T``: m is the mean over all targets and seeds. The mean of these values over
    users is the mean over targets, under each seed, and their variance is the cluster-robust one
    of the ratio. A user's one target is left as it is where each has one.
    """
    _, user, num_targets = np.unique(owners, return_inverse=True, return_counts=True)
    totals = np.stack([np.bincount(user, weights=of_seed) for of_seed in values])
    per_user = len(owners) / len(num_targets)
    contributions: npt.NDArray[np.float64] = totals / per_user + values.mean() * (
        1 - num_targets / per_user
    )
    return contributions


def compare_ranks(
    first: Mapping[int, Ranks],
    second: Mapping[int, Ranks],
    metric: Callable[[Ranks, int], PerTarget],
    k: int,
    *,
    owners: npt.NDArray[np.int64] | None = None,
) -> PairedDifference:
    """First less second in a metric, paired on the seeds that both have.

    Where they have none in common, the lowest seeds are paired, then the next, and so on: any two
    trainings can be compared, and seeds that share nothing only make the interval wider.

    Args:
        first: Ranks of the same targets, by seed; at least one.
        second: Likewise, of what is compared with.
        metric: Such as `recall_at_k`.
        k: Its cut-off.
        owners: As for `paired_difference`.
    """
    common = sorted(set(first) & set(second))
    pairs = [(seed, seed) for seed in common]
    if not pairs:
        pairs = list(zip(sorted(first), sorted(second), strict=False))
    return paired_difference(
        np.stack([metric(first[seed], k) for seed, _ in pairs]),
        np.stack([metric(second[seed], k) for _, seed in pairs]),
        owners=owners,
    )
