"""Who took what, when: dense indices, in time order, ties in file order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from recgrit.errors import DataError


@dataclass(frozen=True)
class Interactions:
    """Interactions with dense user and item indices, sorted by user, then time, then file order.

    Args:
        frame: Columns ``user_idx`` int32, ``item_idx`` int32, ``timestamp`` int64 (seconds UTC)
            and, where the source has one, ``weight`` float32 (a rating). No nulls.
        user_ids: External id of each user; row i belongs to ``user_idx`` i.
        item_ids: External id of each item; row i belongs to ``item_idx`` i.

    Raises:
        DataError: Columns are missing or hold nulls, indices are not dense, rows are out of order,
            or ids are repeated.
    """

    frame: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series

    def __post_init__(self) -> None:
        expected = ["user_idx", "item_idx", "timestamp"]
        missing = [name for name in expected if name not in self.frame.columns]
        if missing:
            raise DataError(f"Interactions need the columns {expected}; missing: {missing}.")
        if self.frame.null_count().sum_horizontal().item():
            raise DataError("Interactions must not hold nulls; drop or fill these rows first.")
        for name, ids in (("user", self.user_ids), ("item", self.item_ids)):
            if ids.n_unique() != len(ids):
                raise DataError(f"Every {name}_id must stand for one {name}; some are repeated.")
            if not _is_dense(self.frame[f"{name}_idx"], len(ids)):
                raise DataError(
                    f"{name}_idx must be dense from 0 to {len(ids) - 1}: every {name} needs at "
                    "least one interaction."
                )
        if not self._in_order():
            raise DataError("Interactions must be sorted by user_idx, then timestamp.")

    def _in_order(self) -> bool:
        user, time = pl.col("user_idx"), pl.col("timestamp")
        later = (user > user.shift()) | ((user == user.shift()) & (time >= time.shift()))
        return bool(self.frame.select(later.fill_null(True).all()).item())

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    def __len__(self) -> int:
        return self.frame.height

    def to_polars(self) -> pl.DataFrame:
        """One row per interaction, with the external ids first."""
        return self.frame.select(
            pl.lit(self.user_ids).gather(pl.col("user_idx")).alias("user_id"),
            pl.lit(self.item_ids).gather(pl.col("item_idx")).alias("item_id"),
            pl.all(),
        )

    def to_pandas(self) -> pd.DataFrame:
        """`to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write ``interactions.parquet``, ``users.parquet`` and ``item_ids.parquet``."""
        self.frame.write_parquet(directory / "interactions.parquet")
        self.user_ids.alias("user_id").to_frame().write_parquet(directory / "users.parquet")
        self.item_ids.alias("item_id").to_frame().write_parquet(directory / "item_ids.parquet")

    @classmethod
    def load(cls, directory: Path) -> Interactions:
        """Read what `save` wrote."""
        return cls(
            frame=pl.read_parquet(directory / "interactions.parquet", glob=False),
            user_ids=pl.read_parquet(directory / "users.parquet", glob=False)["user_id"],
            item_ids=pl.read_parquet(directory / "item_ids.parquet", glob=False)["item_id"],
        )


def _is_dense(indices: pl.Series, num: int) -> bool:
    """Whether these are all the numbers from 0 to ``num - 1``, each at least once."""
    if indices.is_empty() or not 0 <= indices.min() <= indices.max() < num:  # type: ignore[operator]
        return num == 0 and indices.is_empty()
    seen = np.zeros(num, np.bool_)
    seen[indices.to_numpy()] = True
    return bool(seen.all())
