"""Encoding of item and user columns as codes: words keep their values, numbers become quantiles.

The vocabulary of each column is learned from the training items or users and then stays fixed.
Items that join later are encoded with the same vocabulary. A value outside the vocabulary gets the
code for unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from recgrit.errors import ArtifactError, ConfigError

ITEM_ATTRIBUTES, USER_ATTRIBUTES = "item_attributes", "user_attributes"
ATTRIBUTE_FILES = tuple(f"{name}.safetensors" for name in (ITEM_ATTRIBUTES, USER_ATTRIBUTES))
# Number of quantile buckets of a column of numbers. Each holds about as many training items.
BUCKETS = 10
# Number of training items or users that need to have a value before it gets its own code.
FEWEST = 5
# Number of values that are used of each item or user, in a column of lists.
MAX_VALUES = 8


class Column(BaseModel):
    """The learned vocabulary of one column.

    Args:
        name: Name of the column.
        kind: ``words`` gives each value a code. ``numbers`` gives each quantile bucket a code.
        values: Words that have a code, in the order of their codes. Empty for numbers.
        edges: Ascending edges of the buckets of a column of numbers. A bucket holds the numbers
            above its lower edge, up to and including its upper edge. Empty for words.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    kind: Literal["words", "numbers"]
    values: list[str] = []
    edges: list[float] = []

    @property
    def num_codes(self) -> int:
        """Number of codes of the column, including the code for unknown, which comes first."""
        return 1 + (len(self.values) if self.kind == "words" else len(self.edges) + 1)


@dataclass(frozen=True)
class Attributes:
    """The attributes of N items or N users, as rows of one embedding table.

    Row 0 of the embedding table stands for "no value". The codes of each column follow, column by
    column, and each column starts with its code for unknown.

    Args:
        columns: Vocabulary of each column.
        codes: int32 ``[N, C]``, rows of the embedding table. Each column of the table of items or
            users has as many of the C places as its largest number of values. Unused places hold 0.
        weights: float32 ``[N, C]``, weight of each code: one divided by the number of values that
            the item or user has in the same column. Unused places have weight 0.
    """

    columns: tuple[Column, ...]
    codes: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @classmethod
    def fit(
        cls, frame: pl.DataFrame | None, names: Sequence[str], trained: npt.NDArray[np.bool_]
    ) -> Attributes | None:
        """Learn the columns from the training items or users, and encode all items or users.

        Returns None if ``names`` is empty.

        Args:
            frame: Table whose row i describes ``item_idx`` i, or ``user_idx`` i. None if there is
                no such table.
            names: Names of the columns to encode.
            trained: bool ``[N]``, True for items or users that occur in training histories.

        Raises:
            ConfigError: There is no table, or the table lacks a column; see `require_columns`.
        """
        if not names:
            return None
        frame = require_columns(frame, names)
        known = frame.filter(pl.Series(trained))
        return cls.read(tuple(_fit_column(known[name]) for name in names), frame)

    @classmethod
    def read(cls, columns: tuple[Column, ...], items: pl.DataFrame) -> Attributes:
        """Encode items or users with columns that are already learned.

        If the table lacks a column, all rows get the column's code for unknown.
        """
        codes, weights, start = [], [], 1
        for column in columns:
            found = _read_column(column, items)
            given = found >= 0
            codes.append(np.where(given, found + start, 0))
            weights.append(given / np.maximum(given.sum(axis=1, keepdims=True), 1))
            start += column.num_codes
        return cls(
            columns,
            np.concatenate(codes, axis=1).astype(np.int32),
            np.concatenate(weights, axis=1).astype(np.float32),
        )

    @property
    def num_rows(self) -> int:
        """Number of rows of the embedding table: one for "no value" and one per code.

        It does not count the items or users that the attributes describe.
        """
        return 1 + sum(column.num_codes for column in self.columns)

    @property
    def unknown_rows(self) -> list[int]:
        """Row of the embedding table that stands for unknown, for each column."""
        starts = np.cumsum([1, *(column.num_codes for column in self.columns)])
        return [int(start) for start in starts[:-1]]

    def joined_with(self, items: pl.DataFrame) -> Attributes:
        """Return these attributes followed by those of further items, with the same columns."""
        later = Attributes.read(self.columns, items)
        width = max(self.codes.shape[1], later.codes.shape[1])
        parts = (self, later)
        return Attributes(
            self.columns,
            np.concatenate([_widen(part.codes, width) for part in parts]),
            np.concatenate([_widen(part.weights, width) for part in parts]),
        )

    def with_stranger(self) -> Attributes:
        """Return these attributes with one more row at the end, for an unknown user."""
        return self.joined_with(pl.DataFrame({"": [None]}))

    def only_stranger(self) -> Attributes:
        """Return the last row alone, which after `with_stranger` is the row of an unknown user."""
        return Attributes(self.columns, self.codes[-1:], self.weights[-1:])

    def save(self, directory: Path, name: str) -> None:
        """Write the file ``<name>.safetensors`` into an existing folder."""
        from safetensors.numpy import save_file

        columns = json.dumps([column.model_dump() for column in self.columns])
        save_file(
            {"codes": self.codes, "weights": self.weights},
            directory / f"{name}.safetensors",
            {"columns": columns},
        )

    @classmethod
    def load(cls, directory: Path, name: str, num_rows: int | None = None) -> Attributes:
        """Read the attributes that `save` wrote.

        Args:
            directory: Folder that holds the file.
            name: Name of the file without its suffix.
            num_rows: Expected number N of items or users. None accepts any number.

        Raises:
            ArtifactError: The file is missing or damaged, or has another number of items or users.
        """
        from safetensors import SafetensorError, safe_open

        path = directory / f"{name}.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                codes, weights = file.get_tensor("codes"), file.get_tensor("weights")
                told: list[Any] = json.loads((file.metadata() or {})["columns"])
            columns = tuple(Column.model_validate(column) for column in told)
        except (OSError, SafetensorError, KeyError, ValueError, ValidationError) as error:
            raise ArtifactError(f"No readable attributes at {path}: {error}") from None
        found = cls(columns, codes, weights)
        shape = (len(codes) if num_rows is None else num_rows, codes.shape[-1])
        fits = codes.dtype == np.int32 and weights.dtype == np.float32
        if not fits or codes.shape != shape or weights.shape != shape or not columns:
            raise ArtifactError(f"{path} has the attributes of {len(codes)} rows, not {shape[0]}.")
        if codes.size and not 0 <= codes.min() <= codes.max() < found.num_rows:
            raise ArtifactError(f"{path} holds codes that its columns do not have.")
        return found


