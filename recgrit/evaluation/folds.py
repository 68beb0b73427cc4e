"""Folds of a temporal split: the cut-off times of each fold, and means of metrics over folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recgrit.errors import DataError
from recgrit.evaluation.bootstrap import CONFIDENCE


class Window(NamedTuple):
    """The cut-off times of one fold, in seconds since 1970.

    Args:
        valid_from: Time before which interactions belong to training.
        test_from: Time from which interactions belong to test. Validation has the interactions from
            ``valid_from`` to this time.
        test_until: Time before which interactions belong to test. Later interactions are left out
            of the fold. None for the last fold, which includes all interactions.
    """

    valid_from: int
    test_from: int
    test_until: int | None


def plan_windows(
    times: npt.NDArray[np.int64], folds: int, *, valid_share: float, test_share: float
) -> list[Window]:
    """Return the cut-off times of all folds, the oldest first.

    The last fold is the plain temporal split. The test windows follow each other without a gap, and
    each has about ``test_share`` of all interactions. Interactions at the same time are not split
    between two parts.

    Args:
        times: Times of all interactions in seconds since 1970, int64.
        folds: Number of folds, including the last.
        valid_share: Share of all interactions in the validation part of a fold.
        test_share: Share of all interactions in the test window of a fold.

    Raises:
        DataError: A part of a fold is empty, because too many interactions have the same time.

    >>> for window in plan_windows(np.arange(100), 2, valid_share=0.1, test_share=0.1):
    ...     print(window)
    Window(valid_from=70, test_from=80, test_until=90)
    Window(valid_from=80, test_from=90, test_until=None)
    """
    ordered = np.sort(times)

    def time_at(share_behind: float) -> int:
        return int(ordered[int(len(ordered) * (1 - share_behind))])

    windows = []
    for later in range(folds - 1, -1, -1):
        behind = later * test_share
        window = Window(
            time_at(behind + test_share + valid_share),
            time_at(behind + test_share),
            time_at(behind) if later else None,
        )
        moments = [int(ordered[0]), *(moment for moment in window if moment is not None)]
        if len(set(moments)) < len(moments):
            raise DataError(
                f"Fold {folds - later} of {folds} has an empty part: too many interactions "
                "have the same time. Lower evaluation.folds, or raise data.valid_share and "
                "data.test_share."
            )
        windows.append(window)
    return windows


@dataclass(frozen=True)
class FoldMean:
    """The mean of a metric over folds, with a 95% interval.

    Args:
        mean: Mean of the metric over the folds.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    mean: float
    low: float
    high: float


def mean_over_folds(values: Sequence[float]) -> FoldMean:
    """Compute the mean of a metric over folds, with a 95% interval by Student's t.

    The interval is ``mean ± t s / √n`` with ``n - 1`` degrees of freedom (Student, Biometrika
    1908), where n is the number of folds and s the standard deviation over folds. Folds share most
    of their training data, so their results are less independent than the interval assumes. The
    interval shows how much a result depends on the time window. It does not predict the result for
    other users.

    Args:
        values: Metric of each fold, for at least two folds.

    >>> found = mean_over_folds([0.1, 0.2, 0.3])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.2, -0.048, 0.448)
    """
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1))
    half /= len(values) ** 0.5
    mean = float(np.mean(values))
    return FoldMean(mean, mean - half, mean + half)
