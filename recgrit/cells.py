"""Grids of experiments that can be stopped and resumed: one row per finished cell, in one table."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.errors import ArtifactError
from recgrit.progress import progress_bar

logger = logging.getLogger(__name__)

Cell = Mapping[str, str | int | float | bool | None]


class CellTable:
    """A Parquet file with one row per finished cell of a grid.

    A cell is its settings; its row holds them and what was measured. A cell whose row is there is
    not run again, and several processes may fill one table with different cells at once. A cell
    without a setting that others have counts as having None there.

    Args:
        path: The Parquet file; it need not exist.

    Example:
        >>> import tempfile
        >>> table = CellTable(Path(tempfile.mkdtemp()) / "squares.parquet")
        >>> table.fill([{"x": 2}, {"x": 3}], lambda cell: {"square": cell["x"] ** 2})
        >>> table.rows().to_dicts()
        [{'x': 2, 'square': 4}, {'x': 3, 'square': 9}]
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> pl.DataFrame:
        """All finished cells; empty if there are none.

        Raises:
            ArtifactError: The file is not Parquet.
        """
        if not self.path.is_file():
            return pl.DataFrame()
        try:
            return pl.read_parquet(self.path, glob=False)
        except pl.exceptions.PolarsError as error:
            raise ArtifactError(
                f"{self.path} cannot be read as a table of cells: {error}. Move it away to start "
                "the grid anew."
            ) from None

    def has(self, cell: Cell) -> bool:
        """Whether this cell is finished."""
        rows = self.rows()
        settings = {name: value for name, value in cell.items() if value is not None}
        if not set(settings) <= set(rows.columns):
            return False
        matches = rows.filter(
            pl.col(name).eq_missing(pl.lit(value))
            for name, value in cell.items()
            if name in rows.columns
        )
        return not matches.is_empty()

    def fill(self, cells: Sequence[Cell], run: Callable[[Cell], Mapping[str, Any]]) -> None:
        """Run the cells that have no row yet, in order; each row is kept as its cell ends.

        Args:
            cells: Settings of each cell.
            run: Measures one cell; what it returns stands beside the settings in the row.
        """
        with progress_bar(self.path.stem, len(cells)) as bar:
            for cell in cells:
                if not self.has(cell):
                    logger.info("%s: %s", self.path.stem, _describe(cell))
                    self._append({**cell, **run(cell)})
                bar.advance(note=_describe(cell))

    def _append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            new = pl.DataFrame({name: [value] for name, value in row.items()})
            table = pl.concat([self.rows(), new], how="diagonal_relaxed")
            temporary = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
            try:
                table.write_parquet(temporary)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile; the lock goes with the process, however it ends."""
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _describe(cell: Cell) -> str:
    return ", ".join(f"{name}={value}" for name, value in cell.items() if value is not None)
