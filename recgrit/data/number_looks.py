"""Detection of number columns that hold something else than seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

# Share of a column's numbers that have to be of one kind.
MOST = 0.95


@dataclass(frozen=True)
class Look:
    """A kind of numbers that may be times but are not seconds since 1970, such as 20111101.

    Args:
        least: Smallest number of this kind.
        most: Largest number of this kind.
        what: Description of the kind, for messages.
        setting: Setting that reads numbers of this kind.
        layout: Format of a date that is written as such a number. None if the numbers are counts.
    """

    least: float
    most: float
    what: str
    setting: str
    layout: str | None = None


# Kinds in the order in which they are tried. The first that fits is reported.
LOOKS = (
    Look(19000101, 21001231, "dates such as 20111101", "time_format=%Y%m%d", "%Y%m%d"),
    Look(
        19e12, 2101e10, "dates such as 20111101093000", "time_format=%Y%m%d%H%M%S", "%Y%m%d%H%M%S"
    ),
    Look(19e10, 2101e8, "dates such as 201111010930", "time_format=%Y%m%d%H%M", "%Y%m%d%H%M"),
    Look(19e8, 2101e6, "dates such as 2011110109", "time_format=%Y%m%d%H", "%Y%m%d%H"),
    Look(190001, 210012, "months such as 201111", "time_format=%Y%m", "%Y%m"),
    Look(1900, 2100, "years", "time_format=%Y", "%Y"),
    Look(32874, 54789, "the day numbers of spreadsheets (40848 is 2011-11-01)", "time_unit=excel"),
    Look(7305, 25567, "days since 1970", "time_unit=d"),
    Look(175_320, 613_608, "hours since 1970", "time_unit=h"),
    Look(10_519_200, 36_816_480, "minutes since 1970", "time_unit=min"),
)  # fmt: skip


def find_look(numbers: pl.Series) -> Look | None:
    """Return the kind of most of these numbers.

    None means that they can be seconds, or fractions of a second, counted since 1970.
    """
    for look in LOOKS:
        inside = numbers.filter(numbers.is_between(look.least, look.most))
        if len(inside) < MOST * len(numbers):
            continue
        if look.layout is None or _are_dates(inside, look.layout):
            return look
    return None


def _are_dates(numbers: pl.Series, layout: str) -> bool:
    """Return whether most of these numbers are dates in this layout."""
    whole = numbers.cast(pl.Int64, strict=False)
    if (whole != numbers).any():
        return False
    text = whole.cast(pl.String)
    two = [text.str.slice(place, 2).cast(pl.Int64, strict=False) for place in (4, 6, 8, 10, 12)]
    num_fields = layout.count("%") - 1
    bounds = ((1, 12), (1, 31), (0, 23), (0, 59), (0, 59))
    fits = pl.Series([True]).new_from_index(0, len(whole))
    for values, (low, high) in list(zip(two, bounds, strict=True))[:num_fields]:
        fits &= values.is_between(low, high).fill_null(False)
    return int(fits.sum()) >= MOST * len(whole)


def year_of(seconds: float) -> str:
    """Return the year that is this number of seconds after 1970, as text for messages."""
    year = int(1970 + seconds / (365.2425 * 86400))
    return f"the year {year}"
