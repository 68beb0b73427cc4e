"""Reader of text files with a table, which repairs quotes and parses block by block with Arrow.

Arrow takes any quote at the start of a field as the beginning of a quoted text, and skips the lines
that it cannot split. Each block is therefore checked first. If a quote is at a place where no
program would write it, as in `7" lamp`, the lines around it are rewritten before they are parsed.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recgrit.data.sources.dialect import UNIT_SEPARATOR, Dialect, TextSettings, find_dialect
from recgrit.data.sources.reading import Place, read_pieces, refuse_html, refuse_long_line
from recgrit.errors import DataError

PIECE_BYTES = 16 * 2**20
HEAD_BYTES = 2**18
# Largest numbers of lines and bytes of a record with a quoted text.
MAX_RECORD_LINES = 1000
MAX_RECORD_BYTES = 2**20


@dataclass(frozen=True)
class Rows:
    """Some rows of a file.

    Args:
        frame: Columns that were asked for. In text files all are text.
        lines: Line number of each row, or row number if the format has no lines.
        unsplit: Numbers of the lines that have too many or too few fields.
    """

    frame: pl.DataFrame
    lines: pl.Series
    unsplit: pl.Series


class TextFile:
    """A text file with a table.

    Args:
        place: Location of the file.
        wanted: Names of required columns, which help to detect the separator.
        settings: Known facts about how the file is written.
        setting_of: Setting that names the columns of a file without a header, for messages.

    Raises:
        DataError: The file cannot be read, is a web page, or has no header.
    """

    def __init__(
        self,
        place: Place,
        wanted: Sequence[str],
        settings: TextSettings,
        *,
        setting_of: str = "columns",
    ) -> None:
        self.place, self._settings = place, settings
        start, is_whole = b"", False
        pieces = read_pieces(place, HEAD_BYTES)
        for piece in pieces:
            start += piece
            if len(start) >= HEAD_BYTES:
                break
        else:
            is_whole = True
        pieces.close()
        refuse_html(place.label, start)
        self.dialect: Dialect | None = None
        if start.strip():
            self.dialect = find_dialect(
                start, is_whole=is_whole, label=place.label, wanted=wanted, settings=settings,
                setting_of=setting_of,
            )  # fmt: skip

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, empty if the file is empty."""
        return () if self.dialect is None else self.dialect.names

    def describe(self) -> str:
        """Describe how the file is written, for messages."""
        return "nothing" if self.dialect is None else f"text, {self.dialect.describe()}"

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """Yield these columns of all rows as text, block by block.

        Raises:
            DataError: The bytes are not text in the file's encoding, or quotes are ambiguous.
        """
        if self.dialect is None:
            return
        for content, first_line in self._blocks(self.dialect):
            yield self._parse(content, first_line, columns, self.dialect)

    def _blocks(self, dialect: Dialect) -> Iterator[tuple[bytes, int]]:
        """Yield blocks of whole records as UTF-8 with LF, and the number of their first line."""
        rest, line, to_skip = b"", 1, dialect.num_skipped
        for piece in itertools.chain(self._text_pieces(dialect), [None]):
            content = rest + (b"\n" if piece is None and rest else piece or b"")
            end = content.rfind(b"\n") + 1
            content, rest = content[:end], content[end:]
            refuse_long_line(self.place.label, line + content.count(b"\n"), len(rest))
            while to_skip and content:
                _, _, content = content.partition(b"\n")
                to_skip, line = to_skip - 1, line + 1
            if not content:
                continue
            mended, tail = self._mend(content, line, dialect, is_last=piece is None)
            rest = tail + rest
            if mended:
                yield mended, line
            line += content.count(b"\n") - tail.count(b"\n")

    def _text_pieces(self, dialect: Dialect) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(dialect.encoding)()
        to_skip, num_lines = dialect.bom, 0
        for piece in itertools.chain(read_pieces(self.place, PIECE_BYTES), [b""]):
            content = piece[to_skip:] if to_skip else piece
            to_skip = 0
            if dialect.encoding != "utf-8":
                try:
                    content = decoder.decode(content, final=not piece).encode()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{self.place.label} is not {dialect.encoding.upper()} text: the byte "
                        f"0x{error.object[error.start]:02x} after line {num_lines} cannot be read. "
                        "Set data.table.encoding to the encoding it was saved in."
                    ) from None
            if dialect.line_end == "\r":
                content = content.replace(b"\r", b"\n")
            yield content
            num_lines += content.count(b"\n")

    def _mend(
        self, content: bytes, first_line: int, dialect: Dialect, *, is_last: bool
    ) -> tuple[bytes, bytes]:
        """Return the content with repaired quotes, and the last record if it is incomplete."""
        if dialect.comment is not None:
            mark = re.escape(dialect.comment.encode())
            content = re.sub(rb"(?m)^" + mark + rb"[^\n]*$", b"", content)
        if len(dialect.separator) > 1:
            old = dialect.separator.encode()
            return content.replace(old, UNIT_SEPARATOR.encode()), b""
        quote = dialect.quote
        if quote is None or quote.encode() not in content:
            return content, b""
        if _has_plain_quotes(content, dialect.separator, quote):
            return content, b""
        return _Mender(self.place.label, dialect, self._settings).mend(
            content, first_line, is_last=is_last
        )

    def _parse(
        self, content: bytes, first_line: int, columns: Sequence[str], dialect: Dialect
    ) -> Rows:
        import pyarrow as pa
        import pyarrow.csv as pc

        self._require_utf8(content, first_line)
        bad: list[int] = []

        def skip(row: object) -> str:
            bad.append(row.number)  # type: ignore[attr-defined]
            return "skip"

        chosen = list(dict.fromkeys(columns))
        separator = UNIT_SEPARATOR if len(dialect.separator) > 1 else dialect.separator
        try:
            table = pc.read_csv(
                pa.BufferReader(content),
                read_options=pc.ReadOptions(
                    use_threads=False, block_size=len(content) + 1, column_names=dialect.names
                ),
                parse_options=pc.ParseOptions(
                    delimiter=separator,
                    quote_char=dialect.quote or False,
                    newlines_in_values=True,
                    invalid_row_handler=skip,
                ),
                convert_options=pc.ConvertOptions(
                    include_columns=chosen,
                    column_types=dict.fromkeys(dialect.names, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):  # Arrow raises this if all lines are blank.
                none = pl.Series("line", [], pl.Int64)
                return Rows(pl.DataFrame(schema=dict.fromkeys(chosen, pl.String)), none, none)
            raise DataError(f"{self.place.label} cannot be read as text ({error}).") from None
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        # The line number of a good row counts the bad rows before it, which Arrow has skipped.
        unsplit = np.sort(np.array(bad, np.int64)) - 1
        good = np.arange(frame.height)
        before = np.searchsorted(unsplit - np.arange(len(unsplit)), good, side="right")
        lines = pl.Series("line", good + before + first_line)
        return Rows(frame.select(chosen), lines, pl.Series("line", unsplit + first_line))

    def _require_utf8(self, content: bytes, first_line: int) -> None:
        if content.isascii():
            return
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = first_line + content.count(b"\n", 0, error.start)
            text = content[content.rfind(b"\n", 0, error.start) + 1 :].split(b"\n")[0]
            raise DataError(
                f"{self.place.label} is not UTF-8 text: the byte 0x{content[error.start]:02x} on "
                f"line {line} cannot be read. As latin-1 the line is "
                f"{text.decode('latin-1').strip()[:60]!r}. Set data.table.encoding to the encoding "
                "it was saved in, such as latin-1 or cp1252, or save it as UTF-8."
            ) from None


def _has_plain_quotes(content: bytes, separator: str, quote: str) -> bool:
    """Return whether quotes occur only around whole fields, each within one line."""
    data = np.frombuffer(content, np.uint8)
    places = np.flatnonzero(data == ord(quote))
    # Quotes have to come in pairs: around a text, or doubled within a text.
    if len(places) % 2:
        return False
    opening, closing = places[::2], places[1::2]
    ends = np.frombuffer(f"{separator}\n\r".encode(), np.uint8)
    before = np.where(opening > 0, data[opening - 1], ord("\n"))
    after = np.where(closing + 1 < len(data), data[np.minimum(closing + 1, len(data) - 1)], 10)
    starts_field = np.isin(before, ends)
    ends_field = np.isin(after, ends)
    # Any other quote must be doubled: one pair ends with it, and the next pair starts with it.
    doubled_before = np.zeros(len(opening), np.bool_)
    doubled_before[1:] = opening[1:] == closing[:-1] + 1
    doubled_after = np.zeros(len(opening), np.bool_)
    doubled_after[:-1] = doubled_before[1:]
    if not (np.all(starts_field | doubled_before) and np.all(ends_field | doubled_after)):
        return False
    newlines = np.flatnonzero(data == ord("\n"))
    return bool(np.all(np.searchsorted(newlines, opening) == np.searchsorted(newlines, closing)))


class _Mender:
    """A repairer of lines in which some quotes are ordinary characters, such as inch marks."""

    def __init__(self, label: str, dialect: Dialect, settings: TextSettings) -> None:
        self._label, self._dialect = label, dialect
        self._is_sure = settings.quote is not None
        self._num_fields = len(dialect.names)
        sep, quote = re.escape(dialect.separator), re.escape(dialect.quote or '"')
        quoted = f"{quote}(?:[^{quote}]|{quote}{quote})*{quote}"
        field = rf"(?:{quoted}|(?![ ]*{quote})[^{sep}\r\n]*)"
        self._clean = re.compile(rf"{field}(?:{sep}{field})*\r?\n?")
        self._quoted = re.compile(rf"[ ]*{quote}((?:[^{quote}]|{quote}{quote})*){quote}[ ]*")

    def mend(self, content: bytes, first_line: int, *, is_last: bool) -> tuple[bytes, bytes]:
        """Return the repaired content, and the last record if it is still incomplete.

        Raises:
            DataError: A quote can be read in two ways, and ``data.table.quote`` is not set.
        """
        # str.splitlines would also split at characters that occur inside texts.
        lines = re.findall(r"[^\n]*\n", content.decode("utf-8", errors="surrogateescape"))
        out, place = io.StringIO(), 0
        while place < len(lines):
            line = lines[place]
            if (self._dialect.quote or '"') not in line or self._clean.fullmatch(line):
                out.write(line)
                place += 1
                continue
            if (spaced := self._split_spaced(line)) is not None:
                out.write(self._write(spaced))
                place += 1
                continue
            end = self._find_end(lines, place)
            if end is None and not is_last and self._may_go_on(lines, place):
                tail = "".join(lines[place:]).encode("utf-8", errors="surrogateescape")
                return out.getvalue().encode("utf-8", errors="surrogateescape"), tail
            alone = self._split_plainly(line)
            if end is not None and (alone is None or end > place + 1):
                swallowed = [self._split_plainly(other) for other in lines[place:end]]
                if not self._is_sure and all(fields is not None for fields in swallowed):
                    raise DataError(
                        f"{self._label}, line {first_line + place}: the quote in "
                        f"{line.strip()[:60]!r} may begin a text that ends on line "
                        f"{first_line + end - 1}, or mean inches. Set data.table.quote='\"' "
                        "or data.table.quote=none."
                    )
                out.write("".join(lines[place:end]))
                place = end
            else:
                out.write(line if alone is None else self._write(alone))
                place += 1
        return out.getvalue().encode("utf-8", errors="surrogateescape"), b""

    def _find_end(self, lines: list[str], place: int) -> int | None:
        """Return the number of the line after a correctly quoted record of several lines.

        None means that there is no such record.
        """
        record, size = "", 0
        for end in range(place, min(place + MAX_RECORD_LINES, len(lines))):
            record += lines[end]
            size += len(lines[end])
            if size > MAX_RECORD_BYTES:
                return None
            if (self._dialect.quote or '"') in lines[end] and self._clean.fullmatch(record):
                fields = next(
                    csv.reader(io.StringIO(record, newline=""), delimiter=self._dialect.separator,
                               quotechar=self._dialect.quote), []
                )  # fmt: skip
                return end + 1 if len(fields) == self._num_fields else None
        return None

    def _may_go_on(self, lines: list[str], place: int) -> bool:
        left = lines[place:]
        return len(left) < MAX_RECORD_LINES and sum(map(len, left)) < MAX_RECORD_BYTES

    def _split_spaced(self, line: str) -> list[str] | None:
        """Return the fields of a line with blanks before its quotes, or None for any other line."""
        try:
            reader = csv.reader(
                [line.rstrip("\r\n")],
                delimiter=self._dialect.separator,
                quotechar=self._dialect.quote,
                skipinitialspace=True,
                strict=True,
            )
            fields = next(reader, [])
        except csv.Error:
            return None
        return fields if len(fields) == self._num_fields else None

    def _split_plainly(self, line: str) -> list[str] | None:
        """Return the fields of a line, with quotes inside fields as ordinary characters.

        None means that the number of fields is wrong.
        """
        fields = line.rstrip("\r\n").split(self._dialect.separator)
        if len(fields) != self._num_fields:
            return None
        quote = self._dialect.quote or '"'
        return [
            match[1].replace(quote * 2, quote)
            if (match := self._quoted.fullmatch(field))
            else field
            for field in fields
        ]

    def _write(self, fields: list[str]) -> str:
        quote = self._dialect.quote or '"'
        return (
            self._dialect.separator.join(
                quote + field.replace(quote, quote * 2) + quote for field in fields
            )
            + "\n"
        )
