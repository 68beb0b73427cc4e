"""Reader of dates that are text: common formats column by column, all others by patterns.

All files of a data set have the same order of day and month. The order is found from all their
rows. If no row settles it, an error asks for the format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import polars as pl

from recgrit.data.filtering import FRACTION
from recgrit.data.time_settings import (
    PER_SECOND,
    TimeSettings,
    no_times,
    split_seconds,
    strip_blanks,
    to_utc,
)
from recgrit.errors import AmbiguousDatesError, ConfigError

logger = logging.getLogger(__name__)

# The most common formats, which Polars parses as whole columns. `PATTERNS` reads all others,
# slower.
FORMATS = (
    *(
        f"{day}{between}%H:%M{seconds}{zone}"
        for day, between in (("%Y-%m-%d", " "), ("%Y-%m-%d", "T"), ("%Y/%m/%d", " "))
        for seconds in (":%S", ":%S%.f", "")
        for zone in ("", "Z", " UTC", "%#z")
    ),
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%b %d, %Y",
    "%d/%b/%Y:%H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S GMT",
    "%a %b %d %H:%M:%S %z %Y",
)
CLOCKS = (" %H:%M:%S", " %H:%M", "", " %I:%M:%S %p", " %I:%M %p", " %H:%M:%S%.f")
SAMPLE = 100
Order = Literal["ymd", "dmy", "mdy"]
ORDER_FORMATS = {"dmy": "%d{0}%m{0}%Y", "mdy": "%m{0}%d{0}%Y"}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"(?P<month>{'|'.join(MONTHS)})[a-z]*\.?"
_CLOCK = (
    r"(?:[ t:,]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<part>\d+))?)?"
    r"(?: ?(?P<half>[ap])\.?m\.?)?)?"
)
_ZONE = r"(?: ?(?P<zone>z|(?:utc|gmt)?(?:[+-]\d{2}:?(?:\d{2})?)|utc|gmt)(?: ?\(?utc\)?)?)?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? )?"
_YEAR = r"(?P<year>\d{4})"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
# Forms of dates whose order of year, month and day is certain. All use the same named groups.
PATTERNS = (
    rf"{_YEAR}[-/. ](?P<month>\d{{1,2}})[-/. ](?P<day>\d{{1,2}}){_CLOCK}{_ZONE}",
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})t(?P<hour>\d{2}):?(?P<minute>\d{2}):?"
    rf"(?P<second>\d{{2}})?(?:[.,](?P<part>\d+))?{_ZONE}",
    rf"{_WEEKDAY}{_DAY}[-/. ]{_MONTH}[-/., ]+{_YEAR}{_CLOCK}{_ZONE}",
    rf"{_WEEKDAY}{_MONTH}[ -]{_DAY},?[ -]+{_YEAR}{_CLOCK}{_ZONE}",
    rf"{_WEEKDAY}{_MONTH} +{_DAY}{_CLOCK}{_ZONE} {_YEAR}",
    rf"{_YEAR}[-/. ]{_MONTH}[-/. ]{_DAY}{_CLOCK}{_ZONE}",
)  # fmt: skip
_OPEN_START = r"^\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})(?:\D|$)"
OPEN_PATTERN = (
    rf"(?P<a>\d{{1,2}})(?P<mark>[-/.])(?P<b>\d{{1,2}})[-/.](?P<c>\d{{4}}|\d{{2}}){_CLOCK}{_ZONE}"
)


class DateTexts:
    """A reader of the text dates of one data set, used file by file.

    Args:
        column: Name of the column of dates, for messages.
        settings: Time settings, such as the time zone of dates that name none.
        prefix: Prefix of the names of settings in messages, such as ``data.table.``.
        other_files: Function that returns the times of all files. It is called if one file leaves
            the order of day and month open. None if there is only one file.
    """

    def __init__(
        self,
        column: str,
        settings: TimeSettings,
        prefix: str,
        other_files: Callable[[], Iterable[pl.Series]] | None,
    ) -> None:
        self._column, self._settings, self._prefix = column, settings, prefix
        self._other_files = other_files
        self._order: Order | None = None

    def read(self, times: pl.Series, label: str) -> pl.DataFrame:
        """Read dates without surrounding blanks as seconds and fractions; other texts become null.

        Args:
            times: Column of dates as text.
            label: Name of the file, for messages.

        Raises:
            AmbiguousDatesError: The dates fit with the day first and with the month first, or some
                rows have the day first and others the month.
        """
        found = no_times(len(times))
        formats: Iterable[str] = FORMATS
        is_open = times.str.contains(_OPEN_START)
        if is_open.any():
            if self._order is None:
                self._order = self._find_order(times.filter(is_open), label)
            if self._order != "ymd":
                day = [ORDER_FORMATS[self._order].format(mark) for mark in "/.-"]
                formats = [*FORMATS, *(d + clock for d in day for clock in CLOCKS)]
        unit: Literal["us", "ns"] = "ns" if times.str.contains(r"\.\d{7}").any() else "us"
        for form in formats:
            left = found["timestamp"].is_null() & times.is_not_null()
            if not left.any():
                return found
            sample = times.filter(left).head(SAMPLE)
            if self._parse(sample, form, unit)["timestamp"].null_count() == len(sample):
                continue
            texts = times if left.all() else times.set(~left, None)
            parsed = self._parse(texts, form, unit)
            found = found.select(found[name].fill_null(parsed[name]) for name in found.columns)
        left = (found["timestamp"].is_null() & times.is_not_null()).arg_true()
        if not len(left):
            return found
        parsed = self.read_any(times.gather(left), label)
        return found.select(
            found[name].scatter(left, parsed[name]).alias(name) for name in found.columns
        )

    def _parse(self, texts: pl.Series, form: str, unit: Literal["us", "ns"]) -> pl.DataFrame:
        """Read texts in exactly this format with years of four digits; other texts become null."""
        if "%H" not in form and "%I" not in form:
            stamps = texts.str.to_date(form, strict=False).cast(pl.Datetime("us"))
        elif "%.f" in form and unit == "ns":
            stamps = texts.str.to_datetime(form, time_unit="ns", strict=False)
            # Nanoseconds cover few centuries: a year outside of them is read as another year.
            coarse = texts.str.to_datetime(form, time_unit="us", strict=False)
            stamps = stamps.set(stamps.dt.epoch("s") != coarse.dt.epoch("s"), None)
        else:
            stamps = texts.str.to_datetime(form, time_unit="us", strict=False)
        stamps = stamps.set(stamps.dt.year() < 1000, None)
        parts = "ns" if "%.f" in form and unit == "ns" else "us"
        has_zone = "z" in form
        is_placed = has_zone or form.endswith(("Z", "UTC", "GMT"))
        if has_zone:
            stamps = stamps.dt.convert_time_zone("UTC")
        utc = to_utc(stamps, "UTC" if is_placed else self._settings.timezone)
        return split_seconds(utc.to_physical(), PER_SECOND[parts])

    def read_any(self, times: pl.Series, label: str) -> pl.DataFrame:
        """Read dates in any form of `PATTERNS` and `OPEN_PATTERN`; other texts become null."""
        texts = times.str.to_lowercase().str.replace_all(r"\s+", " ")
        found = no_times(len(times))
        for pattern in PATTERNS:
            parsed = self._assemble(_extract(texts, pattern))
            found = found.select(found[name].fill_null(parsed[name]) for name in found.columns)
        fields = _extract(texts, OPEN_PATTERN)
        is_open = fields["a"].is_not_null()
        if not is_open.any():
            return found
        if self._order is None:
            self._order = self._find_order(times, label)
        parsed = self._assemble(_order_fields(fields, self._order))
        return found.select(found[name].fill_null(parsed[name]) for name in found.columns)

    def _find_order(self, times: pl.Series, label: str) -> Order:
        """Return the one order of day, month and year in which all dates of all files are valid."""
        orders = _possible_orders(times)
        if len(orders) > 1 and self._other_files is not None:
            for more in self._other_files():
                if more.dtype == pl.String:
                    orders = [
                        order for order in orders if order in _possible_orders(strip_blanks(more))
                    ]
                if len(orders) <= 1:
                    break
        examples = ", ".join(repr(text) for text in times.unique(maintain_order=True).head(3))
        if len(orders) == 1:
            logger.info(
                "Dates in %s, such as %s, are read with the %s first",
                self._column,
                examples,
                {"d": "day", "m": "month", "y": "year"}[orders[0][0]],
            )
            return orders[0]
        mark = _extract(times.str.to_lowercase(), OPEN_PATTERN)["mark"].drop_nulls()[0]
        clock = " %H:%M" if times.str.contains(r"\d:\d").any() else ""
        clock += ":%S" if clock and times.str.contains(r"\d:\d\d:\d").any() else ""
        short = times.str.contains(r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{2}(?:\D|$)").any()
        american, european = (
            (ORDER_FORMATS[order].format(mark) + clock).replace("%Y", "%y" if short else "%Y")
            for order in ("mdy", "dmy")
        )
        raise AmbiguousDatesError(
            f"{label}: the dates in {self._column}, such as {examples}, "
            + (
                "can be read with the month or the day first, and no row shows which."
                if orders
                else "have the month first in some rows and the day first in others."
            ),
            f"Set {self._prefix}time_format='{american}' (US) or "
            f"{self._prefix}time_format='{european}' (European).",
            (american, european),
        )

    def _assemble(self, fields: pl.DataFrame) -> pl.DataFrame:
        """Convert the fields that `_extract` found to seconds and fractions."""

        def number(name: str) -> pl.Expr:
            if name not in fields.columns:
                return pl.lit(0)
            return pl.col(name).cast(pl.Int64, strict=False).fill_null(0)

        has_clock = {"hour", "half"} <= set(fields.columns)
        hour = number("hour")
        if has_clock:
            hour = (
                pl.when(pl.col("half") == "p").then(hour % 12 + 12)
                .when(pl.col("half") == "a").then(hour % 12).otherwise(hour)
            )  # fmt: skip
        stamp = pl.format(
            "{}-{}-{} {}:{}:{}",
            pl.col("year"),
            *(
                number(name).cast(pl.String).str.zfill(2) if name != "hour"
                else hour.cast(pl.String).str.zfill(2)
                for name in ("month", "day", "hour", "minute", "second")
            ),
        ).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)  # fmt: skip
        part = pl.concat_str(pl.lit("0."), "part").cast(pl.Float64).fill_null(0.0)
        zone = pl.col("zone").str.replace(r"^(?:utc|gmt)", "")
        digits = zone.str.replace_all(":", "").str.slice(1)
        offset = digits.str.slice(0, 2).cast(pl.Int64, strict=False) * 3600
        offset += digits.str.slice(2, 2).cast(pl.Int64, strict=False).fill_null(0) * 60
        offset = pl.when(zone.str.starts_with("-")).then(-offset).otherwise(offset)
        frame = fields.select(
            stamp.alias("local"), part.alias(FRACTION), offset.fill_null(0).alias("offset"),
            pl.col("zone").is_not_null().alias("has_zone"),
        )  # fmt: skip
        there = to_utc(frame["local"], self._settings.timezone).dt.epoch("s")
        here = frame["local"].dt.epoch("s") - frame["offset"]
        seconds = pl.select(pl.when(frame["has_zone"]).then(here).otherwise(there)).to_series()
        return pl.DataFrame(
            {"timestamp": seconds, FRACTION: frame[FRACTION].set(seconds.is_null(), None)}
        )

    def read_format(self, times: pl.Series, form: str) -> pl.DataFrame:
        """Read texts in the format that the user has set; other texts become null.

        Raises:
            ConfigError: The format cannot be used.
        """
        texts = strip_blanks(times)
        try:
            if "%H" in form or "%I" in form or "%T" in form or "%s" in form or "%R" in form:
                # Polars refuses a format that has hours and no minutes.
                if not any(code in form for code in ("%M", "%T", "%R", "%s")):
                    texts, form = texts + ":00", form + ":%M"
                stamps = texts.str.to_datetime(form, time_unit="ns", strict=False)
            else:
                if not any(code in form for code in ("%d", "%e", "%j", "%F", "%D")):
                    texts, form = texts + "-01", form + "-%d"
                if not any(code in form for code in ("%m", "%b", "%B", "%h", "%j", "%F", "%D")):
                    texts, form = texts + "-01", form + "-%m"
                stamps = texts.str.to_date(form, strict=False).cast(pl.Datetime("ns"))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise ConfigError(
                f"{self._prefix}time_format={self._settings.time_format!r} cannot be used: "
                f"{str(error).splitlines()[0]}. Write it as in '%m/%d/%Y %H:%M'."
            ) from None
        assert isinstance(stamps.dtype, pl.Datetime)
        if stamps.dtype.time_zone is None:
            stamps = to_utc(stamps, self._settings.timezone)
        return split_seconds(stamps.to_physical(), PER_SECOND["ns"])


def _extract(texts: pl.Series, pattern: str) -> pl.DataFrame:
    """Return the named groups of a pattern as columns, with nulls for texts that do not match."""
    fields = texts.str.extract_groups(f"^{pattern}$").struct.unnest()
    missing = [name for name in ("part", "zone") if name not in fields.columns]
    fields = fields.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in missing)
    if "month" in fields.columns and "jan|" in pattern:
        numbers = {name: str(number) for number, name in enumerate(MONTHS, start=1)}
        fields = fields.with_columns(pl.col("month").replace_strict(numbers, default=None))
    return fields


def _order_fields(fields: pl.DataFrame, order: Order) -> pl.DataFrame:
    """Rename three numbers to day, month and year in an order, and complete years of two digits."""
    names = {"y": "year", "m": "month", "d": "day"}
    ordered = fields.rename(
        {old: names[new] for old, new in zip(("a", "b", "c"), order, strict=True)}
    )
    year = pl.col("year").cast(pl.Int64, strict=False)
    full = pl.when(year < 69).then(year + 2000).when(year < 100).then(year + 1900).otherwise(year)
    return ordered.with_columns(full.cast(pl.String).alias("year"))


def _possible_orders(times: pl.Series) -> list[Order]:
    """Return the orders of day, month and year in which every date is valid.

    Texts that are valid in no order are ignored.
    """
    days = times.str.strip_chars().str.extract(r"^([^\s,T:]+)").unique()
    days = days.filter(days.str.contains(_OPEN_START))
    fields = _extract(days, OPEN_PATTERN).select("a", "b", "c").drop_nulls()
    numbers = fields.with_columns(pl.col("a", "b", "c").cast(pl.Int64))
    short = fields["c"].str.len_chars() == 2

    def fits(order: Order) -> pl.Series:
        day, month = ("abc"[order.index(name)] for name in "dm")
        found = numbers.select(
            pl.col(day).is_between(1, 31) & pl.col(month).is_between(1, 12)
        ).to_series()
        return found & short if order == "ymd" else found

    each = {order: fits(order) for order in get_args(Order)}
    any_order = each["ymd"] | each["dmy"] | each["mdy"]
    return [order for order, fit in each.items() if not (any_order & ~fit).any()]
