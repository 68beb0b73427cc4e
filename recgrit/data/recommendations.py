"""Ranked items for a set of users, as arrays."""

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

# Fills the end of a list that has fewer than K items.
NO_ITEM = -1


@dataclass(frozen=True)
class Recommendations:
    """The best items of each user, best first.

    Args:
        users: int64 [U], user_idx of each row.
        items: int32 [U, K], item_idx by rank; `NO_ITEM` fills the end of short lists.
        scores: float32 [U, K], the score of each item (for the retriever: log P(item), and what
            its neighbours boost it by).

    Raises:
        DataError: Shapes disagree, a list has a hole, an item appears twice in one list, or a score
            is not finite.
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
            raise DataError("A list of recommendations has a hole before its end.")
        if not np.isfinite(self.scores[filled]).all():
            raise DataError(
                "A list of recommendations has a score that is not finite. A model of your own has "
                "to score every item that it lists with a number."
            )
        ordered = np.sort(self.items, axis=1)
        if np.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)):
            raise DataError("An item is recommended twice to one user.")

    @property
    def num_users(self) -> int:
        """Number of lists."""
        return len(self.users)

    @property
    def top_k(self) -> int:
        """Length of the longest possible list."""
        return int(self.items.shape[1])

    def to_polars(self) -> pl.DataFrame:
        """One row per item: ``user_idx``, ``rank`` (from 1), ``item_idx``, ``score``."""
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
        """`to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()


@dataclass(frozen=True)
class WrittenLists:
    """How many users and rows a file of lists has."""

    num_users: int
    num_rows: int


def write_lists(shards: Iterable[pl.DataFrame], path: Path, *, of: str = "user_id") -> WrittenLists:
    """Write tables of lists, some users at a time, as one Parquet file.

    Args:
        shards: Tables with a ``user_id``, no user in two of them; at least one.
        path: The file, which is there only when it is whole.
        of: The column that says whose lists they are.
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
