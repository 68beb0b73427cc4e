"""The funnel: a table of what each step of the preparation dropped or counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from recgrit.data.sources import RawData

FUNNEL_SCHEMA = {
    "step": pl.String(),
    "interactions": pl.Int64(),
    "users": pl.Int64(),
    "items": pl.Int64(),
    "dropped": pl.Int64(),
    "counted": pl.Int64(),
}


@dataclass(frozen=True)
class Tally:
    """The numbers of interactions, users and items that are left after a step.

    Args:
        interactions: Number of interactions.
        users: Number of users with interactions.
        items: Number of items with interactions.
    """

    interactions: int
    users: int
    items: int


@dataclass(frozen=True)
class _Step:
    step: str
    interactions: int
    users: int | None
    items: int | None
    dropped: int
    counted: int | None = None


class Funnel:
    """A record of how many interactions, users and items each step of the preparation left.

    Args:
        rows_read: Number of rows that were read, before any step.
    """

    def __init__(self, rows_read: int) -> None:
        self._steps = [_Step("rows read", rows_read, None, None, dropped=0)]

    @classmethod
    def start(cls, raw: RawData) -> Funnel:
        """Return a funnel with the steps of reading: all rows, then all well-formed rows.

        The step that drops rows without a user id or item id is added by the caller.
        """
        funnel = cls(raw.counts["rows_read"])
        # The numbers of users and items are null, because those of unreadable lines are unknown.
        unreadable = raw.counts["rows_malformed"] - raw.counts["rows_without_id"]
        left = raw.counts["rows_read"] - unreadable
        funnel._steps.append(_Step("malformed", left, None, None, dropped=unreadable))
        return funnel

    def add(self, step: str, left: Tally) -> None:
        """Record a step and what it left.

        Args:
            step: Name of the step.
            left: Numbers of interactions, users and items after the step.
        """
        dropped = self._steps[-1].interactions - left.interactions
        self._steps.append(_Step(step, left.interactions, left.users, left.items, dropped))

    def count(self, step: str, number: int) -> None:
        """Record a number that is counted without dropping interactions.

        Args:
            step: Name of what is counted, such as "repeats of an item at another time".
            number: The count.
        """
        last = self._steps[-1]
        self._steps.append(
            _Step(step, last.interactions, last.users, last.items, dropped=0, counted=number)
        )

    def repeat(self, step: str) -> None:
        """Record a step that dropped nothing."""
        self._steps.append(replace(self._steps[-1], step=step, dropped=0, counted=None))

    def to_polars(self) -> pl.DataFrame:
        """Return a table with one row per step, in order.

        Columns: ``step``; ``interactions``, ``users`` and ``items`` left after the step; the number
        of interactions ``dropped`` by the step; and the number that the step ``counted`` without
        dropping anything. A number that is unknown or has no meaning is null.
        """
        return pl.DataFrame([vars(step) for step in self._steps], schema=FUNNEL_SCHEMA)
