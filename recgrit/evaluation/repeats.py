"""Repeats: test targets that already occur in the history before them.

The module counts the repeats, and makes a report on the other targets alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.data.config import DataConfig
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.report import EvaluationReport

# Share of repeats among the targets above which metrics are also reported for new items alone.
MANY_REPEATS = 0.05
# Name of these metrics.
NEW_ITEMS = "test_new_items"


@dataclass(frozen=True)
class Repeats:
    """The repeats among the targets of a report on test.

    A repeat is a target that the user already interacted with in the history before it.

    Args:
        is_repeat: bool ``[T]`` (T targets), true for the targets of the report that are repeats.
        kept: Value of the run's setting ``data.repeats``, such as ``keep``.
    """

    is_repeat: npt.NDArray[np.bool_]
    kept: str

    @classmethod
    def of(cls, report: EvaluationReport, split: SequenceSplit, data: DataConfig) -> Repeats:
        """Find the repeats among the targets of a report on test.

        Args:
            report: Report on test.
            split: Split that the report was measured on.
            data: Settings of the run's data.
        """
        return cls(split.repeats("test", report.sequences), data.repeats)

    @property
    def share(self) -> float:
        """Share of repeats among all targets."""
        return float(self.is_repeat.mean())

    @property
    def are_many(self) -> bool:
        """Whether there are so many repeats that the mean over all targets is misleading."""
        return self.share > MANY_REPEATS

    def of_new_items(self, masked: EvaluationReport) -> EvaluationReport | None:
        """Return the report on the targets that are not repeats; None if all targets are repeats.

        Args:
            masked: Report on the same targets with lists from which seen items are filtered out.
        """
        return None if self.is_repeat.all() else masked.of_targets(~self.is_repeat)

    def explain(self) -> str:
        """Return an explanation of the repeats and of the metrics on new items, as text."""
        new = int((~self.is_repeat).sum())
        told = (
            f"{self.share:.1%} of {len(self.is_repeat):,} test targets are already in the history "
            f"before them (data.repeats={self.kept}; first or last would keep one interaction per "
            "user and item)."
        )
        if not new:
            return (
                f"{told} None is new, so nothing here measures how well new items are found, and "
                "masked lists, from which seen items are filtered out, miss every target."
            )
        return (
            f"{told} The other {new:,} are new items, evaluated with masked lists: seen items are "
            "filtered out of these, so they miss every repeat."
        )
