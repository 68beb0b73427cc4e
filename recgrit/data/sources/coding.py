"""Coding of ids as whole numbers, so that the text of an id is kept once and not per interaction.

A log of 100 million interactions then takes 20 bytes a row instead of about a hundred, and filters
count with arrays instead of hashing texts. Ids that are whole numbers, as in MovieLens, become text
only in the list of ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.first_rows import SLICE, find_first
from recgrit.data.partitions import RowPartitions

# Bound of numbers that are looked up in an array with 4 bytes each. Larger ones are coded as text.
MAX_NUMBER = 2**26


class IdCoder:
    """A coder that numbers ids from 0 in order of first appearance, across all blocks and files."""

    def __init__(self) -> None:
        self._code_of = np.full(1024, -1, np.int32)
        self._values: list[npt.NDArray[np.int64]] = []
        # Categories that number texts. None while all ids are small whole numbers. Polars drops
        # categories that no series uses, so an empty series keeps them.
        self._categories: pl.Categories | None = None
        self._anchor: pl.Series | None = None
        self.num_ids = 0

    @property
    def are_numbers(self) -> bool:
        """Whether all ids so far are small whole numbers."""
        return self._categories is None

    def encode(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        """Return the code of each id, int32 ``[len(ids)]``, and give new ids new codes.

        Args:
            ids: Text, or whole numbers that stand for the text that they are written as. No nulls.
        """
        if not len(ids):
            return np.empty(0, np.int32)
        if self._categories is None:
            if ids.dtype.is_integer() and ids.is_between(0, MAX_NUMBER, closed="left").all():
                return self._encode_numbers(ids.to_numpy())
            self._turn_to_text()
        return self._encode_numbers(self._number_texts(ids.cast(pl.String)))

    def ids(self) -> pl.Series:
        """Return the id of each code as text."""
        if self._categories is None:
            return self.numbers().cast(pl.String)
        return self._categories.to_series().gather(self.numbers())

    def numbers(self) -> pl.Series:
        """Return the number of each code: the id if ids are numbers, or a number per text."""
        return pl.Series(np.concatenate(self._values) if self._values else [], dtype=pl.Int64)

    def _encode_numbers(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        top = int(numbers.max())
        if top >= len(self._code_of):
            grown = np.full(max(top + 1, 2 * len(self._code_of)), -1, np.int32)
            grown[: len(self._code_of)] = self._code_of
            self._code_of = grown
        codes = np.empty(len(numbers), np.int32)
        for start in range(0, len(numbers), SLICE):
            part = slice(start, start + SLICE)
            codes[part] = self._encode_slice(numbers[part])
        return codes

    def _encode_slice(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        changes = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        if len(changes) < len(numbers) // 4:  # Long runs occur in a file sorted by user.
            starts = np.concatenate([[0], changes])
            lengths = np.diff(starts, append=len(numbers))
            return np.repeat(self._look_up(numbers[starts]), lengths)
        return self._look_up(numbers)

    def _look_up(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        codes: npt.NDArray[np.int32] = self._code_of[numbers]
        unknown = np.flatnonzero(codes < 0)
        if len(unknown):
            new = numbers[unknown]
            first = new[find_first(new, self._code_of)]
            self._code_of[first] = np.arange(self.num_ids, self.num_ids + len(first))
            self._values.append(first.astype(np.int64))
            self.num_ids += len(first)
            codes[unknown] = self._code_of[new]
        return codes

    def _number_texts(self, texts: pl.Series) -> npt.NDArray[np.integer]:
        assert self._categories is not None
        return texts.cast(pl.Categorical(self._categories)).to_physical().to_numpy()

    def _turn_to_text(self) -> None:
        known = self.ids()
        self._categories = pl.Categories.random()
        self._anchor = pl.Series(dtype=pl.Categorical(self._categories))
        if len(known):
            numbers = self._number_texts(known).astype(np.int64)
            self._code_of = np.full(int(numbers.max()) + 1, -1, np.int32)
            self._code_of[numbers] = np.arange(len(numbers))
            self._values = [numbers]


class InteractionCoder:
    """The coders of user and item ids for all files of a data set.

    Args:
        partitions: Partitions on disk to which coded rows are written. None keeps them in memory.
    """

    def __init__(self, partitions: RowPartitions | None = None) -> None:
        self.users, self.items = IdCoder(), IdCoder()
        self.partitions = partitions

    def encode(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with codes in place of ids."""
        return rows.with_columns(
            pl.Series("user_id", self.users.encode(rows["user_id"])),
            pl.Series("item_id", self.items.encode(rows["item_id"])),
        )


@dataclass(frozen=True)
class CodedInteractions:
    """Interactions in file order, with codes in place of ids.

    Args:
        frame: Rows with ``user_id`` int32, ``item_id`` int32, ``timestamp`` int64 (seconds since
            1970, UTC) and, if the files have them, ``fraction`` float64 of a second, ``weight``
            float32 (a rating) and ``event`` int8 (the number of an event type). Codes are row
            numbers in ``user_ids`` and ``item_ids``. No nulls. The frame has no rows if they were
            written to partitions.
        user_ids: Id of each user code as text, without repeats.
        item_ids: Id of each item code as text, without repeats.
    """

    frame: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series

    def to_polars(self) -> pl.DataFrame:
        """Return the rows with ids as text."""
        return self.frame.with_columns(
            self.user_ids.gather(self.frame["user_id"]).alias("user_id"),
            self.item_ids.gather(self.frame["item_id"]).alias("item_id"),
        )
