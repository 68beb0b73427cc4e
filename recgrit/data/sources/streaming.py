"""Large files block by block: memory holds one block's text, however long the file is.

A block of clean lines goes through the fast CSV or JSON parser. Where anything in it is not as it
should be, that block alone goes line by line, so that every malformed line is found and counted.
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
# What ids are stripped of, beside the ends of lines.
BLANKS = (b" ", b"\t", b"\x0b", b"\x0c")
ID_FIELDS = ("user_id", "item_id")
KNOWN_FIELDS = (*ID_FIELDS, "timestamp", "weight")


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Args:
        file: Their bytes.
        first_line: Number of the first of them, from 1.
        offset: Of the first byte in the unpacked file.
    """

    file: RawFile
    first_line: int
    offset: int


def read_blocks(place: Place) -> Iterator[Block]:
    """A file's lines, unpacked on the way if they are gzip or in an archive.

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
    """A file's first line that is not blank.

    Raises:
        DataError: The file cannot be read, or there is none.
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
    """Hand all lines of a file, as fields between separators, to a collector.

    Args:
        place: The file.
        separator: Between fields; it has no other meaning, in quotes or not.
        names: Of the fields; those a collector has no use for are passed over.
        collector: What checks and keeps the rows.
        header: The line before the first row; None for none.

    Raises:
        DataError: The file cannot be read, or does not start with the header.
    """
    blocks = read_blocks(place)
    if header is not None:
        blocks = _skip_header(blocks, header)
    # While one block is encoded, the next is read and parsed.
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
    """The rows of clean lines; None if any of them is not surely clean.

    With numbers for ids, clean means that each is written as its number is: '007' is another id
    than '7', and the parser takes both for 7. Whatever else it forgives makes a line longer too, so
    adding up the digits tells.
    """
    if len(separator) > 1:  # The parser knows single characters only.
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
    except (pl.exceptions.PolarsError, OSError):  # The latter where it takes them for gzip.
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
    """Whether no id can have anything around it to strip."""
    return content.isascii() and not any(
        blank in content for blank in BLANKS if blank != separator.encode()
    )


def _count_bytes(rows: pl.DataFrame) -> int:
    """How long these rows are, written with one byte behind each field; -1 for numbers below 0."""
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
    """How many lines end in these bytes; several times as fast as counting with `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


def fetch_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made in another thread while the one before it is used."""
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
    """Characters of all these whole numbers from 0 on."""
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
