"""The item table, which describes each item in the order of ``item_idx``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from recgrit.data.ids import IdList, read_ids
from recgrit.errors import DataError

# Largest number of ids among which ids similar to an unknown one are searched. More take seconds.
MOST_COMPARED = 50_000


class ItemIndex:
    """A map from external item ids to dense indices.

    Args:
        item_ids: External id of each item; row i is ``item_idx`` i.
    """

    def __init__(self, item_ids: pl.Series) -> None:
        self._item_ids = item_ids
        self._places = {item_id: item_idx for item_idx, item_id in enumerate(item_ids)}

    def __getitem__(self, item_id: str) -> int:
        """Return the dense index of an item.

        Raises:
            DataError: No item has this id. The message lists similar ids.
        """
        if item_id not in self._places:
            close = []
            if isinstance(item_id, str) and len(self._places) <= MOST_COMPARED:
                close = difflib.get_close_matches(item_id, self._places, n=3, cutoff=0.75)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise DataError(
                f"No item {item_id!r:.80} among the {len(self._places)} items of this table.{hint} "
                f"Ids are those of the source files, such as {self._item_ids.head(3).to_list()}."
            )
        return self._places[item_id]

    def find(self, item_ids: IdList) -> npt.NDArray[np.int64]:
        """Return the dense indices of the known ids, in their order, and skip unknown ids.

        Args:
            item_ids: External ids. A string is one id. Nulls are skipped.

        Raises:
            DataError: The argument is not a list of ids.
        """
        known = self._places
        ids = read_ids(item_ids, "item_ids").ids
        return np.array([known[i] for i in ids if i in known], dtype=np.int64)


@dataclass(frozen=True)
class ItemTable:
    """The features of all items, as a table whose row i describes ``item_idx`` i.

    Args:
        frame: Table with ``item_id`` str and ``title`` str (the id if no title is known), followed
            by the columns of the source: ``categories`` list[str], and text or number columns such
            as ``brand``, ``genres``, ``year`` and ``price``. Unknown values are null.

    Raises:
        DataError: ``item_id`` or ``title`` is missing or holds nulls, or an id is empty or
            repeated.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        for name in ("item_id", "title"):
            if name not in self.frame.columns:
                raise DataError(
                    f"An item table needs the column {name!r}, got {self.frame.columns}."
                )
            if self.frame[name].null_count():
                raise DataError(f"Column {name!r} of an item table must not hold nulls.")
        ids = pl.col("item_id").cast(pl.String)
        unusable = (ids.str.strip_chars() == "") | ids.str.contains("\0", literal=True)
        if num_unusable := self.frame.filter(unusable).height:
            raise DataError(
                f"Item ids must be text; {num_unusable} are empty or contain invalid characters. "
                "Drop these items, or give them ids."
            )
        repeated = self.frame.filter(pl.col("item_id").is_duplicated())["item_id"].unique(
            maintain_order=True
        )
        if len(repeated):
            raise DataError(
                f"Item ids must be unique; {len(repeated)} are repeated, the first "
                f"{repeated.head(3).to_list()}."
            )

    def __len__(self) -> int:
        return self.frame.height

    @property
    def item_ids(self) -> pl.Series:
        """External id of each item."""
        return self.frame["item_id"]

    @property
    def titles(self) -> pl.Series:
        """Title of each item."""
        return self.frame["title"]

    @cached_property
    def index(self) -> ItemIndex:
        """Map from external item ids to dense indices."""
        return ItemIndex(self.item_ids)

    def find_items(self, item_ids: IdList) -> npt.NDArray[np.int64]:
        """Return the dense indices of the known ids, in their order, and skip unknown ids.

        Args:
            item_ids: External ids. A string is one id. Nulls are skipped.

        Raises:
            DataError: The argument is not a list of ids.
        """
        return self.index.find(item_ids)

    def to_polars(self) -> pl.DataFrame:
        """Return the table."""
        return self.frame

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas frame."""
        return self.frame.to_pandas()

    def save(self, directory: Path) -> None:
        """Write ``items.parquet`` into a folder."""
        self.frame.write_parquet(directory / "items.parquet")

    @classmethod
    def load(cls, directory: Path) -> ItemTable:
        """Read the item table that `save` wrote."""
        return cls(pl.read_parquet(directory / "items.parquet", glob=False))


def read_item_list(path: Path) -> list[str]:
    """Read item ids from a text file with one id per line, and skip blank lines.

    Raises:
        DataError: The file cannot be read, or names no item.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read the item list {path} ({error}). Expected a text file with one item id "
            "a line."
        ) from None
    item_ids = [line.strip() for line in lines if line.strip()]
    if not item_ids:
        raise DataError(f"The item list {path} names no item: expected one item id a line.")
    return item_ids
