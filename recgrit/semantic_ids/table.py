"""The ID table, which maps every item to its semantic ID and every ID to its item."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from recgrit.data.damage import TABLE_DAMAGE, read_parquet
from recgrit.data.ids import IdList
from recgrit.data.items import ItemIndex
from recgrit.errors import DataError
from recgrit.semantic_ids.collisions import number_rows
from recgrit.summaries import Summarized

# A token has at most 18 digits, so that a code fits into 64 bits.
_TOKEN = re.compile(r"<([a-z])_([0-9]{1,18})>")


@dataclass(frozen=True, repr=False)
class SemanticIdTable(Summarized):
    """The semantic IDs of all items of a catalogue; row i is the item with ``item_idx`` i.

    Args:
        codes: Semantic IDs, int32 ``[num_items, id_length]``. All rows are different.
        codebook_sizes: Number of codes of each level.
        disambiguation_level: Index of the level that only tells items with equal codes apart. None
            if there is no such level.
        item_ids: Ids of the items in the data source.
        titles: Titles of the items.

    Raises:
        DataError: Two rows are equal, a code is out of range, lengths differ, or there are more
            than 26 levels.
    """

    codes: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    disambiguation_level: int | None
    item_ids: pl.Series
    titles: pl.Series

    def __post_init__(self) -> None:
        num_items, id_length = self.codes.shape
        if len(self.item_ids) != num_items or len(self.titles) != num_items:
            raise DataError(
                f"An ID table needs one id and one title per row: {num_items} rows, "
                f"{len(self.item_ids)} ids, {len(self.titles)} titles."
            )
        if len(self.codebook_sizes) != id_length or id_length > len(string.ascii_lowercase):
            raise DataError(
                f"Expected one codebook size for each of {id_length} levels (at most 26), got "
                f"{len(self.codebook_sizes)}."
            )
        if np.any(self.codes < 0) or np.any(self.codes >= np.array(self.codebook_sizes)):
            raise DataError(f"Codes must lie within the codebook sizes {self.codebook_sizes}.")
        if num_items and len(number_rows(self.codes.astype(np.int64))[1]) != num_items:
            raise DataError("Two items share a semantic ID; resolve collisions first.")

    def __len__(self) -> int:
        return len(self.codes)

    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """Return a title, and the levels and a few IDs by name, for display."""
        level = self.disambiguation_level
        facts = {
            "levels": f"{self.id_length}, of {', '.join(map(str, self.codebook_sizes))} codes"
            + ("" if level is None else f"; level {level} only tells items apart"),
        }
        for item, title, codes in zip(
            self.item_ids.head(3), self.titles.head(3), self.codes[:3].tolist(), strict=True
        ):
            facts[item] = f"{format_semantic_id(tuple(codes))}  {title[:60]}"
        return f"Semantic IDs of {len(self):,} items", facts

    @property
    def id_length(self) -> int:
        """Number of levels of an ID, a disambiguation level included."""
        return len(self.codebook_sizes)

    @cached_property
    def index(self) -> ItemIndex:
        """The index that finds the row of an item by its id."""
        return ItemIndex(self.item_ids)

    @cached_property
    def _item_by_codes(self) -> dict[tuple[int, ...], int]:
        return {tuple(row): item_idx for item_idx, row in enumerate(self.codes.tolist())}

    def item_idx(self, item_id: str) -> int:
        """Return the row of an item in this table.

        Args:
            item_id: Id of the item in the data source.

        Raises:
            DataError: No item has this id.
        """
        return self.index[item_id]

    def find_items(self, item_ids: IdList) -> npt.NDArray[np.int64]:
        """Return the rows of items in this table, in the order of their ids.

        Args:
            item_ids: Ids of the items. A single string is one id. Nulls and ids that the table does
                not have are skipped.

        Raises:
            DataError: The argument is not a list of ids.
        """
        return self.index.find(item_ids)

    def codes_of(self, item_id: str) -> tuple[int, ...]:
        """Return the semantic ID of an item as a tuple of codes."""
        return tuple(self.codes[self.item_idx(item_id)].tolist())

    def item_of(self, codes: Sequence[int]) -> str | None:
        """Return the id of the item with this semantic ID, or None if no item has this ID."""
        item_idx = self._item_by_codes.get(tuple(codes))
        return None if item_idx is None else str(self.item_ids[item_idx])

    def text_of(self, item_id: str) -> str:
        """Return the semantic ID of an item as text, such as ``<a_12><b_7><c_201>``."""
        return format_semantic_id(self.codes_of(item_id))

    def items_with_prefix(self, prefix: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the rows of all items whose semantic ID begins with a prefix.

        Args:
            prefix: Codes of the first levels. The result is empty if there are more codes than
                levels.
        """
        if len(prefix) > self.id_length:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.all(self.codes[:, : len(prefix)] == list(prefix), axis=1))

    def relatives(self, item_id: str, *, limit: int = 10) -> pl.DataFrame:
        """Return the items whose IDs share the longest prefixes with an item's ID, longest first.

        Args:
            item_id: Id of the item.
            limit: Largest number of items to return.

        Returns:
            Columns ``shared_levels``, ``item_id``, ``title`` and ``semantic_id``. Items that do not
            share the first code are left out.
        """
        item_idx = self.item_idx(item_id)
        same = self.codes == self.codes[item_idx]
        shared = np.logical_and.accumulate(same, axis=1).sum(axis=1)
        shared[item_idx] = 0
        order = np.argsort(-shared, kind="stable")[:limit]
        nearest = order[shared[order] > 0]
        rows = self.to_polars().select(pl.all().gather(nearest))
        return rows.select(
            pl.Series("shared_levels", shared[nearest]), "item_id", "title", "semantic_id"
        )

    def take(self, rows: npt.NDArray[np.int64]) -> SemanticIdTable:
        """Return a table with only some of the items.

        Args:
            rows: Rows of the items in this table, in the order of the new table.
        """
        ids, titles = self.item_ids.gather(rows), self.titles.gather(rows)
        return replace(self, codes=self.codes[rows], item_ids=ids, titles=titles)

    def to_polars(self) -> pl.DataFrame:
        """Return the table as a polars frame.

        Returns:
            Columns ``item_id``, ``title``, ``level_0``, ``level_1``, … with the codes, and
            ``semantic_id`` as text.
        """
        return self._frame

    @cached_property
    def _frame(self) -> pl.DataFrame:
        levels = {f"level_{level}": self.codes[:, level] for level in range(self.id_length)}
        frame = pl.DataFrame({"item_id": self.item_ids, "title": self.titles, **levels})
        # This gives the text of `format_semantic_id` without a Python object per code.
        tokens = (f"<{letter}_{{}}>" for letter in string.ascii_lowercase[: self.id_length])
        return frame.with_columns(pl.format("".join(tokens), *levels).alias("semantic_id"))

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a pandas frame with the columns of `to_polars`."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write the table to ``semantic_ids.parquet`` in a folder.

        The metadata of the file holds the codebook sizes and the disambiguation level.

        Args:
            directory: The folder to write to.
        """
        self.to_polars().write_parquet(
            directory / "semantic_ids.parquet",
            metadata={
                "recgrit.codebook_sizes": ",".join(map(str, self.codebook_sizes)),
                "recgrit.disambiguation_level": (
                    "" if self.disambiguation_level is None else str(self.disambiguation_level)
                ),
            },
        )

    @classmethod
    def load(cls, directory: Path) -> SemanticIdTable:
        """Read a table from a folder in which `save` wrote it.

        Args:
            directory: The folder to read from.

        Raises:
            DataError: The file is missing, or is not an ID table.
        """
        path = directory / "semantic_ids.parquet"
        if not path.is_file():
            raise DataError(f"No item-ID table at {path}. Build it with 'recgrit tokenize CONFIG'.")
        try:
            metadata, frame = pl.read_parquet_metadata(path), read_parquet(path)
            sizes = tuple(int(size) for size in metadata["recgrit.codebook_sizes"].split(","))
            level = metadata["recgrit.disambiguation_level"]
            for name in ("item_id", "title"):
                if frame[name].dtype != pl.String:
                    raise ValueError(f"the column {name} is {frame[name].dtype}, not text")
            if frame["item_id"].null_count():
                raise ValueError("an item has no id")
            return cls(
                codes=frame.select(f"level_{i}" for i in range(len(sizes))).to_numpy().astype("i4"),
                codebook_sizes=sizes,
                disambiguation_level=int(level) if level else None,
                item_ids=frame["item_id"],
                titles=frame["title"],
            )
        except TABLE_DAMAGE as error:
            raise DataError(
                f"{path} is not an item-ID table, or is damaged: {error}. Expected item_id, title, "
                "one column per level, and their codebook sizes in the file's metadata. Delete the "
                "folder and run again with 'recgrit run CONFIG'."
            ) from None


def format_semantic_id(codes: Sequence[int]) -> str:
    """Return the codes of a semantic ID as text, with one letter per level.

    Example:
        >>> format_semantic_id([12, 7, 201, 0])
        '<a_12><b_7><c_201><d_0>'
    """
    return "".join(semantic_id_tokens(codes))


def semantic_id_tokens(codes: Sequence[int]) -> list[str]:
    """Return the codes of a semantic ID as tokens for the vocabulary of a language model.

    Each token names its level by a letter.

    Example:
        >>> semantic_id_tokens([12, 7])
        ['<a_12>', '<b_7>']
    """
    return [
        f"<{letter}_{code}>" for letter, code in zip(string.ascii_lowercase, codes, strict=False)
    ]


def parse_semantic_id(text: str) -> tuple[int, ...]:
    """Return the codes of a semantic ID that is written as text.

    Raises:
        DataError: The text is not an ID with the levels a, b, c, … in this order.

    Example:
        >>> parse_semantic_id('<a_12><b_7>')
        (12, 7)
    """
    tokens = _TOKEN.findall(text)
    letters = "".join(letter for letter, _ in tokens)
    if not tokens or _TOKEN.sub("", text) or not string.ascii_lowercase.startswith(letters):
        raise DataError(f"{text!r} is not a semantic ID; expected the form <a_12><b_7><c_201>.")
    return tuple(int(code) for _, code in tokens)
