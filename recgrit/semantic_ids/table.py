"""The item-ID table: every item's semantic ID, and every ID's item."""

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

# No more digits than a code can have.
_TOKEN = re.compile(r"<([a-z])_([0-9]{1,18})>")


@dataclass(frozen=True, repr=False)
class SemanticIdTable(Summarized):
    """Semantic IDs of all items; row i is ``item_idx`` i.

    Args:
        codes: int32 ``[num_items, id_length]``, unique rows.
        codebook_sizes: Number of codes of each level.
        disambiguation_level: The level that only tells items apart, None if every level has
            meaning.
        item_ids: External item ids.
        titles: Item titles.

    Raises:
        DataError: Rows are not unique, codes are out of range, or lengths disagree.
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
        """Levels and a few IDs."""
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
        """Where each item stands."""
        return ItemIndex(self.item_ids)

    @cached_property
    def _item_by_codes(self) -> dict[tuple[int, ...], int]:
        return {tuple(row): item_idx for item_idx, row in enumerate(self.codes.tolist())}

    def item_idx(self, item_id: str) -> int:
        """Dense index of an external item id.

        Raises:
            DataError: No item has it.
        """
        return self.index[item_id]

    def find_items(self, item_ids: IdList) -> npt.NDArray[np.int64]:
        """Dense indices of those external ids that the table has, in their order.

        A bare string is one id; nulls are passed over.
        """
        return self.index.find(item_ids)

    def codes_of(self, item_id: str) -> tuple[int, ...]:
        """The semantic ID of an item."""
        return tuple(self.codes[self.item_idx(item_id)].tolist())

    def item_of(self, codes: Sequence[int]) -> str | None:
        """The item id that has this semantic ID, None if no item has."""
        item_idx = self._item_by_codes.get(tuple(codes))
        return None if item_idx is None else str(self.item_ids[item_idx])

    def text_of(self, item_id: str) -> str:
        """The semantic ID of an item as text, such as ``<a_12><b_7><c_201>``."""
        return format_semantic_id(self.codes_of(item_id))

    def items_with_prefix(self, prefix: Sequence[int]) -> npt.NDArray[np.int64]:
        """Indices of all items whose ID begins with these codes, none if they are too many."""
        if len(prefix) > self.id_length:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.all(self.codes[:, : len(prefix)] == list(prefix), axis=1))

    def relatives(self, item_id: str, *, limit: int = 10) -> pl.DataFrame:
        """The items that share the longest prefixes with this one, nearest first.

        Returns:
            Columns ``shared_levels``, ``item_id``, ``title``, ``semantic_id``; items that do not
            even share the first code are left out.
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
        """The table of some of its items, in this order."""
        ids, titles = self.item_ids.gather(rows), self.titles.gather(rows)
        return replace(self, codes=self.codes[rows], item_ids=ids, titles=titles)

    def to_polars(self) -> pl.DataFrame:
        """Columns ``item_id``, ``title``, ``level_0`` …, and ``semantic_id`` as text."""
        return self._frame

    @cached_property
    def _frame(self) -> pl.DataFrame:
        levels = {f"level_{level}": self.codes[:, level] for level in range(self.id_length)}
        frame = pl.DataFrame({"item_id": self.item_ids, "title": self.titles, **levels})
        # As `format_semantic_id`, without a Python object for every code of a large catalogue.
        tokens = (f"<{letter}_{{}}>" for letter in string.ascii_lowercase[: self.id_length])
        return frame.with_columns(pl.format("".join(tokens), *levels).alias("semantic_id"))

    def to_pandas(self) -> pd.DataFrame:
        """`to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write ``semantic_ids.parquet``; sizes and the disambiguation level in its metadata."""
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
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing or not an ID table.
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
                f"{path} is not an item-ID table, or damaged: {error}. Expected item_id, title, "
                "one column per level, and their codebook sizes in the file's metadata. Delete the "
                "folder and run again with 'recgrit run CONFIG'."
            ) from None


def format_semantic_id(codes: Sequence[int]) -> str:
    """Codes as text, one letter per level.

    Example:
        >>> format_semantic_id([12, 7, 201, 0])
        '<a_12><b_7><c_201><d_0>'
    """
    return "".join(semantic_id_tokens(codes))


def semantic_id_tokens(codes: Sequence[int]) -> list[str]:
    """Codes as the tokens of a language model's vocabulary, one letter per level.

    Example:
        >>> semantic_id_tokens([12, 7])
        ['<a_12>', '<b_7>']
    """
    return [
        f"<{letter}_{code}>" for letter, code in zip(string.ascii_lowercase, codes, strict=False)
    ]


def parse_semantic_id(text: str) -> tuple[int, ...]:
    """The codes of an ID written as text.

    Raises:
        DataError: The text is not an ID with levels a, b, c, … in order.

    Example:
        >>> parse_semantic_id('<a_12><b_7>')
        (12, 7)
    """
    tokens = _TOKEN.findall(text)
    letters = "".join(letter for letter, _ in tokens)
    if not tokens or _TOKEN.sub("", text) or not string.ascii_lowercase.startswith(letters):
        raise DataError(f"{text!r} is not a semantic ID; expected the form <a_12><b_7><c_201>.")
    return tuple(int(code) for _, code in tokens)
