"""Paired differences between two models, with intervals over users and seeds.

Both models are measured on the same targets, and each is trained with several seeds. The difference
depends on the sample of users and on the sample of seeds, so the interval includes both sources of
uncertainty.

Shapes: S seeds, T targets, U users.
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

# Probability that a difference as large as the minimum detectable effect is found significant.
POWER = 0.8


@dataclass(frozen=True)
class PairedDifference:
    """The difference between two models in a metric, the first model minus the second.

    Args:
        mean: Mean difference over targets and seeds.
        low: Lower bound of the 95% interval of the mean difference.
        high: Upper bound of the 95% interval of the mean difference.
        detectable: Minimum detectable effect, which is the true difference that such a comparison
            finds significant at the 5% level with a probability of 80%.
        baseline: Mean of the metric of the second model, for relative differences.
        num_seeds: Number of seeds that each model was trained with.
        num_users: Number of users whose targets both models were measured on.
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
    """Compute the mean difference of a metric between two models, paired by target and seed.

    The users and seeds are treated as random samples. The variance of the mean is the sum of two
    parts: the variance over seeds of the means over targets, divided by S, and the variance over
    users of the means over seeds, divided by U. The variance that both parts contain is subtracted
    once. If users have several targets, the variance over users is that of the users' contributions
    to the mean (`_by_user`).

    The interval uses Student's t with Satterthwaite's degrees of freedom, so it is wide for few
    seeds. With one seed the interval covers users only, and the result may differ for other seeds.

    Args:
        first: Metric of the first model for each seed and target, float64 ``[S, T]``.
        second: Metric of the second model for the same seeds and targets, float64 ``[S, T]``.
        owners: User of each target, int64 ``[T]``. None if each user has one target.

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
        # The variance that neither users nor seeds explain is part of both variances of means.
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
    """Compute the mean of one model's metric, with an interval over users and seeds.

    The result is the paired difference from a model whose metric is 0 everywhere.

    Args:
        values: Metric of the model for each seed and target, float64 ``[S, T]``.
        owners: User of each target, int64 ``[T]``. None if each user has one target.
    """
    return paired_difference(values, np.zeros_like(values), owners=owners)


def _by_user(
    values: npt.NDArray[np.float64], owners: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the contribution of each user to the mean over targets, float64 ``[S, U]``.

    The mean over targets is the ratio of the users' totals to their numbers of targets. It is
    linearised: a user with n of the T targets and the total s gets the value
    ``m + (s - n m) U / T``, where m is the mean over all targets and seeds. For each seed, the mean
    of these values over users is the mean over targets. Their variance is the cluster-robust
    variance of the ratio. If each user has one target, the values are returned unchanged.

    Args:
        values: Values for each seed and target, float64 ``[S, T]``.
        owners: User of each target, int64 ``[T]``.
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
    """Compute the difference of a metric between two models from the ranks of the targets.

    The models are paired on the seeds that both have. If they have no seed in common, the seeds of
    each are sorted and paired in order, and surplus seeds are left out. Such pairs make the
    interval wider, and it stays valid.

    Args:
        first: Ranks of the targets by the first model, int32 ``[T]`` for each seed. It has at least
            one seed.
        second: Ranks of the same targets by the second model, for each seed.
        metric: Metric as a function of ranks and k, such as `recall_at_k`.
        k: Number of items at the top of each list that count.
        owners: User of each target, int64 ``[T]``. None if each user has one target.
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
