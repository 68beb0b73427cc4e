"""Reader of large files block by block, so that memory holds the text of one block at a time.

A block without a malformed line is parsed by the fast CSV or JSON parser. Any other block is split
line by line, so that each malformed line is found and counted.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from recgrit.data.sources.cleaning import MAX_TIMESTAMP, RowCollector
from recgrit.data.sources.reading import (
    Place,
    RawFile,
    decode,
    looks_packed,
    read_pieces,
    refuse_html,
    refuse_long_line,
    require_first_line,
    split_fields,
    split_lines,
)
from recgrit.errors import DataError

T = TypeVar("T")

PARSED_BYTES = 16 * 2**20
# Characters that are stripped from ids, in addition to line ends.
BLANKS = (b" ", b"\t", b"\x0b", b"\x0c")
ID_FIELDS = ("user_id", "item_id")
KNOWN_FIELDS = (*ID_FIELDS, "timestamp", "weight")


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Args:
        file: Bytes of these lines.
        first_line: Number of the first line, from 1.
        offset: Position of the first byte in the unpacked file.
    """

    file: RawFile
    first_line: int
    offset: int


def read_blocks(place: Place) -> Iterator[Block]:
    """Yield the lines of a file in blocks, unpacked if the file is packed or in an archive.

    Raises:
        DataError: The file cannot be read, is empty, is cut short, or is an HTML page.
    """
    rest, line, offset, is_blank = b"", 1, 0, True
    for piece in read_pieces(place, PARSED_BYTES):
        content = piece
        if offset == 0 and not rest:
            refuse_html(place.label, piece)
            content = piece.removeprefix(codecs.BOM_UTF8)
            offset = len(piece) - len(content)
        is_blank = is_blank and not content.strip()
        end = content.rfind(b"\n") + 1
        if not end:
            rest += content
            refuse_long_line(place.label, line, len(rest))
            continue
        lines, rest = b"".join((rest, memoryview(content)[:end])), content[end:]
        yield Block(RawFile(place.label, lines), line, offset)
        line, offset = line + count_lines(lines), offset + len(lines)
    if is_blank:
        raise DataError(f"{place.label} is empty. Download it again.")
    if rest:
        yield Block(RawFile(place.label, rest + b"\n"), line, offset)


def read_first_line(place: Place) -> str:
    """Return the first line of a file that is not blank.

    Raises:
        DataError: The file cannot be read or has no such line.
    """
    for block in read_blocks(place):
        lines = split_lines(_decode(block))
        if not lines.is_empty():
            return str(lines["text"].first())
    raise DataError(f"{place.label} is empty. Download it again.")


def collect_fields(
    place: Place,
    separator: str,
    names: Sequence[str],
    collector: RowCollector,
    header: str | None = None,
) -> None:
    """Split all lines of a file into fields and pass them to a collector.

    Args:
        place: Location of the file.
        separator: Separator between fields. It also separates fields within quotes.
        names: Names of the fields, in order. Fields that the collector does not use are skipped.
        collector: Collector that checks and keeps the rows.
        header: Header that must be the first line. None if there is no header.

    Raises:
        DataError: The file cannot be read, or does not start with the header.
    """
    blocks = read_blocks(place)
    if header is not None:
        blocks = _skip_header(blocks, header)
    # The next block is read and parsed while the collector encodes the current one.
    for block, rows in fetch_ahead(_parse_blocks(blocks, separator, names)):
        if rows is not None:
            collector.add_checked(rows)
        else:
            lines = split_lines(_decode(block), block.first_line)
            fields = split_fields(lines, separator, names)
            collector.add(fields.select("line", *(n for n in names if n in KNOWN_FIELDS)))


