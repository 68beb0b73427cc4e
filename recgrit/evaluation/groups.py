"""Groups of test targets by history length, item popularity, new users and user attributes.

A mean over all targets hides for which users and items a model is bad, so metrics are also reported
for groups. A grouping maps a label to bool ``[T]`` (T targets), true for the targets of the group.
Groups without targets are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError
from recgrit.evaluation.report import EvaluationReport

# First and last value of each group, both included. None sets no upper limit.
HISTORY_BINS = ((1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
POPULARITY_BINS = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
COLD_BINS = ((0, 0), (1, None))
NEW_BINS = ((0, 0), (1, 1))
# Largest number of values of a column that have a group of their own. A column with more numbers is
# cut at these quantiles.
MAX_SEGMENTS = 12
QUARTERS = (0.25, 0.5, 0.75)
# Labels of the group of users without a value, and of the group of all rarer values.
UNKNOWN, OTHERS = "unknown", "others"
# Prefix of the names of groupings by a column of the users' table, before the column's name.
SEGMENT = "segment: "

# bool [T], true for the targets of a group.
Members = npt.NDArray[np.bool_]
Groups = dict[str, Members]


def group_targets(report: EvaluationReport, split: SequenceSplit) -> dict[str, Groups]:
    """Group test targets by length of the history, popularity, cold items and new users.

    The popularity of a target is its number of interactions in the training histories. A cold
    target has none. A new user has no interactions in the training histories.

    Args:
        report: Report on test, whose targets are grouped.
        split: Split that the report was measured on.

    Returns:
        The groupings by name: ``history``, ``popularity``, ``cold`` and ``new``.
    """
    sequences = report.sequences
    lengths = split.test_targets[sequences] - split.offsets[sequences]
    counts = split.train_item_counts()[report.per_target["item_idx"].to_numpy()]
    in_training = np.isin(report.users, split.train_pairs()[0]).astype(np.int64)
    return {
        "history": _bin("history", lengths, HISTORY_BINS),
        "popularity": _bin("popularity", counts, POPULARITY_BINS),
        "cold": _bin("cold", counts, COLD_BINS),
        "new": _bin("new", in_training, NEW_BINS),
    }


def group_by_segments(
    report: EvaluationReport, users: pl.DataFrame | None, columns: Sequence[str]
) -> dict[str, Groups]:
    """Group targets by the values of columns of the users' table.

    A column has a group for each of its 12 most frequent values and a group for all others. A
    column of numbers with more than 12 values is cut at the quartiles of its values instead.
    Frequencies and quartiles count each target of the report. Users without a value form the group
    ``unknown``.

    Args:
        report: Report whose targets are grouped.
        users: Table of the users, in which row i is ``user_idx`` i. None if there is no table.
        columns: Names of the columns to group by.

    Returns:
        The groupings by name, which is ``segment: `` followed by the column's name.

    Raises:
        ConfigError: A column cannot be used, see `require_segments`.

    >>> per_target = pl.DataFrame({"user_idx": [0, 1, 2]})
    >>> report = EvaluationReport(per_target, {}, {}, {})
    >>> users = pl.DataFrame({"user_id": ["a", "b", "c"], "plan": ["paid", None, "free"]})
    >>> found = group_by_segments(report, users, ["plan"])
    >>> {label: members.tolist() for label, members in found["segment: plan"].items()}
    {'free': [False, False, True], 'paid': [True, False, False], 'unknown': [False, True, False]}
    """
    require_segments(users, columns)
    if users is None:
        return {}
    return {SEGMENT + name: _segment(users[name].gather(report.users)) for name in columns}


def require_segments(users: pl.DataFrame | None, columns: Sequence[str]) -> None:
    """Check that the users' table has the columns to group by.

    Args:
        users: Table of the users. None if there is no table.
        columns: Names of the columns to group by.

    Raises:
        ConfigError: There is no table, a column is missing, or a column holds lists.
    """
    if not columns:
        return
    if users is None:
        raise ConfigError(
            f"evaluation.segments names {columns[0]}, but there is no table of users: set "
            "data.table.users_path, or remove the segments."
        )
    known = [name for name in users.columns if name != "user_id"]
    for name in columns:
        if name not in known:
            raise ConfigError(
                f"evaluation.segments names {name}, which is not a column of the table of users; "
                f"it has {', '.join(known)}."
            )
        if users.schema[name].is_nested():
            raise ConfigError(
                f"evaluation.segments names {name}, which holds lists, but a user can belong "
                "to only one segment. Name a column of single values."
            )


def _segment(values: pl.Series) -> Groups:
    """Return the groups by the values of one column, of which each target has one."""
    if values.dtype.is_numeric() and values.drop_nulls().n_unique() > MAX_SEGMENTS:
        return _quarters(values)
    texts = values.cast(pl.String)
    sizes = texts.drop_nulls().value_counts().sort(["count", values.name], descending=[True, False])
    largest = sizes[values.name].head(MAX_SEGMENTS)
    groups = {label: _members(texts == label) for label in largest.sort()}
    groups[OTHERS] = _members(~texts.is_in(largest.implode()))
    return _with_unknown(groups, texts)


def _quarters(values: pl.Series) -> Groups:
    numbers = values.cast(pl.Float64)
    edges = sorted({float(numbers.quantile(share) or 0) for share in QUARTERS})
    groups = {}
    for low, high in zip([None, *edges], [*edges, None], strict=True):
        label = f"over {low:g}" if high is None else f"to {high:g}"
        if low is not None and high is not None:
            label = f"over {low:g} to {high:g}"
        above = numbers > low if low is not None else numbers.is_not_null()
        groups[label] = _members(above & (numbers <= high) if high is not None else above)
    return _with_unknown(groups, values)


def _with_unknown(groups: Groups, values: pl.Series) -> Groups:
    unknown = _members(values.is_null())
    # A value of the column may itself be "unknown". Both groups are then united.
    groups[UNKNOWN] = groups.get(UNKNOWN, unknown) | unknown
    return {label: members for label, members in groups.items() if members.any()}


def _members(are: pl.Series) -> Members:
    members: Members = are.fill_null(False).to_numpy()
    return members


def _bin(key: str, values: npt.NDArray[np.int64], bins: Sequence[tuple[int, int | None]]) -> Groups:
    groups = {
        _label(key, low, high): (values >= low) & (values <= (np.inf if high is None else high))
        for low, high in bins
    }
    return {label: members for label, members in groups.items() if members.any()}


def _label(key: str, low: int, high: int | None) -> str:
    if key == "cold":
        return "cold" if high == 0 else "warm"
    if key == "new":
        return "new" if high == 0 else "in training"
    if low == high:
        return "never" if low == 0 else str(low)
    return f"{low}+" if high is None else f"{low}–{high}"
