"""Test targets in groups: by history, by popularity, of new users, by what is known of users.

An average over all targets hides whom a model serves badly. Each grouping is a mapping from a label
to bool [T], the targets that are meant; groups without targets are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError
from recgrit.evaluation.report import EvaluationReport

# Where a group of targets begins and ends, both included.
HISTORY_BINS = ((1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
POPULARITY_BINS = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, 99), (100, None))
COLD_BINS = ((0, 0), (1, None))
NEW_BINS = ((0, 0), (1, 1))
# Values of a column that have a group of their own, the most frequent; quarters of numbers.
MAX_SEGMENTS = 12
QUARTERS = (0.25, 0.5, 0.75)
# Users of whom a column says nothing, and those of all rarer values.
UNKNOWN, OTHERS = "unknown", "others"
# What groupings by a column of the users are called, before the name of the column.
SEGMENT = "segment: "

# bool [T], which targets are meant.
Members = npt.NDArray[np.bool_]
Groups = dict[str, Members]


def group_targets(report: EvaluationReport, split: SequenceSplit) -> dict[str, Groups]:
    """Targets of test by length of history and by popularity; cold ones, and those of new users.

    Popularity is how often the target stands in the training parts; a cold target never does. A new
    user has nothing in them: all of the history came later.

    Args:
        report: Says which targets were measured.
        split: The split they were measured on.

    Returns:
        The groups, by ``history``, ``popularity``, ``cold`` and ``new``.
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

    Text has a group for each of its 12 most frequent values, and one for all others; numbers of
    more than 12 values are cut at their quartiles over the users of the report.

    Args:
        report: Says which targets were measured.
        users: Row i is ``user_idx`` i; None where nothing is known of users.
        columns: Which columns.

    Returns:
        The groups, by ``segment: `` and the name of the column.

    Raises:
        ConfigError: `require_segments`.

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
    """Refuse segments that no table of users has.

    Raises:
        ConfigError: There is no table, or it has no such column, or one of lists.
    """
    if not columns:
        return
    if users is None:
        raise ConfigError(
            f"evaluation.segments names {columns[0]}, but nothing is known of users: name a table "
            "of them with data.table.users_path, or leave the segments out."
        )
    known = [name for name in users.columns if name != "user_id"]
    for name in columns:
        if name not in known:
            raise ConfigError(
                f"evaluation.segments names {name}, which the table of users lacks; it has "
                f"{', '.join(known)}."
            )
        if users.schema[name].is_nested():
            raise ConfigError(
                f"evaluation.segments names {name}, which holds lists: a user belongs to one "
                "segment. Name a column of single values."
            )


def _segment(values: pl.Series) -> Groups:
    """One column, a value a target."""
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
    # A value may be called as one of ours.
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
