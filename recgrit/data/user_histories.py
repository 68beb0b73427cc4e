"""Histories of users outside the training.

Such users were left out by the filters, or come from a file or a bundle. The filters leave out
users with too few interactions, so a model is not trained with them. Recommendations for these
users start from their histories all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.splits import SequenceSplit
from recgrit.errors import DataError

# Name of the file of the users whom the filters left out of a run.
LEFT_OUT_NAME = "left_out_users.parquet"


@dataclass(frozen=True)
class UserHistories:
    """Users with their histories of items from a catalogue.

    Args:
        user_ids: External id of each user.
        split: Sequences in time order without targets; sequence i belongs to user i. A sequence is
            empty if no item of the user is known.

    Raises:
        DataError: The numbers of users and histories differ.
    """

    user_ids: pl.Series
    split: SequenceSplit

    def __post_init__(self) -> None:
        if len(self.user_ids) != self.split.num_users:
            raise DataError(
                f"There are {len(self.user_ids)} users but {self.split.num_users} histories."
            )

    @classmethod
    def of(
        cls,
        user_ids: pl.Series,
        owners: npt.NDArray[np.int64],
        items: npt.NDArray[np.int32],
        num_items: int,
    ) -> UserHistories:
        """Build the histories of users from a flat list of items.

        Args:
            user_ids: External id of each user.
            owners: int64 ``[n]``, position in ``user_ids`` of each item's user, ascending.
            items: int32 ``[n]``, item_idx of each item, in time order within a user.
            num_items: Number of items in the catalogue.
        """
        lengths = np.bincount(owners, minlength=len(user_ids))
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(user_ids, SequenceSplit.of_histories(items, offsets, num_items))

    @classmethod
    def nobody(cls, num_items: int) -> UserHistories:
        """Return histories of no users."""
        return cls.without_history([], num_items)

    @classmethod
    def without_history(cls, user_ids: Sequence[str], num_items: int) -> UserHistories:
        """Build the histories of users of whom nothing is known: all are empty.

        Args:
            user_ids: Ids of the users.
            num_items: Number of items in the catalogue.
        """
        none = np.empty(0, np.int64)
        return cls.of(pl.Series(user_ids, dtype=pl.String), none, none.astype(np.int32), num_items)

    def joined_with(self, others: UserHistories) -> UserHistories:
        """Return these users, followed by other users of the same catalogue."""
        first, second = self.split, others.split
        return UserHistories(
            pl.concat([self.user_ids, others.user_ids]),
            SequenceSplit.of_histories(
                np.concatenate([first.items, second.items]),
                np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
                first.num_items,
            ),
        )

    def history(self, user_id: str) -> npt.NDArray[np.int32]:
        """Return a user's history as item_idx in time order, empty for an unknown user."""
        row = self.row(user_id)
        return np.empty(0, np.int32) if row < 0 else self.split.full_sequence(row)

    def row(self, user_id: str) -> int:
        """Return the position of a user, or -1 for an unknown user."""
        return self._rows.get(user_id, -1)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    def save(self, path: Path) -> None:
        """Write a Parquet file with ``user_id``, and ``item_idx`` as a list."""
        lengths = np.diff(self.split.offsets)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        lists = (
            pl.DataFrame({"row": owners, "item_idx": self.split.items})
            .group_by("row", maintain_order=True)
            .agg("item_idx")
        )
        (
            self.user_ids.alias("user_id")
            .to_frame()
            .with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
            .join(lists, on="row", how="left", maintain_order="left")
            .select("user_id", pl.col("item_idx").fill_null([]))
            .write_parquet(path)
        )

    @classmethod
    def load(cls, path: Path, num_items: int) -> UserHistories:
        """Read the histories that `save` wrote; a missing file means no users.

        Raises:
            DataError: The file has other columns or nulls, lists a user twice, or names an item
                that is not in the catalogue.
        """
        if not path.is_file():
            return cls.nobody(num_items)
        frame = pl.read_parquet(path, glob=False)
        expected = pl.Schema({"user_id": pl.String(), "item_idx": pl.List(pl.Int32)})
        if frame.schema != expected or any(frame.null_count().row(0)):
            raise DataError(f"{path} needs {expected} without nulls.")
        if frame["user_id"].n_unique() < frame.height:
            raise DataError(f"{path} lists a user twice.")
        lengths = frame["item_idx"].list.len().to_numpy()
        owners = np.repeat(np.arange(frame.height), lengths)
        items = frame["item_idx"].explode().drop_nulls().to_numpy()
        if len(items) != len(owners):
            raise DataError(f"{path} has histories with nulls.")
        if len(items) and not 0 <= items.min() <= items.max() < num_items:
            raise DataError(f"{path} names items outside the catalogue of {num_items}.")
        return cls.of(frame["user_id"], owners, items, num_items)
