"""Reader of tables of items and users, used for training and for items that join later.

The value of a cell depends on no other cell. An item therefore gets the same text in a file of the
whole catalogue and in a file of three new items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from recgrit.data.decimals import read_decimals
from recgrit.data.id_columns import as_ids, refuse_damaged_ids
from recgrit.data.sources.cleaning import CleanRows, clean_items, clean_text
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.reading import show_names
from recgrit.data.sources.table_files import TableFile, find_tables, open_table
from recgrit.data.times import describe_type
from recgrit.errors import DataError

logger = logging.getLogger(__name__)

# Names of the first two columns of the result, for any names in the files.
OWN = ("item_id", "title")
USER_ID = "user_id"
# Names that no column has: for line numbers, and temporarily for a column that is named `line`.
LINE, FIELD_LINE = "\0", "\0line"
# Pattern of the cells that `clean_text` may change.
_UNTIDY = r"[&<{}()\t\r\n\x0b\x0c]|\s\s|^\s|\s$|aPageStart"
NO_ITEMS = CleanRows(
    pl.DataFrame(schema=dict.fromkeys(OWN, pl.String)), num_read=0, num_malformed=0
)


def read_item_table(
    files: Sequence[Path],
    *,
    item_id: str,
    title: str,
    text: TextSettings,
    max_malformed_share: float,
    or_own_names: bool = False,
) -> CleanRows:
    """Read the items of some files: ``item_id``, ``title`` (null if unknown) and all other columns.

    A column that is named ``item_id`` or ``title`` but is not the chosen one gets ``_column``
    appended to its name. Columns whose type has no meaning in a text, such as bytes and structs,
    are left out and logged.

    Args:
        files: Files with one row per item.
        item_id: Name of the column of ids.
        title: Name of the column of titles. The column ``title`` may be missing, any other must
            exist.
        text: Settings of how text files are written.
        max_malformed_share: Largest share of rows without an id.
        or_own_names: Whether ``item_id`` and ``title`` are accepted as names of the columns too.

    Raises:
        DataError: A file cannot be read, lacks a column, has two different rows for an item, or
            holds ids or titles of a type that is not allowed.
    """
    parts, num_unsplit = [], 0
    for path in files:
        for place in find_tables(path):
            table = open_table(place, [item_id], text, setting_of="item_columns")
            if or_own_names and item_id not in table.columns and "item_id" in table.columns:
                logger.info("%s has no column %s: reading item_id instead", place.label, item_id)
                table = open_table(place, ["item_id"], text, setting_of="item_columns")
            logger.info("%s: %s", place.label, table.describe())
            frame, bad = _read_file(table, item_id, title, text, or_own_names=or_own_names)
            parts.append(frame)
            num_unsplit += bad
    clean = _join(parts, files, item_id, "item_id", max_malformed_share)
    return replace(
        clean,
        num_read=clean.num_read + num_unsplit,
        num_malformed=clean.num_malformed + num_unsplit,
    )


def read_user_table(
    files: Sequence[Path], *, user_id: str, text: TextSettings, max_malformed_share: float
) -> pl.DataFrame:
    """Read the users of some files: ``user_id``, each once, then all other columns.

    Columns are read as those of items are. A column that is named ``user_id`` but is not the chosen
    one gets ``_column`` appended to its name.

    Args:
        files: Files with one row per user.
        user_id: Name of the column of ids.
        text: Settings of how text files are written.
        max_malformed_share: Largest share of rows without an id.

    Raises:
        DataError: A file cannot be read, lacks a column, or has two different rows for a user.
    """
    parts = []
    for path in files:
        for place in find_tables(path):
            table = open_table(place, [user_id], text)
            logger.info("%s: %s", place.label, table.describe())
            parts.append(_read_file(table, user_id, None, text, or_own_names=False)[0])
    return _join(parts, files, user_id, USER_ID, max_malformed_share).frame


def _join(
    parts: Sequence[pl.DataFrame],
    files: Sequence[Path],
    column: str,
    own: str,
    max_malformed_share: float,
) -> CleanRows:
    """Concatenate the rows of all files, with each id once."""
    try:
        rows = pl.concat(parts, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"The files {files[0]} to {files[-1]} hold columns of different types "
            f"({str(error).splitlines()[0]}). Save them with the same types."
        ) from None
    label = str(files[0])
    refuse_damaged_ids(rows[own].cast(pl.String), label, column)
    # `clean_items` uses the name `line` for line numbers.
    renamed = {"line": FIELD_LINE, LINE: "line"}
    rows = rows.rename({old: new for old, new in renamed.items() if old in rows.columns})
    clean = clean_items(rows, label, f"a {column}", max_malformed_share, id_name=own)
    return replace(clean, frame=clean.frame.rename({FIELD_LINE: "line"}, strict=False))


def _read_file(
    table: TableFile, id_name: str, title: str | None, text: TextSettings, *, or_own_names: bool
) -> tuple[pl.DataFrame, int]:
    """Read the columns of one file, after line number, id and title.

    Without ``title`` the file is a table of users. The second result is the number of lines that
    could not be split.
    """
    label, columns = table.label, table.columns
    own = USER_ID if title is None else "item_id"
    id_column = own if or_own_names and id_name not in columns and own in columns else id_name
    title_column = title
    if title is not None and or_own_names and title not in columns and "title" in columns:
        title_column = "title"
    missing = [name for name in (id_column,) if name not in columns]
    if title_column not in (None, "title", *columns):
        missing.append(str(title_column))
    if missing:
        setting = "title" if missing[0] == title_column else "items_id"
        raise DataError(
            f"{label} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{show_names(columns)}. "
            + (
                "Give it the name it has in the interactions (data.table.user_id)."
                if title is None
                else f"Name yours as in data.table.{setting}=COLUMN."
            )
        )
    meant = [name for name in (id_column, title_column) if name is not None]
    table.refuse_repeated(meant)
    if title_column is not None and title_column not in columns:
        logger.warning(
            "%s has no column title, so items are titled by their id; it has %s. Name one with "
            "data.table.title=COLUMN.",
            label,
            show_names([name for name in columns if name != id_column]),
        )
    others = [name for name in columns if name not in meant]
    parts, bad = [], pl.Series("line", [], pl.Int64)
    for part in table.rows(columns):
        parts.append(part.frame.insert_column(0, part.lines.alias(LINE)))
        bad = bad.append(part.unsplit)
    schema = {LINE: pl.Int64, **dict.fromkeys(columns, pl.String)}
    frame = pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame(schema=schema)
    first = min(bad.to_list(), default=0)
    if len(bad):
        logger.warning(
            "%s: %d lines have too many or too few fields and are left out, the first on line %d",
            label,
            len(bad),
            first,
        )
    if len(bad) > max(1, frame.height // 20):
        raise DataError(
            f"{label}: {len(bad)} of {len(bad) + frame.height} lines do not have "
            f"{len(columns)} fields like the header, the first on line {first}. Set "
            "data.table.separator or data.table.quote if the detected ones are wrong."
        )
    ids = as_ids(frame[id_column], label, id_column).cast(pl.String).alias(own)
    named = [frame[LINE], ids]
    if title_column is not None:
        named.append(_titles(frame, title_column, label))
    left_out = []
    taken = {own} if title is None else {*OWN}
    for name in others:
        column = _tidy(frame[name], name, text, label)
        if column is None:
            left_out.append(f"{name} ({describe_type(frame.schema[name])})")
            continue
        new = name
        while new in taken:
            new += "_column"
        taken.add(new)
        named.append(column.alias(new))
    if left_out:
        logger.info("%s: left out %s", label, ", ".join(left_out))
    return pl.DataFrame(named), len(bad)


def _titles(frame: pl.DataFrame, name: str, label: str) -> pl.Series:
    if name not in frame.columns:
        return pl.Series("title", [None] * frame.height, dtype=pl.String)
    titles = frame[name]
    dtype = titles.dtype
    if dtype.is_float():
        texts = titles.fill_nan(None).cast(pl.String).str.replace(r"\.0$", "")
    elif dtype.is_nested() or isinstance(dtype, pl.Binary | pl.Object):
        raise DataError(
            f"{label}: the column {name} holds {describe_type(dtype)}, which cannot be titles: "
            "expected text. Name another with data.table.title."
        )
    else:
        texts = titles.cast(pl.String)
    return _clean(texts).alias("title")


def _tidy(column: pl.Series, name: str, text: TextSettings, label: str) -> pl.Series | None:
    """Return a column with each cell cleaned, or None if its type has no meaning in a text."""
    if isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Time | pl.Duration):
        column = column.cast(pl.String)
    elif isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    elif column.dtype.is_decimal():
        column = column.cast(pl.Float64)
    dtype = column.dtype
    if name == "price" and dtype == pl.String:
        column = _prices(column, text, label)
    elif dtype == pl.String:
        # Programs write whole numbers with gaps as 7.0, and write true as True.
        cells = _clean(column).str.replace(r"^(-?\d+)\.0$", "$1")
        column = cells.replace({"True": "true", "False": "false"})
    elif dtype.is_float():
        column = column.fill_nan(None)
    elif isinstance(dtype, pl.List):
        column = (
            column
            if dtype.inner != pl.String
            else column.list.eval(pl.element().map_batches(_clean, return_dtype=pl.String))
        )
    return None if _means_nothing(dtype) else column


def _means_nothing(dtype: pl.DataType) -> bool:
    """Return whether columns of a type are left out, such as bytes, structs and objects.

    Lists of words, of numbers and of paths (lists of words) are kept.
    """
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        if isinstance(inner, pl.List):
            return inner.inner != pl.String
        return not (inner == pl.String or (isinstance(inner, pl.DataType) and inner.is_numeric()))
    return isinstance(dtype, pl.Binary | pl.Struct | pl.Object)


def _prices(texts: pl.Series, text: TextSettings, label: str) -> pl.Series:
    """Parse prices with or without a currency; others become null and their number is logged."""
    given = texts.str.strip_chars()
    given = given.set(given == "", None)
    bare = given.str.replace(r"^(?:[A-Z]{3}|[$€£¥])\s*", "").str.replace(
        r"\s*(?:[A-Z]{3}|[$€£¥])$", ""
    )
    numbers = read_decimals(bare, text.decimal, label, "price")
    numbers = numbers.set(~(numbers.is_finite() & (numbers >= 0)), None)
    lost = given.filter(numbers.is_null() & given.is_not_null())
    if len(lost):
        logger.warning(
            "%s: %d prices are not numbers, such as %r, and are left out",
            label,
            len(lost),
            lost[0],
        )
    return numbers


def _clean(texts: pl.Series) -> pl.Series:
    """Remove entities, markup and surrounding blanks from texts; empty texts become null."""
    is_untidy = texts.str.contains(_UNTIDY).fill_null(False)
    if is_untidy.any():
        places = is_untidy.arg_true()
        tidied = [clean_text(cell) for cell in texts.gather(places)]
        texts = texts.clone().scatter(places, pl.Series(tidied, dtype=pl.String))
    return texts.set(texts == "", None)
