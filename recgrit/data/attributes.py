"""Columns of the tables of items and users as codes: words as they are, numbers as quantiles.

What values there are is learned from the items or users of training and stays fixed: an item that
joins later is read by the same vocabulary, and a value that this lacks is unknown.
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
# Buckets of a column of numbers, each of about as many training items.
BUCKETS = 10
# Training items, or users, that a value needs for a code of its own.
FEWEST = 5
# Values of an item or user that count, of a column of lists.
MAX_VALUES = 8


class Column(BaseModel):
    """What is known of one column.

    Args:
        name: Of the column.
        kind: ``words`` are values as they are, ``numbers`` quantiles.
        values: The words that have a code, in the order of their codes.
        edges: Of numbers, ascending; a bucket holds what is over one and up to the next.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    kind: Literal["words", "numbers"]
    values: list[str] = []
    edges: list[float] = []

    @property
    def num_codes(self) -> int:
        """How many codes there are, that of what is unknown included, which is the first."""
        return 1 + (len(self.values) if self.kind == "words" else len(self.edges) + 1)


@dataclass(frozen=True)
class Attributes:
    """The attributes of some items, or users, as rows of one table of embeddings.

    Row 0 of the table is of no value; then come the codes of each column, unknown first.

    Args:
        columns: What is known of each.
        codes: int32 ``[N, C]``, rows of the table, 0 where an item has fewer values.
        weights: float32 ``[N, C]``, one over the number of the item's values in the same column; 0
            where there is none.
    """

    columns: tuple[Column, ...]
    codes: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @classmethod
    def fit(
        cls, frame: pl.DataFrame | None, names: Sequence[str], trained: npt.NDArray[np.bool_]
    ) -> Attributes | None:
        """Learn the columns from trained items, or users, and read all; None without columns.

        Args:
            frame: Row i is ``item_idx`` i, or ``user_idx``; None where there is no such table.
            names: Of the columns.
            trained: bool ``[N]``, the items, or users, of training histories.

        Raises:
            ConfigError: `require_columns`.
        """
        if not names:
            return None
        frame = require_columns(frame, names)
        known = frame.filter(pl.Series(trained))
        return cls.read(tuple(_fit_column(known[name]) for name in names), frame)

    @classmethod
    def read(cls, columns: tuple[Column, ...], items: pl.DataFrame) -> Attributes:
        """The attributes of items by columns that are known; a column they lack is unknown."""
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
        """Rows of the table of embeddings."""
        return 1 + sum(column.num_codes for column in self.columns)

    @property
    def unknown_rows(self) -> list[int]:
        """The row of each column that stands for what is unknown."""
        starts = np.cumsum([1, *(column.num_codes for column in self.columns)])
        return [int(start) for start in starts[:-1]]

    def joined_with(self, items: pl.DataFrame) -> Attributes:
        """These items, and others behind them by the same columns."""
        later = Attributes.read(self.columns, items)
        width = max(self.codes.shape[1], later.codes.shape[1])
        parts = (self, later)
        return Attributes(
            self.columns,
            np.concatenate([_widen(part.codes, width) for part in parts]),
            np.concatenate([_widen(part.weights, width) for part in parts]),
        )

    def with_stranger(self) -> Attributes:
        """These rows, and a last one of an unknown user."""
        return self.joined_with(pl.DataFrame({"": [None]}))

    def only_stranger(self) -> Attributes:
        """Of `with_stranger`, the last alone."""
        return Attributes(self.columns, self.codes[-1:], self.weights[-1:])

    def save(self, directory: Path, name: str) -> None:
        """Write one file, called so, into an existing folder."""
        from safetensors.numpy import save_file

        columns = json.dumps([column.model_dump() for column in self.columns])
        save_file(
            {"codes": self.codes, "weights": self.weights},
            directory / f"{name}.safetensors",
            {"columns": columns},
        )

    @classmethod
    def load(cls, directory: Path, name: str, num_rows: int | None = None) -> Attributes:
        """Read what `save` wrote.

        Args:
            directory: Where it is.
            name: What it is called.
            num_rows: N, where it is known.

        Raises:
            ArtifactError: The file is missing, damaged, or of another number of items.
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
    """The table, if it has these columns.

    Args:
        frame: Of items or users; None where there is no such table.
        names: Of the columns; at least one.
        setting: Which named them.

    Raises:
        ConfigError: There is no table, or it has no such column; names those that there are.
    """
    if frame is None:
        raise ConfigError(
            f"{setting} names {names[0]}, but nothing is known of users: name a table of them with "
            "data.table.users_path, or leave the attributes out."
        )
    known = [name for name in frame.columns if name not in ("item_id", "user_id", "title")]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{setting} names {name}, which the table lacks; it has "
                f"{', '.join(known) or 'nothing beside ids and titles'}."
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
    """Lists of an item's different values; empty for none."""
    if isinstance(values.dtype, pl.List):
        lists = values.cast(pl.List(pl.String))
    else:
        lists = values.cast(pl.String).to_frame().select(pl.concat_list(values.name)).to_series()
    return lists.fill_null([]).list.drop_nulls().list.unique(maintain_order=True)


def _read_column(column: Column, items: pl.DataFrame) -> npt.NDArray[np.int64]:
    """int64 ``[N, C]``, codes from 0, which is unknown; -1 behind an item's last."""
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
        # Lists in text files have commas.
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
