"""Settings of how times are written, and helpers for times as seconds with fractions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from recgrit.data.filtering import FRACTION

TimeUnit = Literal["s", "ms", "us", "ns", "min", "h", "d", "excel"]
# Number of units in a second.
PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """The known facts about how the times of a data set are written.

    Args:
        time_format: Format of times that are text, such as ``%m/%d/%Y %H:%M``. None detects it.
        time_unit: Unit of times that are numbers counted since 1970. ``excel`` means the day
            numbers of spreadsheets, which count since 1900. None detects the unit.
        timezone: Time zone of times that name no zone, such as ``Europe/Berlin``.
    """

    time_format: str | None = None
    time_unit: TimeUnit | None = None
    timezone: str = "UTC"


def split_seconds(values: pl.Series, per_second: int) -> pl.DataFrame:
    """Split numbers into whole seconds and fractions of a second.

    Args:
        values: Numbers in a unit of which ``per_second`` make one second.
        per_second: Number of units in a second.

    Returns:
        Columns ``timestamp`` int64 (whole seconds) and ``fraction``.
    """
    value = pl.col("value")
    if values.dtype.is_integer():
        whole = value if per_second == 1 else value // per_second
        rest = (value % per_second) / per_second
    else:
        scaled = value / per_second
        whole = scaled.floor()
        rest = scaled - whole
    return values.alias("value").to_frame().select(
        whole.cast(pl.Int64, strict=False).alias("timestamp"), rest.alias(FRACTION)
    )  # fmt: skip


def no_times(number: int) -> pl.DataFrame:
    """Return a table of ``number`` rows whose times are null."""
    schema = {"timestamp": pl.Int64, FRACTION: pl.Float64}
    return pl.DataFrame({name: [None] * number for name in schema}, schema=schema)


def strip_blanks(texts: pl.Series) -> pl.Series:
    """Remove blanks around texts; texts that become empty become null."""
    stripped = texts.str.strip_chars()
    return stripped.set(stripped == "", None)


def to_utc(times: pl.Series, timezone: str) -> pl.Series:
    """Convert times of one time zone to UTC; the times carry no zone before and after.

    A time that the clocks show twice is the earlier of both, and one that they skip becomes null.
    """
    if timezone == "UTC":
        return times.dt.replace_time_zone(None)
    placed = times.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return placed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
