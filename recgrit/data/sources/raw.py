"""The result of reading a data source, and the interface of all data sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from recgrit.data.sources.coding import CodedInteractions, InteractionCoder

# Default of the largest share of malformed lines. A file with more is damaged or of another format.
DEFAULT_MAX_MALFORMED_SHARE = 0.05


@dataclass(frozen=True)
class RawData:
    """Interactions and item metadata as the files of a source hold them, before any filter.

    Args:
        coded: Interactions in file order, with codes in place of ids.
        items: Table of ``item_id`` str (unique), ``title`` str, and the source's own columns such
            as ``brand`` str, ``categories`` list[str], ``genres`` list[str], ``year`` int32 and
            ``price`` float64. All columns except the id may hold nulls.
        counts: ``rows_read``, ``rows_malformed`` (all rows left out), ``rows_without_id``
            (malformed rows that lack a user or item id), ``items_read``, ``items_malformed``, and
            ``items_repeated`` (identical repeats that were left out).
        files: Paths of the files that were read.
        users: Table of ``user_id`` str (unique) and the source's own columns. None if the source
            has no user table.
    """

    coded: CodedInteractions
    items: pl.DataFrame
    counts: dict[str, int]
    files: tuple[Path, ...]
    users: pl.DataFrame | None = None

    @property
    def interactions(self) -> pl.DataFrame:
        """Interactions with ids as text, built anew at each use.

        Columns: ``user_id`` str, ``item_id`` str, ``timestamp`` int64 (seconds since 1970, UTC) and
        the optional columns of `CodedInteractions`, such as ``weight`` float32 (a rating).
        """
        return self.coded.to_polars()


class Source(Protocol):
    """The interface of a data format: how its files are found and read."""

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files to read, without opening them.

        Args:
            path: Path of a folder, an archive or one of the files.

        Raises:
            DataError: Nothing is at ``path``, or not the required files.
        """

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the files that `find_files` returned.

        Args:
            files: Files that `find_files` returned.
            max_malformed_share: Largest share of malformed lines of a file, which are left out.
            coder: Coder of user and item ids, which may also write the rows to disk. None uses a
                new coder in memory.

        Raises:
            DataError: A file is damaged, is of another format, or has more than this share of
                malformed lines.
        """
