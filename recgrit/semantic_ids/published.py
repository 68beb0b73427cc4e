"""Published semantic IDs as the IDs of a run's items.

LETTER, LC-Rec and MiniOneRec publish ``NAME.index.json``, which maps the number of each item to its
ID: ``{"0": ["<a_12>", "<b_7>", "<c_201>"]}``. MQL4GRec publishes ``NAME.index_KIND.json`` for each
kind of content. A file beside the table says which item has which number
(`recgrit.data.sources.numbered`). Without such a file, the keys are read as item ids.
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
# A code of this size or above is an error in the file. It would need too much memory, because every
# code of a level up to the largest gets a vector.
MAX_CODE = 2**20
FORM = 'a JSON object such as {"0": ["<a_12>", "<b_7>", "<c_201>"]}'


@dataclass(frozen=True)
class PublishedIds:
    """The published codes of the items of a run.

    Args:
        codes: Codes of each requested item, int64 ``[num_items, id_length]``. Several items may
            have the same codes.
        codebook_sizes: Number of codes of each level: the largest code in the whole table plus 1.
        num_unknown: Number of items in the table that were not requested.
    """

    codes: npt.NDArray[np.int64]
    codebook_sizes: tuple[int, ...]
    num_unknown: int


def find_published_files(path: Path) -> tuple[Path, ...]:
    """Return the table and, if there is one, the file that says which item has which number.

    Args:
        path: The table of published IDs.

    Raises:
        DataError: The table does not exist.
    """
    if not path.is_file():
        raise DataError(
            f"No semantic IDs at {path}. Expected {FORM}; check tokenizer.semantic_ids_path."
        )
    return (path, *find_item_numbers(path, _name_of(path)))


def _name_of(path: Path) -> str:
    """Return the name of the data set from the file name of its table."""
    return INDEX_SUFFIX.sub("", path.name)


@dataclass(frozen=True)
class FoundIds:
    """A published table of IDs, and the rows of the requested items in it.

    Args:
        codes: Codes of the whole table, int64 ``[n, id_length]``.
        codebook_sizes: Number of codes of each level: the largest code plus 1.
        rows: Row of each requested item in ``codes``, int64; -1 if the table does not have the
            item.
        known: Ids of the first items in the table, as examples for messages.
    """

    codes: npt.NDArray[np.int64]
    codebook_sizes: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    known: tuple[str, ...]


def find_published_ids(path: Path, item_ids: pl.Series) -> FoundIds:
    """Read a published table, and find the rows of some items in it.

    The table may lack some of the items.

    Args:
        path: The table of published IDs.
        item_ids: Ids of the items to find.

    Raises:
        DataError: A file cannot be read, a token is malformed, an item has two entries, IDs differ
            in length, or the keys are item numbers and no file says which item has which number.
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
            raise DataError(f"{path}: two entries belong to item {item_id!r}. Keep one.")
        if item_id is not None:  # A number without an item id belongs to an unknown item.
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
    """Read the published codes of some items, in the order of the items.

    Args:
        path: The table of published IDs.
        item_ids: Ids of the items to read.

    Raises:
        DataError: A requested item has no ID, or `find_published_ids` raises it.
    """
    found = find_published_ids(path, item_ids)
    missing = item_ids.filter(pl.Series(found.rows < 0))
    if len(missing):
        raise DataError(
            f"{path} has no semantic ID for {len(missing)} of {len(item_ids)} items of this run, "
            f"the first {missing.head(3).to_list()}; it has IDs of {len(found.codes)} items, such "
            f"as {list(found.known)}. Prepare the data as the table's authors did, or unset "
            "tokenizer.semantic_ids_path to fit IDs."
        )
    num_unknown = len(found.codes) - len(item_ids)
    if num_unknown:
        logger.warning("%s: %d of its items are not in this run", path.name, num_unknown)
    return PublishedIds(found.codes[found.rows], found.codebook_sizes, num_unknown)


def _parse_tokens(path: Path, key: str, tokens: object) -> tuple[int, ...]:
    """Return the codes of a list of tokens, which has one token per level."""
    codes: tuple[int, ...] = ()
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        with contextlib.suppress(DataError):  # The error is raised below, with the key.
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
                f"{lengths[0]}. Expected IDs of the same length."
            )


def _refuse_bare_numbers(path: Path, table: dict[str, Any], item_ids: pl.Series) -> None:
    """Raise an error if the keys of a table are item numbers and no file says which item has which.

    Where item ids are numbers too, the keys would be read as item ids, and the items would silently
    get IDs of other items.
    """
    numbers = {str(number) for number in range(len(table))}
    if set(table) == numbers and set(item_ids) != numbers:
        name = _name_of(path)
        raise DataError(
            f"The keys of {path} are the numbers 0 to {len(table) - 1}, and no file maps them to "
            f"items: expected {name}.item2id (item id, tab, number) or {name}.item.json with "
            f"item_id in each entry, in the same folder. Add one, or use item ids as keys."
        )
