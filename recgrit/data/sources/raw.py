"""What every data source gives, and what it has to be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from recgrit.data.sources.coding import CodedInteractions, InteractionCoder

# Above this share of unreadable lines a file is damaged or of another format, not merely untidy.
DEFAULT_MAX_MALFORMED_SHARE = 0.05


@dataclass(frozen=True)
class RawData:
    """Interactions and item metadata as a source's files hold them, before any filter.

    Args:
        coded: The interactions in file order, with their ids as codes.
        items: ``item_id`` str (unique), ``title`` str, then the source's own fields such as
            ``brand`` str, ``categories`` list[str], ``genres`` list[str], ``year`` int32, ``price``
            float64. All but the id may be null.
        counts: ``rows_read``, ``rows_malformed`` (all rows left out), ``rows_without_id`` (those of
            them that lack a user or item id), ``items_read``, ``items_malformed``,
            ``items_repeated`` (identical repeats left out).
        files: The files that were read.
        users: ``user_id`` str (unique), then what the source says of them; None if nothing.
    """

    coded: CodedInteractions
    items: pl.DataFrame
    counts: dict[str, int]
    files: tuple[Path, ...]
    users: pl.DataFrame | None = None

    @property
    def interactions(self) -> pl.DataFrame:
        """The interactions with their ids as text, made anew each time.

        Columns ``user_id`` str, ``item_id`` str, ``timestamp`` int64 (seconds UTC) and, where the
        source has ratings, ``weight`` float32.
        """
        return self.coded.to_polars()


class Source(Protocol):
    """A published data format: which files it consists of, and how they are read."""

    @property
    def expected(self) -> str:
        """The files wanted, in words, for messages."""

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The files to read, given a folder, an archive or one of the files; opens none of them.

        Raises:
            DataError: Nothing is there, or not these files.
        """

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read what `find_files` found.

        Args:
            files: What `find_files` found.
            max_malformed_share: Of the lines of a file, how many may be left out.
            coder: Gives ids their codes and may take the rows; None for a new one.

        Raises:
            DataError: A file is damaged, of another format, or has more than this share of
                malformed lines.
        """
