"""Detection of how a text file with a table is written, from its first lines and the settings."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recgrit.data.sources.reading import show_names
from recgrit.errors import ConfigError, DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "::": "double colons"}
# Character that replaces a separator of several characters, because Arrow accepts only one.
UNIT_SEPARATOR = "\x1f"
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NO_QUOTE = "none"
# Number of lines from which the separator is detected.
MAX_LINES = 100
_NUMBER_OR_DATE = re.compile(r"\s*(-?\d+([.,]\d+)?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?!\d).*)\s*")
_EXCEL_HINT = re.compile(r"\ufeff?sep=(.)\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The settings of how text files are written; a setting of None is detected from the file.

    Args:
        separator: Separator between fields.
        encoding: Character encoding of the text, such as ``latin-1``.
        quote: Quote character around fields that hold separators. ``none`` treats quote characters
            as ordinary characters, such as inch marks. None means the double quote.
        comment: Start of the lines that are comments. None treats lines that start with ``#`` as
            comments if the file begins with such a line.
        decimal: Decimal mark in numbers, a point or a comma.
        columns: Names of the columns of files without a header, in order. None reads the header.
    """

    separator: str | None = None
    encoding: str | None = None
    quote: str | None = None
    comment: str | None = None
    decimal: str | None = None
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The detected form of a text file.

    Args:
        encoding: Character encoding of the text.
        bom: Number of bytes of the byte order mark before the text.
        separator: Separator between fields.
        quote: Quote character around fields. None if there is none.
        comment: Start of the lines that are comments. None if there are none.
        names: Names of the columns.
        num_skipped: Number of lines before the data.
        has_header: Whether the last skipped line is a header.
        line_end: Character that ends a line.
        repeated: Names that occur more than once in the header.
    """

    encoding: str
    bom: int
    separator: str
    quote: str | None
    comment: str | None
    names: tuple[str, ...]
    num_skipped: int
    has_header: bool
    line_end: str
    repeated: frozenset[str] = frozenset()

    def describe(self) -> str:
        """Describe the form of the file, for messages."""
        words = [f"{SEPARATORS.get(self.separator, repr(self.separator))} between fields"]
        words.append(self.encoding.upper() + (" with a byte order mark" if self.bom else ""))
        words.append("a header" if self.has_header else f"no header, {show_names(self.names)}")
        if self.num_skipped > self.has_header:
            words.append(f"{self.num_skipped - self.has_header} lines before it skipped")
        if self.quote != '"':
            words.append("no quotes" if self.quote is None else f"{self.quote} as quotes")
        if self.line_end == "\r":
            words.append("lines that end in CR")
        return ", ".join(words)


def find_encoding(start: bytes, encoding: str | None, label: str) -> tuple[str, int]:
    """Return the encoding of a text and the length of its byte order mark in bytes.

    Args:
        start: First bytes of the file.
        encoding: Encoding that the user has set. None detects it.
        label: Name of the file.

    Raises:
        ConfigError: The encoding that is set does not exist.
    """
    marked = next(((name, len(bom)) for bom, name in BOMS if start.startswith(bom)), None)
    if encoding is not None:
        try:
            name = codecs.lookup(encoding).name
            "".encode(name)
        except (LookupError, UnicodeError):
            raise ConfigError(
                f"data.table.encoding={encoding} is not a known encoding: write it as in "
                "latin-1, cp1252, utf-16 or shift_jis."
            ) from None
        if marked is not None and marked[0].startswith(name.removesuffix("-sig")):
            return marked
        return name, 0
    if marked is not None:
        return marked
    even, odd = start[:4096:2].count(0), start[1:4096:2].count(0)
    half = len(start[:4096]) // 2
    if half and odd > 0.3 * half and even < 0.1 * half:
        return "utf-16-le", 0
    if half and even > 0.3 * half and odd < 0.1 * half:
        return "utf-16-be", 0
    return "utf-8", 0


def find_dialect(
    start: bytes,
    *,
    is_whole: bool,
    label: str,
    wanted: Sequence[str],
    settings: TextSettings,
    setting_of: str = "columns",
) -> Dialect:
    """Detect how a file is written from its first bytes.

    Args:
        start: First bytes of the file.
        is_whole: Whether these are all bytes of the file.
        label: Name of the file, for messages.
        wanted: Names of required columns.
        settings: Settings of how text files are written.
        setting_of: Setting that names the columns of a file without a header, for messages.

    Raises:
        ConfigError: A setting has no valid value.
        DataError: There is no text, or neither a header nor a setting that names the columns.
    """
    encoding, bom = find_encoding(start, settings.encoding, label)
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(start[bom:])
    line_end = "\r" if "\r" in text and "\n" not in text else "\n"
    lines = [line.removesuffix("\r") for line in text.split(line_end)]
    if not is_whole and len(lines) > 1:
        lines.pop()  # The last line is incomplete.
    lines = lines[: 10 * MAX_LINES]
    separator, place = settings.separator, 0
    comment = settings.comment
    found_comment = comment
    while place < len(lines):
        line = lines[place]
        if (hint := _EXCEL_HINT.fullmatch(line)) and place == 0:
            separator = separator or hint[1]
        elif line.strip() and not _is_comment(line, comment, wanted, separator):
            break
        elif line.startswith("#") and comment is None:
            found_comment = "#"
        place += 1
    body = lines[place : place + MAX_LINES]
    if not body:
        raise DataError(f"{label} is empty: it has no line of data.")
    quote = {None: '"', NO_QUOTE: None}.get(settings.quote, settings.quote)
    known = settings.columns
    if separator is None:
        separator = _find_separator(body, known or wanted, len(known or ()), quote)
    first = split_line(body[0].lstrip("#") if found_comment is None else body[0], separator, quote)
    names = [name.strip().strip('"').strip() for name in first]
    dialect = Dialect(
        separator=separator, quote=None if separator in ("::", UNIT_SEPARATOR) else quote,
        comment=found_comment, names=(), num_skipped=place, has_header=True,
        encoding=encoding, bom=bom, line_end=line_end,
    )  # fmt: skip
    if known is not None:
        if tuple(names) == known:
            return replace(dialect, names=known, num_skipped=place + 1)
        if len(first) != len(known):
            raise DataError(
                f"{label}, line {place + 1} has {len(first)} fields separated by {separator!r}, "
                f"but data.table.{setting_of} names {len(known)}: {show_names(known)}. The line is "
                f"{body[0][:80]!r}."
            )
        return replace(dialect, names=known, has_header=False)
    if not set(names) & set(wanted) and any(_NUMBER_OR_DATE.fullmatch(name) for name in names):
        raise DataError(
            f"{label} seems to have no header: its first line is {body[0][:80]!r}, "
            f"{len(first)} fields separated by {SEPARATORS.get(separator, separator)}. Name "
            f"them in order, as in data.table.{setting_of}="
            f"[{','.join([*wanted, *('other' + str(n) for n in range(9))][: len(first)])}]."
        )
    repeated = frozenset(name for name in names if name and names.count(name) > 1)
    return replace(dialect, names=_distinct(names), repeated=repeated, num_skipped=place + 1)


def split_line(line: str, separator: str, quote: str | None) -> list[str]:
    """Split one line into fields."""
    if len(separator) > 1 or quote is None:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, quotechar=quote), [])
    except csv.Error:
        return line.split(separator)


def _is_comment(
    line: str, comment: str | None, wanted: Sequence[str], separator: str | None
) -> bool:
    if comment is not None:
        return line.startswith(comment)
    if not line.startswith("#"):
        return False
    # A header may also begin with this character, as in '#user_id,item_id'.
    separators = SEPARATORS if separator is None else [separator]
    return not any(
        set(wanted) <= {field.strip() for field in line.lstrip("#").split(s)} for s in separators
    )


def _find_separator(
    lines: Sequence[str], wanted: Sequence[str], num_fields: int, quote: str | None
) -> str:
    """Return the separator that gives the required columns, or the one that most lines agree on."""
    best, best_score = ",", (False, 0.0, 0)
    for separator in SEPARATORS:
        counts = [len(split_line(line, separator, quote)) for line in lines if line.strip()]
        first = {f.strip().strip('"').strip("#") for f in split_line(lines[0], separator, quote)}
        alike = sum(count == counts[0] for count in counts) / len(counts)
        matches = set(wanted) <= first or (0 < num_fields == counts[0])
        score = (matches, round(alike, 1) if counts[0] > 1 else 0.0, counts[0])
        if score > best_score:
            best, best_score = separator, score
    return best


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return distinct names, by adding numbers to those that are empty or repeated."""
    found: dict[str, None] = {}
    for place, name in enumerate(names, start=1):
        new = name or f"column_{place}"
        while new in found:
            new = f"{new}_{place}"
        found[new] = None
    return tuple(found)
