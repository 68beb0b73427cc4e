"""External ids as arguments: one rule for every list of them.

A bare string is one id, never a list of its letters. Nulls name nothing: they are passed over and
counted. Anything else that is no text is refused, since a number can be written in several ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import pandas as pd

from recgrit.errors import DataError

logger = logging.getLogger(__name__)

# What arguments that name items or users take.
IdList: TypeAlias = Iterable[str | None] | str


class Ids(NamedTuple):
    """Ids that were read.

    Args:
        ids: In the order they came in.
        num_nulls: Nulls among them that were passed over.
    """

    ids: list[str]
    num_nulls: int


def read_ids(ids: object, what: str) -> Ids:
    """The ids that an argument lists.

    Args:
        ids: One id, or several, nulls among them.
        what: What the argument is, for messages, such as "the history 'a'".

    Raises:
        DataError: The argument is no list of ids, or holds something that is no text.

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
                f"Ids are text, but entry {place} of {what} is {_describe(value)}. Write it as it "
                "stands in the data, such as '242'."
            )
    return Ids(read, num_nulls)


def is_null(value: Any) -> bool:
    """Whether a value names nothing; a list never does, whatever it holds."""
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))


def list_ids(ids: object, what: str) -> list[str]:
    """`read_ids`, with the number of nulls logged.

    Raises:
        DataError: The argument is no list of ids, or holds something that is no text.
    """
    read = read_ids(ids, what)
    if read.num_nulls:
        logger.warning("%d nulls in %s are passed over", read.num_nulls, what)
    return read.ids


def _is_iterable(value: Any) -> TypeGuard[Iterable[object]]:
    try:
        iter(value)
    except TypeError:  # An array of no dimension has the method, and refuses.
        return False
    return True


def _describe(value: object) -> str:
    """A value and its type, cut where it is long."""
    kind = type(value).__name__
    # What is nested or large is named by its type alone: writing it out may never end.
    return f"{value!s:.40} ({kind})" if pd.api.types.is_scalar(value) else f"a {kind}"
