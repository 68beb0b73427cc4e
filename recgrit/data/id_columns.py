"""Checks of the id columns of a user's own tables.

Ids are text or whole numbers and are never altered. Ids that another program has damaged raise an
error.
"""

from __future__ import annotations

import logging
from typing import Literal

import polars as pl

from recgrit.data.times import describe_type
from recgrit.errors import DataError

logger = logging.getLogger(__name__)

EXAMPLES = 3
# Forms of damaged ids: pandas writes whole numbers with gaps as decimals, and spreadsheets write
# long numbers with exponents.
_DECIMAL = r"^-?\d+\.\d+$"
_WHOLE_DECIMAL = r"^-?\d+\.0+$"
_WHOLE_COMMA = r"^-?\d+,0+$"
_SCIENTIFIC = r"^-?\d[.,]\d+[eE]\+\d+$"
_WHOLE = r"^-?\d+$"
_ZEROS = r"^0+(\d)"
# A warning is logged if the item table describes a smaller share of the log's items.
FEW = 0.5
# Settings that name the columns of item ids in the log and in the item table, for messages.
ITEM_SETTINGS = "data.table.item_id (the log's) and data.table.items_id (the item table's)"
# The setting that names the column of the users' ids, in both kinds of files.
USER_SETTINGS = "data.table.user_id"
STAND_INS = ("nan", "null", "none", "na", "n/a", "\\n", "<na>", "undefined")


def as_ids(ids: pl.Series, label: str, column: str) -> pl.Series:
    """Return a column of ids as text or whole numbers.

    A whole number stands for the text that it is written as.

    Args:
        ids: Column of any type.
        label: Name of the file, for messages.
        column: Name of the column in the file, for messages.

    Raises:
        DataError: The type of the column cannot hold ids.
    """
    dtype = ids.dtype
    if dtype == pl.String or dtype.is_integer():
        return ids
    if isinstance(dtype, pl.Categorical | pl.Enum) or dtype == pl.Null:
        return ids.cast(pl.String)
    if isinstance(dtype, pl.Decimal) and dtype.scale == 0:
        return ids.cast(pl.String)
    if dtype.is_float() or dtype.is_decimal():
        raise DataError(
            f"{label} has ids with decimals in the column {column} (as pandas writes whole "
            f"numbers if some are missing), such as {_examples(ids)}. Save it as whole numbers or "
            "text."
        )
    raise DataError(
        f"{label}: the column {column} holds {describe_type(dtype)}, which cannot be ids, such as "
        f"{_examples(ids)}. Expected text or whole numbers."
    )


def refuse_damaged_ids(ids: pl.Series, label: str, column: str) -> None:
    """Raise an error if some program has written whole numbers as decimals or with exponents.

    Ids such as ``1.5`` beside ``7`` are accepted as text.

    Args:
        ids: Distinct ids as text.
        label: Names of the files, for messages.
        column: Name of the column in the files, for messages.

    Raises:
        DataError: The ids are damaged.
    """
    given = ids.drop_nulls()
    if given.is_empty():
        return
    given = given.str.strip_chars()
    decimals = given.filter(given.str.contains(_DECIMAL))
    whole = given.filter(given.str.contains(_WHOLE_DECIMAL))
    scientific = given.filter(given.str.contains(_SCIENTIFIC))
    commas = given.filter(given.str.contains(_WHOLE_COMMA))
    if len(decimals) == len(given) or (len(whole) and len(whole) == len(decimals)):
        damaged, how = decimals, "decimals (as pandas writes whole numbers if some are missing)"
    elif len(commas) and len(commas) + int(given.str.contains(_WHOLE).sum()) == len(given):
        # This branch needs all ids to be numbers. Otherwise 7,0 may be a pair of numbers.
        damaged, how = commas, "decimals (as spreadsheets with decimal commas write whole numbers)"
    elif len(scientific):
        damaged, how = scientific, "exponents (as spreadsheets write long numbers)"
    else:
        return
    raise DataError(
        f"{label} has ids with {how} in the column {column}, such as {_examples(damaged)}: "
        "read as text, they would not match the same numbers written as whole numbers. Save the "
        "column as whole numbers or text."
    )


