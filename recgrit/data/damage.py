"""Parquet files of a user's own, read so that damage in them is an error.

Polars' reader panics at some damage, which ends the whole process now and then; Arrow's raises an
error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recgrit.bounds import PARQUET_ROWS, PARQUET_ROWS_PER_BYTE
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


def refuse_too_many_rows(path: Path) -> None:
    """Stop before a Parquet file is read that has more rows than its size can account for.

    Raises:
        DataError: It has.
        One of `TABLE_DAMAGE`: The file is damaged.
    """
    import pyarrow.parquet as pq

    num_rows = int(pq.read_metadata(path).num_rows)
    size = path.stat().st_size
    most = max(PARQUET_ROWS.default, PARQUET_ROWS_PER_BYTE * size)
    if num_rows > PARQUET_ROWS.allowed(most):
        told = PARQUET_ROWS.explain(num_rows, default=most)
        raise DataError(f"{path} has, in {size:,} bytes, {told}.")


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
