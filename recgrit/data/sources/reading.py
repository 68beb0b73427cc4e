"""From files to lines: finding a data set's files, unpacking them, splitting them into fields.

Files are read whole, since only whole can they be handed to the fast parsers: it costs a few times
the unpacked size in memory. What a file is gets decided by its first bytes, not by its name, since
browsers unpack ``.gz`` files silently and failed downloads save an HTML page under the name asked
for.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import polars as pl
from polars.datatypes import DataTypeClass

from recgrit.data.sources.archive import DAMAGE, members_by_name
from recgrit.errors import DataError

ColumnType: TypeAlias = DataTypeClass | pl.DataType

GZIP_MAGIC = b"\x1f\x8b"
# Data unpack to some ten times their size. What is larger than the first and grows by more than the
# second was made to fill the memory.
BOMB_BYTES = 256 * 2**20
BOMB_RATIO = 100
BLOCK_BYTES = 2**20
MAX_NAMES_LISTED = 8
NEWLINE = b"\n"


@dataclass(frozen=True)
class RawFile:
    """A file's unpacked bytes, and what messages call it."""

    label: str
    content: bytes


def find_files(
    path: Path,
    candidates: Sequence[tuple[str, ...]],
    expected: str,
    archive: str | None = None,
    folder: str | None = None,
) -> tuple[Path, ...]:
    """The first complete set of files in a folder, or the archive that holds them.

    Args:
        path: A folder, one of the files, or a zip archive.
        candidates: Sets of file names, the preferred one first.
        expected: These sets in words, for messages.
        archive: Name of the published zip.
        folder: The subfolder it unpacks to, looked for too; its stem if not given.

    Raises:
        DataError: Nothing is at ``path``, or none of the sets is complete there.
    """
    require_path(path, expected)
    if path.is_file():
        if archive is not None and path.suffix == ".zip":
            return (path,)
        if not any(path.name in names for names in candidates):
            raise DataError(
                f"{path} is not a file of this data set: expected {expected}. "
                "Set data.path to the folder that holds them."
            )
        path = path.parent
    places = [path] if archive is None else [path, path / (folder or Path(archive).stem)]
    for place in places:
        for names in candidates:
            if all((place / name).is_file() for name in names):
                return tuple(place / name for name in names)
    if archive is not None and (path / archive).is_file():
        return (path / archive,)
    raise DataError(
        f"{path} does not hold the files of this data set: expected {expected}; "
        f"found {list_folder(path)}. Set data.path to the folder that holds them."
    )


def require_path(path: Path, expected: str) -> None:
    """Stop if nothing is at a path.

    Raises:
        DataError: There is neither a file nor a folder.
    """
    if not path.exists():
        raise DataError(f"No file or folder at {path}. Expected {expected}; check data.path.")


def list_folder(path: Path) -> str:
    """The names in a folder, in words and not too many."""
    return _list_names(sorted(entry.name for entry in path.iterdir()))


def read_files(
    files: tuple[Path, ...], candidates: Sequence[tuple[str, ...]]
) -> dict[str, RawFile]:
    """The content of each file by its name; of a zip, that of the first complete set within.

    Raises:
        DataError: A file is damaged, or the archive lacks the files.
    """
    if len(files) == 1 and files[0].suffix == ".zip":
        return _read_archive(files[0], candidates)
    return {path.name: read_file(path) for path in files}