def tell_lost_zeros(ids: pl.Series, column: str) -> None:
    """Log a warning if ids differ only in zeros at their start, as in ``007`` and ``7``."""
    padded = ids.filter(ids.str.contains(_ZEROS))
    if padded.is_empty():
        return
    both = padded.filter(_strip_zeros(padded).is_in(ids.implode()))
    if len(both):
        logger.warning(
            "%d ids in %s occur with and without leading zeros, such as %s: they count as "
            "different ids. Some program may have read them as numbers.",
            len(both),
            column,
            ", ".join(f"{a!r} and {b!r}" for a, b in zip(both, _strip_zeros(both), strict=True))[
                :120
            ],
        )


def tell_stand_ins(ids: pl.Series, column: str) -> None:
    """Log a warning if an id is a word that programs write for a missing value, such as ``nan``."""
    found = ids.filter(ids.str.to_lowercase().is_in(STAND_INS))
    if len(found):
        logger.warning(
            "%s has ids that may mean a missing value: %s. They count as ids; leave the cells "
            "empty if the id is missing.",
            column,
            _examples(found),
        )


def require_meeting_ids(
    log: pl.Series,
    described: pl.Series,
    settings: str | None,
    kind: Literal["item", "user"] = "item",
) -> None:
    """Refuse an item or user table without any id of the log, and warn if it has few of them.

    Args:
        log: Distinct ids of the items or users in the log.
        described: Distinct ids in the item table or user table.
        settings: Names of the settings that name the id columns. None for a published format,
            whose files may be parts of a data set: a table without any id of the log is then a
            warning.
        kind: What the ids identify.

    Raises:
        DataError: No id of the log is in the table, and `settings` is given.
    """
    if log.is_empty() or described.is_empty():
        return
    is_met = log.is_in(described.implode())
    num_met = int(is_met.sum())
    if num_met >= FEW * len(log):
        return
    missing, unused = log.filter(~is_met), described.filter(~described.is_in(log.implode()))
    examples = _examples(missing), _examples(unused)
    text = (
        f"{'None' if not num_met else f'Only {num_met:,}'} of the {len(log):,} {kind}s of the log "
        f"{'is' if num_met < 2 else 'are'} described in the {kind} table. The log has ids such as "
        f"{examples[0]}, the {kind} table such as {examples[1]}.{_guess(missing, unused)}"
    )
    if num_met or settings is None:
        others = "are titled by their id" if kind == "item" else "have no values in its columns"
        logger.warning("%s The others %s.", text, others)
        return
    raise DataError(
        f"{text} Name the columns of these ids with {settings}, or leave the {kind} table out."
    )


def _guess(missing: pl.Series, unused: pl.Series) -> str:
    """Return a sentence on why the ids of both sides may differ, or an empty text."""
    forms = {
        "leading zeros, which one side lost": (_strip_zeros(missing), _strip_zeros(unused)),
        "upper and lower case": (missing.str.to_lowercase(), unused.str.to_lowercase()),
        "the text before the number": (
            missing.str.extract(r"(\d+)$"), unused.str.extract(r"(\d+)$")
        ),
    }  # fmt: skip
    for what, (left, right) in forms.items():
        known = left.drop_nulls().is_in(right.drop_nulls().implode())
        if len(known) and int(known.sum()) > len(known) // 2:
            return f" They differ in {what}."
    return ""


def _strip_zeros(ids: pl.Series) -> pl.Series:
    return ids.str.replace(_ZEROS, "$1")


def _examples(ids: pl.Series) -> str:
    return ", ".join(map(repr, ids.drop_nulls().head(EXAMPLES).to_list())) or "none"
