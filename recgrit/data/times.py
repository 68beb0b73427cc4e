"""Reader of time columns, which treats times alike in all kinds of files.

A column of numbers counts a unit of time since 1970, and the size of the numbers shows the unit. A
column of text holds dates, and each cell may have a form of its own. An error asks for what only a
person can know: whether 3/4/2011 is in March or April, and whether 20111101 is a day or a number of
seconds. All files of a data set have the same order of day and month, and the same unit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import polars as pl

from recgrit.data.date_texts import DateTexts
from recgrit.data.filtering import FRACTION
from recgrit.data.number_looks import MOST, find_look, year_of
from recgrit.data.time_settings import (
    PER_SECOND,
    TimeSettings,
    TimeUnit,
    no_times,
    split_seconds,
    strip_blanks,
    to_utc,
)
from recgrit.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Number of seconds in a unit.
SECONDS: dict[str, int] = {"min": 60, "h": 3600, "d": 86400, "excel": 86400}
# Excel's day 25569 is the first of 1970.
EXCEL_EPOCH = 25569
# In seconds this is the year 5138.
MAX_SECONDS = 100_000_000_000
# In seconds this is in March 1973. Smaller numbers may count anything.
FIRST_SECONDS = 100_000_000
YEAR = 365 * 86400
EXAMPLES = 3


class TimeReader:
    """A reader of the time column of one data set, used file by file.

    Args:
        column: Name of the column, for messages.
        settings: Known facts about how the times are written.
        prefix: Prefix of the names of settings in messages, such as ``data.table.``.
        other_files: Function that returns the times of all files. It is called if one file leaves
            the unit or the order of day and month open. None if there is only one file.

    Raises:
        ConfigError: The time zone of the settings is unknown.
    """

    def __init__(
        self,
        column: str,
        settings: TimeSettings,
        *,
        prefix: str = "data.table.",
        other_files: Callable[[], Iterable[pl.Series]] | None = None,
    ) -> None:
        self._column, self._settings, self._prefix = column, settings, prefix
        self._texts = DateTexts(column, settings, prefix, other_files)
        self._unit = settings.time_unit
        self._other_files = other_files
        # Largest number of seconds so far, and examples of cells that could not be read.
        self._largest = -1.0
        self._unread: list[str] = []
        _require_timezone(settings.timezone, prefix)

    def read(self, times: pl.Series, label: str) -> pl.DataFrame:
        """Read times as ``timestamp`` (whole seconds since 1970) and ``fraction`` of a second.

        Both are null if a cell holds no time. If all times are whole seconds, the column
        ``fraction`` is left out.

        Args:
            times: Column of dates, numbers or text.
            label: Name of the file, for messages.

        Raises:
            DataError: The type of the column cannot hold times, the times are ambiguous, or the
                numbers look like something else than a count since 1970.
        """
        dtype = times.dtype
        if isinstance(dtype, pl.Categorical | pl.Enum):
            times = times.cast(pl.String)
        if times.dtype == pl.String:
            found = self._read_text(times, label)
        elif dtype.is_numeric():
            found = self._read_numbers(times, label)
        elif isinstance(dtype, pl.Datetime | pl.Date):
            found = self._read_dates(times)
        elif dtype == pl.Null:
            found = no_times(len(times))
        else:
            raise DataError(
                f"{label}: the column {self._column} holds {describe_type(dtype)}, which is not "
                "a time: expected dates, numbers that count since 1970, or text."
            )
        self._remember_unread(times, found)
        seconds = found["timestamp"]
        if (largest := seconds.abs().max()) is not None:
            self._largest = max(self._largest, float(largest))  # type: ignore[arg-type]
        if not (found[FRACTION] > 0).any():
            return found.drop(FRACTION)
        return found

    def describe_unread(self) -> str:
        """Describe the times that could not be read since the last call, for messages.

        The text is empty if all times could be read.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return ""
        examples = f"times in {self._column} such as {', '.join(unread)} cannot be read"
        if (form := self._settings.time_format) is not None:
            return f"{examples} as {self._prefix}time_format={form!r}"
        if self._unit is not None:
            return f"{examples}; numbers are read as {self._unit} ({self._prefix}time_unit)"
        return f"{examples}: set {self._prefix}time_format"

    def finish(self) -> None:
        """Log a warning if all times are in 1970, which suggests that they count something else."""
        if 0 <= self._largest < YEAR and self._settings.time_format is None:
            logger.warning(
                "All times in %s lie in 1970 (the largest is second %g). Their order is kept. If "
                "they have another unit, set %stime_unit.",
                self._column,
                self._largest,
                self._prefix,
            )

    def _remember_unread(self, times: pl.Series, found: pl.DataFrame) -> None:
        bad = times.filter(found["timestamp"].is_null() & times.is_not_null())
        if bad.dtype == pl.String:
            bad = bad.filter(bad.str.strip_chars() != "")
        for value in bad.head(1000).unique(maintain_order=True).head(EXAMPLES):
            if repr(value) not in self._unread and len(self._unread) < EXAMPLES:
                self._unread.append(repr(value))

    def _read_dates(self, times: pl.Series) -> pl.DataFrame:
        if isinstance(times.dtype, pl.Date):
            times = times.cast(pl.Datetime("us"))
        assert isinstance(times.dtype, pl.Datetime)
        per_second = PER_SECOND[times.dtype.time_unit]
        if times.dtype.time_zone is None:
            times = to_utc(times, self._settings.timezone)
        return split_seconds(times.to_physical(), per_second)

    def _read_numbers(self, times: pl.Series, label: str) -> pl.DataFrame:
        if times.dtype.is_decimal():
            times = times.cast(pl.Float64)
        if times.dtype == pl.Float32 and (times.abs() > 2**24).any():
            logger.warning(
                "%s: %s was saved as float32, which keeps only seven digits: current times are "
                "rounded to about two minutes. Save it as whole numbers or float64.",
                label,
                self._column,
            )
        if times.dtype.is_float():
            times = times.cast(pl.Float64)
            times = times.set(~times.is_finite(), None)
        else:
            times = times.cast(pl.Int64, strict=False)
        if self._settings.time_format is not None:
            whole = times.cast(pl.Int64, strict=False)
            return self._texts.read_format(whole.cast(pl.String), self._settings.time_format)
        if times.null_count() == len(times):
            return no_times(len(times))
        if self._settings.time_unit is None:
            self._refuse_looks(times, label)
        if self._unit is None:
            self._unit = self._find_unit(times)
            if self._unit != "s":
                logger.info("Times in %s count %s since 1970", self._column, self._unit)
        return self._count_seconds(times, self._unit)

    def _count_seconds(self, times: pl.Series, unit: TimeUnit) -> pl.DataFrame:
        """Convert numbers in a unit to seconds; a number that is no plausible time becomes null."""
        if unit in PER_SECOND:
            found = split_seconds(times, PER_SECOND[unit])
        else:
            start = EXCEL_EPOCH if unit == "excel" else 0
            # Days as decimals are inexact in their last digits, so they are rounded to
            # milliseconds.
            parts = ((times.cast(pl.Float64) - start) * (SECONDS[unit] * 1000)).round()
            found = split_seconds(parts.cast(pl.Int64, strict=False), 1000)
            if unit == "excel":
                local = pl.from_epoch(found["timestamp"], "s").dt.cast_time_unit("us")
                utc = to_utc(local, self._settings.timezone)
                found = found.with_columns(utc.dt.epoch("s").alias("timestamp"))
        is_odd = pl.col("timestamp").abs() > MAX_SECONDS
        if self._settings.time_unit is None and unit != "s":
            # A number of a coarser unit, read in a finer unit, would lie in 1970. It becomes null.
            is_odd |= (pl.col("timestamp") < FIRST_SECONDS) & (pl.lit(times) >= FIRST_SECONDS)
        return found.with_columns(pl.when(~is_odd).then(pl.all()))

    def _find_unit(self, numbers: pl.Series) -> TimeUnit:
        """Find the unit of a column from these rows or, if they leave it open, from all files."""
        unit, is_settled = _judge_unit(numbers)
        if is_settled or self._other_files is None:
            return unit
        more = [
            part.cast(pl.Float64, strict=False).drop_nulls()
            for part in self._other_files()
            if part.dtype == pl.String or part.dtype.is_numeric()
        ]
        others = pl.concat(more) if more else numbers
        return _judge_unit(others)[0] if len(others) else unit

    def _refuse_looks(self, times: pl.Series, label: str) -> None:
        known = times.drop_nulls()
        # A counter that began near 0 may reach numbers that look like a date.
        is_counter = self._unit is not None and 0 <= self._largest < YEAR
        if is_counter or (look := find_look(known)) is None:
            return
        year = year_of(float(known.median()))  # type: ignore[arg-type]
        raise DataError(
            f"{label}: the numbers in {self._column}, such as {known[0]}, look like {look.what}; "
            f"read as seconds they would be in {year}. Set {self._prefix}{look.setting} if "
            f"this is right, or {self._prefix}time_unit=s if they are seconds."
        )

    def _read_text(self, times: pl.Series, label: str) -> pl.DataFrame:
        if self._settings.time_format is not None:
            return self._texts.read_format(times, self._settings.time_format)
        numbers = times.str.to_integer(strict=False)
        if numbers.null_count():
            times = strip_blanks(times)
            numbers = times.str.to_integer(strict=False)
        is_left = numbers.is_null() & times.is_not_null()
        if not is_left.any():
            return self._read_numbers(numbers, label)
        decimals = times.str.replace(r"^(-?\d+),(\d+)$", "$1.$2").cast(pl.Float64, strict=False)
        decimals = decimals.set(~decimals.is_finite(), None)
        num_numbers, num_given = decimals.count(), times.count()
        if num_numbers > (1 - MOST) * num_given:
            # Numbers are read as a column of their own, and the remaining texts as dates.
            are_numbers = decimals.is_not_null()
            all_whole = numbers.null_count() == decimals.null_count()
            found = self._read_numbers(numbers if all_whole else decimals, label)
            left = times.filter(~are_numbers & times.is_not_null())
            if not len(left):
                return found
            others = self._texts.read(times.set(are_numbers, None), label)
            return found.select(
                found[name].fill_null(others[name]).alias(name) for name in found.columns
            )
        # A few numbers among dates, such as 0 or -1, stand for missing times.
        return self._texts.read(times.set(decimals.is_not_null(), None), label)


