"""Readers of files that refer to items by number, and of the files that give each item its number.

LETTER, LC-Rec, MiniOneRec and MQL4GRec write ``NAME.index.json`` with semantic IDs and
``NAME.inter.json`` with sequences. The numbers of items are in a file beside them: ``NAME.item2id``
(item id, tab, number) or ``NAME.item.json`` (``{"0": {"item_id": "B000..."}}``, as `recgrit.export`
writes it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recgrit.data.sources.reading import Place, decode, read_file
from recgrit.errors import DataError

# Names of the field of an item's id in .item.json.
ID_FIELDS = ("item_id", "asin", "parent_asin")


def find_item_numbers(path: Path, name: str) -> tuple[Path, ...]:
    """Return a tuple of the file beside ``path`` that numbers the items, empty if there is none.

    Args:
        path: Path of the file that refers to items by number.
        name: Name of the data set.
    """
    beside = [path.with_name(f"{name}{suffix}") for suffix in (".item2id", ".item.json")]
    return tuple(file for file in beside if file.is_file())[:1]


def read_item_numbers(path: Path) -> dict[str, str]:
    """Read the id of each item number; the result is empty if the file names no ids.

    Raises:
        DataError: The file cannot be read, a line is malformed, or two items have the same number.
    """
    if path.suffix == ".json":
        entries = read_object(path, 'a JSON object such as {"0": {"item_id": "B000"}}')
        found = {}
        for number, entry in entries.items():
            fields = entry if isinstance(entry, dict) else {}
            item_id = next((fields[name] for name in ID_FIELDS if name in fields), None)
            if isinstance(item_id, str | int):
                found[number] = str(item_id)
        return found
    found = {}
    for line, text in enumerate(decode(read_file(Place(path))).split("\n"), start=1):
        if not text.strip():
            continue
        item_id, separator, number = text.rstrip("\r").rpartition("\t")
        if not separator or not number.strip():
            raise DataError(
                f"{path}, line {line}: expected an item id, a tab and a number, got {text[:80]!r}."
            )
        if found.setdefault(number.strip(), item_id) != item_id:
            raise DataError(
                f"{path}, line {line}: the number {number.strip()} already belongs to another "
                "item. Give each item its own number."
            )
    return found


def read_object(path: Path, form: str) -> dict[str, Any]:
    """Read the JSON object in a file, which may be packed with gzip.

    Args:
        path: Path of the file.
        form: Description of the expected object, for messages.

    Raises:
        DataError: The file cannot be read, is not a JSON object, or has a key twice.
    """
    try:
        value = json.loads(decode(read_file(Place(path))), object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected {form}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}: expected {form}.")
    return value


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of key-value pairs, or raise an error if a key is repeated.

    The JSON parser alone would silently keep the last of equal keys.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return found