def read_file(path: Path) -> RawFile:
    """A file's bytes, unpacked if they are gzip.

    Raises:
        DataError: The file cannot be read, is empty, is cut short, or is an HTML page.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    _refuse_html(str(path), content)
    if content.startswith(GZIP_MAGIC):
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                content = _unpack(stream, len(content), str(path))
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{path} is a damaged or incomplete gzip file ({error}): expected the whole "
                "published file. Download it again."
            ) from None
    return _require_content(str(path), content)


def decode(file: RawFile, encoding: str = "utf-8-sig") -> str:
    """A file's text; by default UTF-8, with or without a byte order mark.

    Raises:
        DataError: The bytes are not text in this encoding.
    """
    try:
        return file.content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.label} is not {error.encoding} text: byte {error.start}, on line "
            f"{file.content.count(NEWLINE, 0, error.start) + 1}, cannot be read. "
            "Download the file again, or convert it to UTF-8."
        ) from None


def split_lines(text: str) -> pl.DataFrame:
    """Columns ``line`` (from 1) and ``text`` of the lines that are not blank."""
    # Not str.splitlines: it also breaks at characters that occur inside titles.
    lines = pl.DataFrame({"text": text.split("\n")}).select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("line"),
        pl.col("text").str.strip_suffix("\r"),
    )
    return lines.filter(pl.col("text").str.strip_chars() != "")


def split_fields(lines: pl.DataFrame, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """Columns ``line`` and ``names``, all null in lines with another number of fields."""
    fields = lines.select(pl.col("line"), pl.col("text").str.split(separator).alias("fields"))
    complete = pl.col("fields").list.len() == len(names)
    return fields.select(
        pl.col("line"),
        *(
            pl.when(complete).then(pl.col("fields").list.get(i, null_on_oob=True)).alias(name)
            for i, name in enumerate(names)
        ),
    )


def require_header(file: RawFile, lines: pl.DataFrame, header: str) -> pl.DataFrame:
    """The lines after the first, which must be this header.

    Raises:
        DataError: The first line is something else.
    """
    first = lines["text"].first()
    if first != header:
        raise DataError(
            f"{file.label} does not start with the header {header!r}, got {str(first)[:80]!r}. "
            "Use the published file as it is."
        )
    return lines.slice(1)


def parse_json_lines(file: RawFile, schema: dict[str, ColumnType]) -> pl.DataFrame:
    """Columns ``line`` and those of ``schema``; null where a line has no such value.

    A file without any malformed line, the usual case, is parsed in one go; else line by line, so
    that one cut line does not cost the rest.
    """
    numbers = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("line")
    try:
        frame = pl.read_ndjson(file.content, schema=schema)
    except pl.exceptions.PolarsError:
        frame = pl.DataFrame()
    # Blank lines are skipped, which would shift the numbers of the lines behind them.
    if frame.height == len(file.content.rstrip(b"\n").split(b"\n")):
        return frame.select(numbers, *schema)
    lines = split_lines(file.content.decode("utf-8-sig", errors="replace"))
    rows = [_json_object(text) for text in lines["text"]]
    columns = {
        name: pl.Series(name, [_text_or_none(row.get(name)) for row in rows], dtype=pl.String)
        for name in schema
    }
    return pl.DataFrame({"line": lines["line"], **columns}).with_columns(
        pl.col(name).cast(dtype, strict=False) for name, dtype in schema.items()
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text_or_none(value: object) -> str | None:
    """Numbers and texts alike, for columns whose type the schema decides afterwards."""
    return str(value) if isinstance(value, str | int | float) else None


def _read_archive(path: Path, candidates: Sequence[tuple[str, ...]]) -> dict[str, RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = members_by_name(
                archive.namelist(), itertools.chain(*candidates), str(path)
            )
            for names in candidates:
                if all(name in members for name in names):
                    return {name: _read_member(archive, path, members[name]) for name in names}
    except DAMAGE as error:
        with path.open("rb") as stream:
            _refuse_html(str(path), stream.read(1024))
        raise DataError(
            f"{path} is a damaged or incomplete zip archive ({error}). Download it again."
        ) from None
    wanted = " or ".join(", ".join(names) for names in candidates)
    raise DataError(
        f"{path} does not hold {wanted}; found {_list_names(sorted(members))}. "
        "Use the archive as it was published."
    )


def _read_member(archive: zipfile.ZipFile, path: Path, member: str) -> RawFile:
    label = f"{path}:{member}"
    with archive.open(member) as stream:
        content = _unpack(stream, archive.getinfo(member).compress_size, label)
    return _require_content(label, content)


def _unpack(stream: IO[bytes] | gzip.GzipFile, packed_bytes: int, label: str) -> bytes:
    """What a stream unpacks to.

    Raises:
        DataError: It grows as no data do.
    """
    blocks, size = [], 0
    while block := stream.read(BLOCK_BYTES):
        blocks.append(block)
        size += len(block)
        if size > max(BOMB_BYTES, BOMB_RATIO * packed_bytes):
            raise DataError(
                f"{label} unpacks to more than {BOMB_RATIO} times its {packed_bytes:,} bytes: that "
                "is no data set but an archive made to fill the memory. Use the published file."
            )
    return b"".join(blocks)


def _require_content(label: str, content: bytes) -> RawFile:
    _refuse_html(label, content)
    if not content.strip():
        raise DataError(f"{label} is empty. Download it again.")
    return RawFile(label, content)


def _refuse_html(label: str, content: bytes) -> None:
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{label} is an HTML page, not data: the download failed and saved an error or login "
            "page instead. Delete it and download the file again."
        )


def _list_names(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    listed = ", ".join(names[:MAX_NAMES_LISTED])
    rest = len(names) - MAX_NAMES_LISTED
    return f"{listed} and {rest} more" if rest > 0 else listed
