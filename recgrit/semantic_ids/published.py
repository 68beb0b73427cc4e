"""Semantic IDs that somebody published, for the items of a run.

LETTER, LC-Rec and MiniOneRec write ``NAME.index.json``, ``{"0": ["<a_12>", "<b_7>", "<c_201>"]}``,
by the number of the item; MQL4GRec writes ``NAME.index_KIND.json`` for each kind of content. Which
item has which number stands beside it (`recgrit.data.sources.numbered`). Where nothing does, the
keys are taken for item ids.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.sources.numbered import find_item_numbers, read_item_numbers, read_object
from recgrit.errors import DataError
from recgrit.semantic_ids.table import parse_semantic_id

logger = logging.getLogger(__name__)

INDEX_SUFFIX = re.compile(r"(\.index[^.]*)?\.json$")
# A larger code is damage: every code of a level gets a vector, whether an item has it or not.
MAX_CODE = 2**20
FORM = 'a JSON object such as {"0": ["<a_12>", "<b_7>", "<c_201>"]}'


@dataclass(frozen=True)
class PublishedIds:
    """The codes of a run's items in a published table.

    Args:
        codes: int64 ``[num_items, id_length]``, one row per item asked for; rows may repeat.
        codebook_sizes: One more than the largest code of each level in the whole table.
        num_unknown: Items of the table that were not asked for.
    """

    codes: npt.NDArray[np.int64]
    codebook_sizes: tuple[int, ...]
    num_unknown: int


def find_published_files(path: Path) -> tuple[Path, ...]:
    """The table, and the file that says which item has which number if there is one.

    Raises:
        DataError: There is no table.
    """
    if not path.is_file():
        raise DataError(
            f"No semantic IDs at {path}. Expected {FORM}; check tokenizer.semantic_ids_path."
        )
    return (path, *find_item_numbers(path, _name_of(path)))


def _name_of(path: Path) -> str:
    """Of the data set that a table belongs to."""
    return INDEX_SUFFIX.sub("", path.name)


@dataclass(frozen=True)
class FoundIds:
    """A published table, and where the items asked for stand in it.

    Args:
        codes: int64 ``[n, id_length]`` of the whole table.
        codebook_sizes: One more than the largest code of each level.
        rows: int64, the row of each item asked for; -1 where the table has none.
        known: Some of the items that it knows.
    """

    codes: npt.NDArray[np.int64]
    codebook_sizes: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    known: tuple[str, ...]


def find_published_ids(path: Path, item_ids: pl.Series) -> FoundIds:
    """A table and where these items stand in it, those that it lacks included.

    Args:
        path: The table.
        item_ids: External ids.

    Raises:
        DataError: A file cannot be read, a token is malformed, an item is there twice, or IDs
            differ in length.
    """
    files = find_published_files(path)
    table = read_object(path, FORM)
    if not table:
        raise DataError(f"{path} holds no semantic IDs: expected {FORM}.")
    names = read_item_numbers(files[1]) if len(files) > 1 else {}
    if not names:
        _refuse_bare_numbers(path, table, item_ids)
    row_of_item: dict[str, int] = {}
    codes: list[tuple[int, ...]] = []
    for key, tokens in table.items():
        item_id = names.get(key) if names else key
        if item_id in row_of_item:
            raise DataError(f"{path}: two entries are the item {item_id!r}. Keep one of them.")
        if item_id is not None:  # A number that no item has is one of an unknown item.
            row_of_item[item_id] = len(codes)
        codes.append(_parse_tokens(path, key, tokens))
    _refuse_other_lengths(path, list(table), codes)
    everything = np.array(codes, dtype=np.int64)
    return FoundIds(
        everything,
        tuple((everything.max(axis=0) + 1).tolist()),
        np.array([row_of_item.get(item_id, -1) for item_id in item_ids], dtype=np.int64),
        tuple(list(row_of_item)[:3]),
    )


def read_published_ids(path: Path, item_ids: pl.Series) -> PublishedIds:
    """The codes of these items, in their order.

    Args:
        path: The table.
        item_ids: External ids.

    Raises:
        DataError: As for `find_published_ids`, or an item asked for has no ID.
    """
    found = find_published_ids(path, item_ids)
    missing = item_ids.filter(pl.Series(found.rows < 0))
    if len(missing):
        raise DataError(
            f"{path} has no semantic ID for {len(missing)} of {len(item_ids)} items of this run, "
            f"the first {missing.head(3).to_list()}; it knows {len(found.codes)} items, such as "
            f"{list(found.known)}. Prepare the data as the table's authors did, or unset "
            "tokenizer.semantic_ids_path to fit IDs."
        )
    num_unknown = len(found.codes) - len(item_ids)
    if num_unknown:
        logger.warning("%s: %d of its items are not in this run", path.name, num_unknown)
    return PublishedIds(found.codes[found.rows], found.codebook_sizes, num_unknown)


def _parse_tokens(path: Path, key: str, tokens: object) -> tuple[int, ...]:
    """The codes that a list of tokens spells, one token a level."""
    codes: tuple[int, ...] = ()
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        with contextlib.suppress(DataError):  # Told below, with the key.
            codes = parse_semantic_id("".join(tokens).lower())
        if len(codes) == len(tokens) and max(codes, default=MAX_CODE) < MAX_CODE:
            return codes
    raise DataError(
        f"{path}: the entry {key!r} is {str(tokens)[:80]!r}. Expected a list of tokens with levels "
        f"a, b, c in order and codes below {MAX_CODE:,}, such as ['<a_12>', '<b_7>', '<c_201>']."
    )


def _refuse_other_lengths(path: Path, keys: list[str], codes: list[tuple[int, ...]]) -> None:
    lengths = [len(row) for row in codes]
    for key, length in zip(keys, lengths, strict=True):
        if length != lengths[0]:
            raise DataError(
                f"{path}: the ID of {key!r} has {length} levels and that of {keys[0]!r} "
                f"{lengths[0]}. Expected IDs of one length."
            )


def _refuse_bare_numbers(path: Path, table: dict[str, Any], item_ids: pl.Series) -> None:
    """Numbers of items would pass for ids where ids are numbers too: silently the wrong items."""
    numbers = {str(number) for number in range(len(table))}
    if set(table) == numbers and set(item_ids) != numbers:
        name = _name_of(path)
        raise DataError(
            f"{path} goes by the numbers 0 to {len(table) - 1}, and nothing says which item has "
            f"which: expected {name}.item2id (item id, tab, number) or {name}.item.json with "
            f"item_id in each entry beside it. Put one there, or use item ids as keys."
        )