def require_columns(
    frame: pl.DataFrame | None, names: Sequence[str], setting: str = "retriever.item_attributes"
) -> pl.DataFrame:
    """Return the table if it has all these columns, or raise an error.

    Args:
        frame: Table of items or users. None if there is no such table.
        names: Names of the required columns, at least one.
        setting: Setting that named the columns, for error messages.

    Raises:
        ConfigError: There is no table, or the table lacks a column. The message lists the columns
            that the table has.
    """
    if frame is None:
        raise ConfigError(
            f"{setting} names {names[0]}, but there is no user table: name one with "
            "data.table.users_path, or leave the attributes out."
        )
    known = [name for name in frame.columns if name not in ("item_id", "user_id", "title")]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{setting} names {name}, which the table lacks; it has "
                f"{', '.join(known) or 'only ids and titles'}."
            )
    return frame


def _fit_column(values: pl.Series) -> Column:
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).drop_nulls().drop_nans()
        shares = np.arange(1, BUCKETS) / BUCKETS
        edges: list[float] = []
        if len(numbers):
            edges = np.unique(np.quantile(numbers.to_numpy(), shares)).tolist()
        return Column(name=values.name, kind="numbers", edges=edges)
    words = _words(values).explode().drop_nulls()
    counts = words.value_counts(name="items").filter(pl.col("items") >= FEWEST)
    return Column(name=values.name, kind="words", values=counts[values.name].sort().to_list())


def _words(values: pl.Series) -> pl.Series:
    """Return the list of distinct values of each item, empty for an item without values."""
    if isinstance(values.dtype, pl.List):
        lists = values.cast(pl.List(pl.String))
    else:
        lists = values.cast(pl.String).to_frame().select(pl.concat_list(values.name)).to_series()
    return lists.fill_null([]).list.drop_nulls().list.unique(maintain_order=True)


def _read_column(column: Column, items: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Return the codes of one column, int64 ``[N, C]``.

    Codes count from 0 within the column, and 0 is the code for unknown. Places after an item's last
    value hold -1.
    """
    num_items = len(items)
    if column.name not in items.columns:
        return np.zeros((num_items, 1), np.int64)
    values = items[column.name]
    if column.kind == "numbers":
        numbers = values.cast(pl.Float64, strict=False) if not values.dtype.is_nested() else None
        if numbers is None:
            return np.zeros((num_items, 1), np.int64)
        found = numbers.fill_null(float("nan")).to_numpy()
        buckets = np.searchsorted(np.array(column.edges), found, side="left") + 1
        return np.where(np.isnan(found), 0, buckets).astype(np.int64)[:, None]
    known = {value: code for code, value in enumerate(column.values, start=1)}
    lists = [
        # Text files write a list as one text with commas.
        [known[word] for word in _split(words, known) if word in known][:MAX_VALUES] or [0]
        for words in _words(values).to_list()
    ]
    width = max(map(len, lists), default=1)
    return np.array([codes + [-1] * (width - len(codes)) for codes in lists], np.int64).reshape(
        num_items, width
    )


def _split(words: list[str], known: dict[str, int]) -> list[str]:
    if len(words) == 1 and words[0] not in known:
        return [word.strip() for word in words[0].split(",")]
    return words


def _widen(rows: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
