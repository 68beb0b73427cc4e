"""Warnings about a shop's data that look like a mistake, or like columns that reveal the future."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from recgrit.data.filtering import find_repeats
from recgrit.data.id_columns import STAND_INS

DAY = 86_400
_CLOCK = r"^\s*\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*$"
# User ids that stand for many people, such as a till, or everybody who was not logged in.
NOBODY = {*STAND_INS, "guest", "anonymous", "anon", "unknown", "test", "0", "-1", ""}
# Names of item columns that may be counted from interactions, also from those of the test period.
_COUNTED = re.compile(
    r"(?i)(best.?sell|popular|rank|views|clicks|sales|sold|orders|purchases|rating|reviews|trend)"
)


class Repeats(NamedTuple):
    """How often users interact with the same item again.

    Args:
        share: Share of the interactions whose item the user interacted with before.
        soon: Share of these interactions that are less than a day after the user's previous
            interaction with the item.
    """

    share: float
    soon: float


def measure_repeats(rows: pl.DataFrame) -> Repeats:
    """Measure how often users interact with the same item again.

    Args:
        rows: Interactions, with columns ``user_id``, ``item_id`` and ``timestamp`` (seconds),
            without exact duplicates.
    """
    again = find_repeats(rows).sort("user_id", "item_id", "timestamp")
    pair = ["user_id", "item_id"]
    gaps = again.select(pl.col("timestamp").diff().over(pair).alias("gap"))["gap"].drop_nulls()
    if gaps.is_empty():
        return Repeats(0.0, 0.0)
    return Repeats(len(gaps) / rows.height, int((gaps < DAY).sum()) / len(gaps))


def find_clock(log: pl.DataFrame) -> str | None:
    """Return the column of a log that has times of day; None if there is none.

    Args:
        log: Some rows of the log, with all columns.
    """
    for name, column in log.to_dict().items():
        given = column.drop_nulls()
        if given.dtype == pl.Time and len(given):
            return name
        if given.dtype == pl.String and len(given) and bool(given.str.contains(_CLOCK).all()):
            return name
    return None


def suspect_log(
    rows: pl.DataFrame,
    num_read: int,
    num_duplicates: int,
    user_ids: pl.Series,
    clock: str | None,
) -> Iterator[str]:
    """Return warnings about a log, one sentence or two for each problem.

    Args:
        rows: Interactions with codes for ids, without exact duplicates.
        num_read: Number of rows in the files.
        num_duplicates: Number of exact duplicates among these rows.
        user_ids: User id of each code.
        clock: Column with times of day. None if there is none.
    """
    if num_duplicates > 0.01 * num_read:
        yield (
            f"{num_duplicates:,} of {num_read:,} rows repeat user, item and time of another: the "
            "repeats are ignored. Was the log joined with another table, or exported twice?"
        )
    times = rows["timestamp"]
    now = datetime.now(UTC).timestamp()
    if num_later := int((times > now + DAY).sum()):
        yield f"{num_later:,} times are in the future: a wrong unit or time zone, or test entries?"
    if bool((times % DAY == 0).all()):
        yield (
            "All times are midnights: the order within a day is that of the file. If the file has "
            "no such order, an item counted as the next one may have come earlier."
        ) + (
            f" The column {clock} holds times of day: write the date and that time into one column."
            if clock is not None
            else ""
        )
    if num_old := int((times < _seconds(1990)).sum()):
        yield f"{num_old:,} times are before 1990: are they times? data.since leaves them out."
    per_user = rows.group_by("user_id").len().sort(["len", "user_id"], descending=[True, False])
    first, largest = per_user.row(0)
    name = user_ids[first]
    usual = float(per_user["len"].quantile(0.99) or 0)
    if largest > max(20 * usual, 0.01 * rows.height, 100):
        yield (
            f"The user {name!r} has {largest:,} of {rows.height:,} interactions: a bot, a till, or "
            "all visitors without a login? Remove such rows."
        )
    nobody = [
        user_ids[code] for code in per_user["user_id"].head(50)
        if user_ids[code].strip().lower() in NOBODY and user_ids[code] != name
    ]  # fmt: skip
    if name.strip().lower() in NOBODY:
        nobody.insert(0, name)
    if nobody:
        yield (
            f"The user id{'s' * (len(nobody) > 1)} {', '.join(map(repr, nobody))} seem"
            f"{'s' * (len(nobody) == 1)} to mean unknown users: their interactions would "
            "be one long history. Remove such rows."
        )
    lonely = int((per_user["len"] == 1).sum())
    if lonely > 0.7 * per_user.height:
        yield (
            f"{lonely:,} of {per_user.height:,} users have one interaction: are these visits or "
            "orders rather than customers (data.table.user_id)?"
        )


def suspect_items(items: pl.DataFrame, log_ids: pl.Series, used: tuple[str, ...]) -> Iterator[str]:
    """Return warnings about an item table, one sentence for each problem.

    Args:
        items: Item table, with columns ``item_id`` and ``title``.
        log_ids: Ids of the items in the log, without repeats.
        used: Columns that the item texts are made of.
    """
    counted = [name for name in used if _COUNTED.search(name)]
    if counted:
        yield (
            f"The item column {counted[0]} may be computed from interactions, including those "
            "after the test days: leave it out with embedding.template unless it is older."
        )
    unknown = int((~log_ids.is_in(items["item_id"].implode())).sum())
    if unknown:
        yield f"{unknown:,} of {len(log_ids):,} items of the log are not in the item table."
    titles = items["title"].drop_nulls()
    if len(titles) > 10 and titles.n_unique() < 0.8 * len(titles):
        yield (
            f"{len(titles) - titles.n_unique():,} of {len(titles):,} items repeat the title "
            "of another: are they variants (sizes, colours) of one product that should be one item?"
        )
    if titles.is_empty() and items.height:
        yield "No item has a title: items are called by their ids. Set data.table.title=COLUMN."


def _seconds(year: int) -> float:
    return datetime(year, 1, 1, tzinfo=UTC).timestamp()
