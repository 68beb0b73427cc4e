"""The account of what each step of preparing the data dropped or counted."""

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
    """What a step left: interactions, their users, their items."""

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
    """The steps so far; each row starts from what the one before it left."""

    def __init__(self, rows_read: int) -> None:
        self._steps = [_Step("rows read", rows_read, None, None, dropped=0)]

    @classmethod
    def start(cls, raw: RawData) -> Funnel:
        """The steps of reading itself, but for rows without ids."""
        funnel = cls(raw.counts["rows_read"])
        # How many users and items unreadable lines held cannot be known.
        unreadable = raw.counts["rows_malformed"] - raw.counts["rows_without_id"]
        left = raw.counts["rows_read"] - unreadable
        funnel._steps.append(_Step("malformed", left, None, None, dropped=unreadable))
        return funnel

    def add(self, step: str, left: Tally) -> None:
        """Record a step and what it left."""
        dropped = self._steps[-1].interactions - left.interactions
        self._steps.append(_Step(step, left.interactions, left.users, left.items, dropped))

    def count(self, step: str, number: int) -> None:
        """Record something that is counted and not dropped."""
        last = self._steps[-1]
        self._steps.append(
            _Step(step, last.interactions, last.users, last.items, dropped=0, counted=number)
        )

    def repeat(self, step: str) -> None:
        """Record a step that left all interactions."""
        self._steps.append(replace(self._steps[-1], step=step, dropped=0, counted=None))

    def to_polars(self) -> pl.DataFrame:
        """One row per step, in order.

        Columns: ``step``; the ``interactions``, ``users`` and ``items`` after it; the interactions
        ``dropped`` by it; and what it ``counted`` without dropping. Null where a number is unknown
        or has no meaning.
        """
        return pl.DataFrame([vars(step) for step in self._steps], schema=FUNNEL_SCHEMA)