def parse_clean_fields(
    content: bytes, separator: str, names: Sequence[str], *, id_type: type[pl.Int64 | pl.String]
) -> pl.DataFrame | None:
    """Parse lines with the fast parser, or return None unless all of them are certain to be clean.

    If ids are parsed as numbers, each id must be written as its number is. '007' and '7' are
    different ids, but the parser reads both as 7. Whatever else the parser tolerates makes a line
    longer too. Comparing the number of bytes with the number of digits therefore detects it.

    Args:
        content: Bytes of whole lines.
        separator: Separator between fields.
        names: Names of the fields, in order.
        id_type: Type as which ids are parsed.
    """
    if len(separator) > 1:  # The parser accepts only a separator of one character.
        if b"\t" in content:
            return None
        content, separator = content.replace(separator.encode(), b"\t"), "\t"
    if looks_packed(content):
        return None
    num_rows, num_returns = count_lines(content), content.count(b"\r")
    has_odd_returns = num_returns and not num_returns == num_rows == content.count(b"\r\n")
    if has_odd_returns or (id_type is pl.String and not _is_plain(content, separator)):
        return None
    types = {name: id_type if name in ID_FIELDS else pl.String for name in names}
    schema = {**types, "timestamp": pl.Int64}
    try:
        rows = pl.read_csv(
            content, has_header=False, separator=separator, quote_char=None, schema=schema
        )
    except (pl.exceptions.PolarsError, OSError):  # OSError: the parser took the bytes for gzip.
        return None
    known = rows.select(name for name in KNOWN_FIELDS if name in names)
    if "weight" in names:
        weight = pl.col("weight").cast(pl.Float64, strict=False)
        known = known.with_columns(pl.when(weight.is_finite()).then(weight.cast(pl.Float32)))
    is_clean = (
        known.height == num_rows
        and not known.null_count().sum_horizontal().item()
        and known["timestamp"].is_between(0, MAX_TIMESTAMP).all()
        and (id_type is pl.String or len(content) == num_returns + _count_bytes(rows))
    )
    return known if is_clean else None


def _is_plain(content: bytes, separator: str) -> bool:
    """Return whether no id can have blanks around it that would have to be stripped."""
    return content.isascii() and not any(
        blank in content for blank in BLANKS if blank != separator.encode()
    )


def _count_bytes(rows: pl.DataFrame) -> int:
    """Return the number of bytes of these rows as text, with one byte after each field.

    The result is -1 if a number is negative.
    """
    size = rows.height * rows.width
    for column in rows:
        if column.dtype == pl.String:
            size += int(column.str.len_bytes().sum())
        else:
            if column.min() < 0:  # type: ignore[operator]
                return -1
            size += _count_digits(column)
    return size


def count_lines(content: bytes) -> int:
    """Count the line ends in these bytes, several times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


def fetch_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of an iterable, computing the next one in a thread while one is in use."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield item


def _parse_blocks(
    blocks: Iterator[Block], separator: str, names: Sequence[str]
) -> Iterator[tuple[Block, pl.DataFrame | None]]:
    id_type: type[pl.Int64 | pl.String] = pl.Int64
    for block in blocks:
        content = block.file.content
        rows = parse_clean_fields(content, separator, names, id_type=id_type)
        if rows is None and id_type is pl.Int64:
            rows = parse_clean_fields(content, separator, names, id_type=pl.String)
            if rows is not None:
                id_type = pl.String
        yield block, rows


def _count_digits(numbers: pl.Series) -> int:
    """Return the total number of digits of these whole numbers, which must not be negative."""
    top, count, power = int(numbers.max()), len(numbers), 10  # type: ignore[arg-type]
    while power <= top:
        count += int((numbers >= power).sum())
        power *= 10
    return count


def _skip_header(blocks: Iterator[Block], header: str) -> Iterator[Block]:
    has_passed = False
    for block in blocks:
        content, line, offset = block.file.content, block.first_line, block.offset
        while not has_passed and content:
            first, _, content = content.partition(b"\n")
            line, offset = line + 1, offset + len(first) + 1
            if first.strip():
                text = first.decode("utf-8", errors="replace").removesuffix("\r")
                require_first_line(block.file.label, text, header)
                has_passed = True
        if content:
            yield Block(RawFile(block.file.label, content), line, offset)


def _decode(block: Block) -> str:
    return decode(block.file, "utf-8", offset=block.offset, first_line=block.first_line)
