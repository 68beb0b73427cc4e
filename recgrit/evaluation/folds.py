"""Folds of a temporal split: where they cut the time, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recgrit.errors import DataError
from recgrit.evaluation.bootstrap import CONFIDENCE


class Window(NamedTuple):
    """A fold in time, in seconds since 1970.

    Args:
        valid_from: Training has what lies before.
        test_from: Validation lies between the two.
        test_until: Test lies before; what comes later does not exist for the fold. None for the
            last fold, which has all there is.
    """

    valid_from: int
    test_from: int
    test_until: int | None


def plan_windows(
    times: npt.NDArray[np.int64], folds: int, *, valid_share: float, test_share: float
) -> list[Window]:
    """All folds, the oldest first; the last is the plain temporal split.

    Windows of test follow one another without a gap, about ``test_share`` of all interactions each;
    what happened at once stays together.

    Args:
        times: int64, of all interactions.
        folds: How many there are, the last included.
        valid_share: Share of all interactions between the training and the test of a fold.
        test_share: Share of all interactions in a window.

    Raises:
        DataError: So much happened at once that a part of a fold is empty.

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
                f"Fold {folds - later} of {folds} has an empty part: too much happened at one "
                "time. Lower evaluation.folds, or raise data.valid_share and data.test_share."
            )
        windows.append(window)
    return windows


@dataclass(frozen=True)
class FoldMean:
    """A metric over folds: its mean and 95% interval."""

    mean: float
    low: float
    high: float


def mean_over_folds(values: Sequence[float]) -> FoldMean:
    """The mean of a metric over folds, with Student's interval of ``n - 1`` degrees of freedom.

    ``mean ± t s / √n`` (Student, Biometrika 1908). Folds share most of what they train on, so their
    results are less independent than the interval assumes: it says how much a result depends on the
    window of time, and not what a year of other users would give.

    >>> found = mean_over_folds([0.1, 0.2, 0.3])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.2, -0.048, 0.448)
    """
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1))
    half /= len(values) ** 0.5
    mean = float(np.mean(values))
    return FoldMean(mean, mean - half, mean + half)
