"""Readers of a user's own Parquet files that raise an error if a file is damaged.

The readers use Arrow, because Polars panics at some kinds of damage, which can end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recgrit.bounds import PARQUET_ROWS, PARQUET_ROWS_PER_BYTE
from recgrit.errors import DataError

# Errors that reading a damaged table raises. A panic is listed because it is no `Exception`.
TABLE_DAMAGE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,  # Arrow raises subclasses of ValueError, KeyError and NotImplementedError.
    KeyError,
    NotImplementedError,
)


def refuse_too_many_rows(path: Path) -> None:
    """Raise an error if a Parquet file claims more rows than its size can explain.

    Raises:
        DataError: The file claims too many rows.
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    num_rows = int(pq.read_metadata(path).num_rows)
    size = path.stat().st_size
    most = max(PARQUET_ROWS.default, PARQUET_ROWS_PER_BYTE * size)
    if num_rows > PARQUET_ROWS.allowed(most):
        told = PARQUET_ROWS.explain(num_rows, default=most)
        raise DataError(f"{path} of {size:,} bytes has {told}.")


def read_parquet_columns(path: Path) -> list[str]:
    """Return the names of a Parquet file's columns.

    Raises:
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file, or some of its columns.

    Args:
        path: Path of the file.
        columns: Names of the columns to read. None reads all columns.

    Raises:
        DataError: The file claims more rows than its size can explain.
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    refuse_too_many_rows(path)
    table = pq.ParquetFile(path).read(columns=None if columns is None else list(columns))
    table.validate(full=True)  # Wrong lengths and offsets would lead to reads outside of memory.
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
