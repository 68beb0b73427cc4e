"""Parquet files of a user's own, read so that damage in them is an error.

Polars' reader panics at some damage, which ends the whole process now and then; Arrow's raises an
error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recgrit.errors import DataError

# What reading a damaged table raises; a panic is no `Exception`.
TABLE_DAMAGE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,  # Arrow's errors are of this kind, or of KeyError, or of NotImplementedError.
    KeyError,
    NotImplementedError,
)


# Rows that any file may have, and beyond them how many for each byte. A value that comes again
# takes no byte in Parquet, so a file of some kilobytes can hold more rows than memory does.
FREE_ROWS = 10_000_000
ROWS_PER_BYTE = 50
# The setting that raises it.
MAX_ROWS_VARIABLE = "RECGRIT_MAX_PARQUET_ROWS"


def refuse_too_many_rows(path: Path) -> None:
    """Stop before a Parquet file is read that has more rows than its size can account for.

    Raises:
        DataError: It has.
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    num_rows = int(pq.read_metadata(path).num_rows)
    allowed = max(FREE_ROWS, ROWS_PER_BYTE * path.stat().st_size)
    if setting := os.environ.get(MAX_ROWS_VARIABLE):
        if not setting.isdecimal():
            raise DataError(f"{MAX_ROWS_VARIABLE} must be a number of rows, got {setting!r}.")
        allowed = max(allowed, int(setting[:18]))
    if num_rows > allowed:
        raise DataError(
            f"{path} has {num_rows:,} rows in {path.stat().st_size:,} bytes; {allowed:,} rows are "
            "allowed, since such files can be made to fill the memory. If it is right, set "
            f"{MAX_ROWS_VARIABLE}={num_rows}."
        )


def read_parquet_columns(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The columns of a file, or all of them.

    Raises:
        DataError: It has more rows than its size can account for.
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    refuse_too_many_rows(path)
    table = pq.ParquetFile(path).read(columns=None if columns is None else list(columns))
    table.validate(full=True)  # Lengths and offsets that lie would be followed outside of memory.
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