def _require_timezone(timezone: str, prefix: str) -> None:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):  # The name is malformed, is a folder, or is unknown.
        raise ConfigError(
            f"{prefix}timezone={timezone} is not a known time zone: write it as in Europe/Berlin, "
            "America/New_York or UTC."
        ) from None


def _judge_unit(numbers: pl.Series) -> tuple[TimeUnit, bool]:
    """Return the coarsest unit in which the median of these numbers lies before the year 5138.

    Returns:
        The unit, and whether the numbers are large enough to settle it. Small numbers may be
        anything.
    """
    middle = abs(float(numbers.cast(pl.Float64).median() or 0.0))  # type: ignore[arg-type]
    units: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
    unit: TimeUnit = next((u for u in units if middle < MAX_SECONDS * PER_SECOND[u]), "ns")
    return unit, middle >= FIRST_SECONDS


def describe_type(dtype: pl.DataType) -> str:
    """Return a plain name of a column's type, for messages."""
    names: dict[type[pl.DataType], str] = {
        pl.List: "lists",
        pl.Array: "lists",
        pl.Struct: "structs of fields",
        pl.Binary: "raw bytes",
        pl.Time: "times of day without a date",
        pl.Duration: "durations",
        pl.Boolean: "true or false",
        pl.Object: "objects",
    }
    return next((name for kind, name in names.items() if isinstance(dtype, kind)), str(dtype))
