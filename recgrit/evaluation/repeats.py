"""Test targets that stand in the history before them: how many, and what metrics say without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recgrit.data.config import DataConfig
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.report import EvaluationReport

# From this share of targets on that are in the history, new items have metrics of their own.
MANY_REPEATS = 0.05
# What these metrics are called.
NEW_ITEMS = "test_new_items"


@dataclass(frozen=True)
class Repeats:
    """Targets of test that stand in the history before them already.

    Args:
        is_repeat: bool [T], which of a report's targets do.
        kept: What ``data.repeats`` is in the run.
    """

    is_repeat: npt.NDArray[np.bool_]
    kept: str

    @classmethod
    def of(cls, report: EvaluationReport, split: SequenceSplit, data: DataConfig) -> Repeats:
        """Those among the targets of a report of test."""
        return cls(split.repeats("test", report.sequences), data.repeats)

    @property
    def share(self) -> float:
        """Of all targets."""
        return float(self.is_repeat.mean())

    @property
    def are_many(self) -> bool:
        """Whether they are so many that a headline over all targets misleads."""
        return self.share > MANY_REPEATS

    def of_new_items(self, masked: EvaluationReport) -> EvaluationReport | None:
        """The report of all other targets, in masked lists; None where there are none."""
        return None if self.is_repeat.all() else masked.of_targets(~self.is_repeat)

    def explain(self) -> str:
        """What they are, in words."""
        new = int((~self.is_repeat).sum())
        told = (
            f"{self.share:.1%} of {len(self.is_repeat):,} test targets stand in the history before "
            f"them already (data.repeats={self.kept}; first or last would keep one interaction of "
            "a user with an item)."
        )
        if not new:
            return (
                f"{told} None is new: nothing here says how well new items are found, and masked "
                "lists, from which seen items are filtered out, miss every target."
            )
        return (
            f"{told} New items are the other {new:,}, looked for in masked lists: seen items are "
            "filtered out of these, so that they miss every repeat."
        )
