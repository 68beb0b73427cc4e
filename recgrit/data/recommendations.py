"""Recommendations for a set of users, as arrays of ranked items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from recgrit.disk import replacing
from recgrit.errors import DataError

# Value that fills the end of a list with fewer than K items.
NO_ITEM = -1


@dataclass(frozen=True)
class Recommendations:
    """Lists of the best K items for U users, best item first.

    Args:
        users: int64 ``[U]``, user_idx of each row.
        items: int32 ``[U, K]``, item_idx by rank. `NO_ITEM` fills the end of lists with fewer than
            K items.
        scores: float32 ``[U, K]``, score of each item. The retriever's score is the log-probability
            of the item, plus the additive bonus from its neighbours.

    Raises:
        DataError: Shapes disagree, a list has a gap before its end, an item appears twice in a
            list, or a score is not finite.
    """

    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.items.shape != self.scores.shape or len(self.users) != len(self.items):
            raise DataError(
                f"Recommendations need items and scores of one shape [U, K] and U users, got "
                f"{self.items.shape}, {self.scores.shape} and {len(self.users)} users."
            )
        filled = self.items != NO_ITEM
        if np.any(filled[:, 1:] & ~filled[:, :-1]):
            raise DataError("A list of recommendations has an empty place before its last item.")
        if not np.isfinite(self.scores[filled]).all():
            raise DataError(
                "A list of recommendations has a score that is not finite. A custom model must "
                "give a finite score to every item in its lists."
            )
        ordered = np.sort(self.items, axis=1)
        if np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)):
            raise DataError("An item is recommended twice to one user.")

    @property
    def num_users(self) -> int:
        """Number of users, and thus of lists."""
        return len(self.users)

    @property
    def top_k(self) -> int:
        """Largest possible number K of items in a list."""
        return int(self.items.shape[1])

    def to_polars(self) -> pl.DataFrame:
        """Return a table with one row per recommended item.

        Columns: ``user_idx``, ``rank`` (from 1), ``item_idx`` and ``score``.
        """
        filled = self.items != NO_ITEM
        ranks = np.broadcast_to(np.arange(1, self.top_k + 1, dtype=np.int32), self.items.shape)
        return pl.DataFrame(
            {
                "user_idx": np.repeat(self.users, filled.sum(axis=1)),
                "rank": ranks[filled],
                "item_idx": self.items[filled],
                "score": self.scores[filled],
            }
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the table of `to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()


@dataclass(frozen=True)
class WrittenLists:
    """The size of a written file of recommendation lists.

    Args:
        num_users: Number of lists: of users, or of items in a file of similar items.
        num_rows: Number of rows, one per recommended item.
    """

    num_users: int
    num_rows: int


def write_lists(shards: Iterable[pl.DataFrame], path: Path, *, of: str = "user_id") -> WrittenLists:
    """Write recommendation lists to one Parquet file, shard by shard.

    Args:
        shards: Tables of lists, at least one. A list must be in one shard only.
        path: Path of the file, which appears only when it is complete.
        of: Name of the column that says whose list a row belongs to: ``user_id``, or ``item_id``
            for lists of similar items.
    """
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    num_users, num_rows = 0, 0
    with replacing(path) as temporary:
        for shard in shards:
            rows = shard.to_arrow()
            if writer is None:
                writer = pq.ParquetWriter(temporary, rows.schema)
            writer.write_table(rows)
            num_users += shard[of].n_unique()
            num_rows += shard.height
        assert writer is not None
        writer.close()
    return WrittenLists(num_users, num_rows)
