"""What is known of how the times of a data set are written, and what a time is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from recgrit.data.filtering import FRACTION

TimeUnit = Literal["s", "ms", "us", "ns", "min", "h", "d", "excel"]
# How many make a second.
PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """How the times of a data set are written, as far as it is known.

    Args:
        time_format: Of text, such as ``%m/%d/%Y %H:%M``; None to find out.
        time_unit: What numbers count since 1970 (``excel``: days since 1900, as spreadsheets do);
            None to find out.
        timezone: Of times that name none, such as ``Europe/Berlin``.
    """

    time_format: str | None = None
    time_unit: TimeUnit | None = None
    timezone: str = "UTC"


def split_seconds(values: pl.Series, per_second: int) -> pl.DataFrame:
    """Whole seconds and the rest of numbers that count parts of one."""
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
    """So many rows without a time."""
    schema = {"timestamp": pl.Int64, FRACTION: pl.Float64}
    return pl.DataFrame({name: [None] * number for name in schema}, schema=schema)


def strip_blanks(texts: pl.Series) -> pl.Series:
    """Without blanks around; null where nothing is left."""
    stripped = texts.str.strip_chars()
    return stripped.set(stripped == "", None)


def to_utc(times: pl.Series, timezone: str) -> pl.Series:
    """Times without a zone, as they are in this one, as UTC without a zone."""
    if timezone == "UTC":
        return times.dt.replace_time_zone(None)
    placed = times.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return placed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
