"""Reader of arguments that list external ids, with one rule for all of them.

A string is one id, not a list of its letters. Nulls are skipped and counted. Any other value that
is not text raises an error, because a number can be written in several ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import pandas as pd

from recgrit.errors import DataError

logger = logging.getLogger(__name__)

# Type of arguments that list ids of items or users.
IdList: TypeAlias = Iterable[str | None] | str


class Ids(NamedTuple):
    """The ids that an argument lists.

    Args:
        ids: Ids in the order of the argument.
        num_nulls: Number of nulls that were skipped.
    """

    ids: list[str]
    num_nulls: int


def read_ids(ids: object, what: str) -> Ids:
    """Read the ids that an argument lists.

    Args:
        ids: One id or several ids, possibly with nulls.
        what: Name of the argument for messages, such as "the history 'a'".

    Raises:
        DataError: The argument is not a list of ids, or holds a value that is neither text nor
            null.

    >>> read_ids("242", "the history")
    Ids(ids=['242'], num_nulls=0)
    >>> read_ids(["242", None, "51"], "the history")
    Ids(ids=['242', '51'], num_nulls=1)
    """
    if isinstance(ids, str):
        return Ids([ids], 0)
    if isinstance(ids, Mapping | pd.DataFrame) or not _is_iterable(ids):
        raise DataError(
            f"Expected a list of ids for {what}, such as ['242', '51'], got {_describe(ids)}."
        )
    read, num_nulls = [], 0
    for place, value in enumerate(ids):
        if isinstance(value, str):
            read.append(value)
        elif is_null(value):
            num_nulls += 1
        else:
            raise DataError(
                f"Ids are text, but entry {place} of {what} is {_describe(value)}. Write it as "
                "in the data, such as '242'."
            )
    return Ids(read, num_nulls)


def is_null(value: Any) -> bool:
    """Return whether a value is null; a list is never null."""
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))


def list_ids(ids: object, what: str) -> list[str]:
    """Return the ids that an argument lists, without its nulls.

    If there are nulls, their number is logged as a warning.

    Args:
        ids: One id or several ids, possibly with nulls.
        what: Name of the argument for messages, such as "the history 'a'".

    Raises:
        DataError: The argument is not a list of ids, or holds a value that is neither text nor
            null.
    """
    read = read_ids(ids, what)
    if read.num_nulls:
        logger.warning("%d nulls in %s are ignored", read.num_nulls, what)
    return read.ids


def _is_iterable(value: Any) -> TypeGuard[Iterable[object]]:
    try:
        iter(value)
    except TypeError:  # An array of no dimension has __iter__, but calling it raises an error.
        return False
    return True


def _describe(value: object) -> str:
    """Return a value and its type as text for messages, shortened if the value is long."""
    kind = type(value).__name__
    # A nested value is described by its type alone, because its text may be very long.
    return f"{value!s:.40} ({kind})" if pd.api.types.is_scalar(value) else f"a {kind}"
