"""Semantic IDs that somebody published, for the items of a run.

LETTER, LC-Rec and MiniOneRec write ``NAME.index.json``, ``{"0": ["<a_12>", "<b_7>", "<c_201>"]}``,
by the number of the item. Which item has which number stands beside it, in ``NAME.item2id`` (item
id, tab, number) or in ``NAME.item.json`` (``{"0": {"item_id": "B000..."}}``, as `recgrit.export`
writes it). Without either, the keys are taken for item ids.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.errors import DataError
from recgrit.semantic_ids.table import parse_semantic_id

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index.json"
# What an entry of .item.json calls the item's id.
ID_FIELDS = ("item_id", "asin", "parent_asin")
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
    name = path.name.removesuffix(INDEX_SUFFIX).removesuffix(".json")
    beside = [path.with_name(f"{name}{suffix}") for suffix in (".item2id", ".item.json")]
    return (path, *[file for file in beside if file.is_file()][:1])


def read_published_ids(path: Path, item_ids: pl.Series) -> PublishedIds:
    """The codes of these items, in their order.

    Args:
        path: The table.
        item_ids: External ids.

    Raises:
        DataError: A file cannot be read, a token is malformed, an item is there twice, IDs differ
            in length, or an item asked for has none.
    """
    files = find_published_files(path)
    table = _read_object(path, FORM)
    if not table:
        raise DataError(f"{path} holds no semantic IDs: expected {FORM}.")
    names = _read_numbers(files[1]) if len(files) > 1 else {}
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
    missing = [item_id for item_id in item_ids if item_id not in row_of_item]
    if missing:
        raise DataError(
            f"{path} has no semantic ID for {len(missing)} of {len(item_ids)} items of this run, "
            f"the first {missing[:3]}; it knows {len(table)} items, such as "
            f"{list(row_of_item)[:3]}. Prepare the data as the table's authors did, or unset "
            "tokenizer.semantic_ids_path to fit IDs."
        )
    everything = np.array(codes, dtype=np.int64)
    rows = np.array([row_of_item[item_id] for item_id in item_ids], dtype=np.int64)
    num_unknown = len(table) - len(item_ids)
    if num_unknown:
        logger.warning("%s: %d of its items are not in this run", path.name, num_unknown)
    sizes = tuple((everything.max(axis=0) + 1).tolist())
    return PublishedIds(everything[rows], sizes, num_unknown)


def _parse_tokens(path: Path, key: str, tokens: object) -> tuple[int, ...]:
    """The codes that a list of tokens spells, one token a level."""
    codes: tuple[int, ...] = ()
    if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
        with contextlib.suppress(DataError):  # Told below, with the key.
            codes = parse_semantic_id("".join(tokens))
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
        name = path.name.removesuffix(INDEX_SUFFIX).removesuffix(".json")
        raise DataError(
            f"{path} goes by the numbers 0 to {len(table) - 1}, and nothing says which item has "
            f"which: expected {name}.item2id (item id, tab, number) or {name}.item.json with "
            f"item_id in each entry beside it. Put one there, or use item ids as keys."
        )


def _read_numbers(path: Path) -> dict[str, str]:
    """Item ids by number; empty where the file describes items without naming them."""
    if path.suffix == ".json":
        entries = _read_object(path, 'a JSON object such as {"0": {"item_id": "B000"}}')
        found = {}
        for number, entry in entries.items():
            fields = entry if isinstance(entry, dict) else {}
            item_id = next((fields[name] for name in ID_FIELDS if name in fields), None)
            if isinstance(item_id, str | int):
                found[number] = str(item_id)
        return found
    found = {}
    for line, text in enumerate(_read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        item_id, separator, number = text.rstrip("\r").rpartition("\t")
        if not separator or not number.strip():
            raise DataError(
                f"{path}, line {line}: expected an item id, a tab and a number, got {text[:80]!r}."
            )
        if found.setdefault(number.strip(), item_id) != item_id:
            raise DataError(f"{path}, line {line}: the number {number.strip()} is another item's.")
    return found


def _read_object(path: Path, form: str) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path), object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected {form}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}: expected {form}.")
    return value


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; json itself would silently keep the last of equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from None
