"""Reader of ``NAME.inter.json``: each user's items in order, as numbers and without times.

LETTER, LC-Rec, MiniOneRec and MQL4GRec publish their data in this form, and `recgrit.export` writes
it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.data.sources.cleaning import (
    CleanRows,
    clean_interactions,
    clean_items,
    clean_text,
    to_raw_data,
)
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.numbered import (
    ID_FIELDS,
    find_item_numbers,
    read_item_numbers,
    read_object,
)
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import list_folder, require_path
from recgrit.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".inter.json", ".inter.json.gz")
FORM = 'a JSON object of item numbers by user, such as {"0": [3, 17, 4]}'
# Fields of an item that are read in addition to its title.
TEXT_FIELDS = ("brand", "categories", "description")


@dataclass(frozen=True)
class Sequences:
    """The source of a data set that lists the item numbers of each user in order.

    The position in a sequence serves as time, so times can be compared only within a user.
    """

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        return (
            "exactly one NAME.inter.json (or .inter.json.gz) and, if present, NAME.item2id and "
            "NAME.item.json"
        )

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the file of sequences, and the files that number and describe the items.

        Raises:
            DataError: There is not exactly one file of sequences.
        """
        require_path(path, self.expected)
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [file for file in found if file.name.endswith(SUFFIXES) and file.is_file()]
        if len(found) != 1:
            folder = path if path.is_dir() else path.parent
            raise DataError(
                f"{path} does not hold a data set of sequences: expected {self.expected}; found "
                f"{list_folder(folder)}. Set data.path to the folder, or to one .inter.json file."
            )
        name = found[0].name.partition(".inter.json")[0]
        described = found[0].with_name(f"{name}.item.json")
        others = [*find_item_numbers(found[0], name), *([described] if described.is_file() else [])]
        return (found[0], *dict.fromkeys(others))

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the sequences, and the items if their file exists.

        Raises:
            DataError: A file is damaged or of another form, or an item number is unknown.
        """
        coder = coder or InteractionCoder()
        names = read_item_numbers(files[1]) if len(files) > 1 else {}
        interactions = _read_sequences(files[0], names, max_malformed_share, coder)
        described = files[-1] if files[-1].name.endswith(".item.json") else None
        items = _read_items(described, names, max_malformed_share)
        return to_raw_data(interactions, items, files, coder)


def _read_sequences(
    path: Path, names: dict[str, str], max_malformed_share: float, coder: InteractionCoder
) -> CleanRows:
    users: list[str] = []
    items: list[str] = []
    positions: list[int] = []
    for user, numbers in read_object(path, FORM).items():
        if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
            raise DataError(f"{path}: the entry {user!r} is {str(numbers)[:80]}. Expected {FORM}.")
        users += [user] * len(numbers)
        items += [_name(path, user, str(number), names) for number in numbers]
        positions += range(len(numbers))
    rows = pl.DataFrame(
        {
            "line": pl.Series(range(1, len(users) + 1), dtype=pl.Int64),
            "user_id": pl.Series(users, dtype=pl.String),
            "item_id": pl.Series(items, dtype=pl.String),
            "timestamp": pl.Series(positions, dtype=pl.Int64),
        }
    )
    return clean_interactions(rows, str(path), FORM, max_malformed_share, coder)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return value.isdecimal()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _name(path: Path, user: str, number: str, names: dict[str, str]) -> str:
    """Return the id of an item number, or the number itself if no file names the ids."""
    if not names:
        return number
    if number not in names:
        raise DataError(
            f"{path}: user {user!r} has item number {number}, which is not among the "
            f"{len(names)} items of the file beside it. Use files of one data set."
        )
    return names[number]


def _read_items(path: Path | None, names: dict[str, str], max_malformed_share: float) -> CleanRows:
    """Read the descriptions of the items; without a file the table is empty."""
    schema = {"item_id": pl.String, "title": pl.String}
    if path is None:
        return CleanRows(pl.DataFrame(schema=schema), num_read=0, num_malformed=0)
    form = 'a JSON object such as {"0": {"title": "Strings"}}'
    entries = read_object(path, form)
    wrong = next((key for key, entry in entries.items() if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise DataError(f"{path}: the entry {wrong!r} is not an object. Expected {form}.")
    present = set().union(*entries.values())
    if others := sorted(present.difference(("title", *TEXT_FIELDS, *ID_FIELDS))):
        logger.warning("%s: the fields %s are not read", path.name, ", ".join(others))
    columns: dict[str, list[Any]] = {
        "line": list(range(1, len(entries) + 1)),
        "item_id": [names.get(number) if names else number for number in entries],
        "title": [clean_text(entry.get("title")) for entry in entries.values()],
    }
    for name in (name for name in TEXT_FIELDS if name in present):
        columns[name] = [_read_text(entry.get(name)) for entry in entries.values()]
    overrides = {"line": pl.Int64} | {name: pl.String for name in columns if name != "line"}
    rows = pl.DataFrame(columns, schema_overrides=overrides)
    return clean_items(rows, str(path), form, max_malformed_share)


def _read_text(value: object) -> str | None:
    """Return the text of a field; a list of words becomes one text."""
    if isinstance(value, list):
        value = ", ".join(str(part) for part in value)
    return clean_text(value)
