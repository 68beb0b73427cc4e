"""Helpers that find the files of a data set, unpack them, and split them into lines and fields.

Files of items are read as a whole, interactions block by block (`recgrit.data.sources.streaming`).
The first bytes of a file decide its type, and not its name. Browsers unpack ``.gz`` files without
notice, and a failed download may save an HTML page under the name of the file.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import zipfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import polars as pl
from polars.datatypes import DataTypeClass

from recgrit.bounds import LINE_BYTES, UNPACKED_BYTES, UNPACKED_RATIO, Bound
from recgrit.data.sources.archive import DAMAGE, members_by_name
from recgrit.errors import DataError
from recgrit.text import is_text, may_spell_half

ColumnType: TypeAlias = DataTypeClass | pl.DataType

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_BYTES = 2**20
MAX_NAMES_LISTED = 8
NEWLINE = b"\n"
# First bytes of data packed with gzip, zlib or zstd.
PACKED_MAGICS = (GZIP_MAGIC, b"x\x01", b"x\x5e", b"x\x9c", b"x\xda", ZSTD_MAGIC)

# Largest number of column names in a message, and largest length of each.
SHOWN_NAMES, SHOWN_BYTES = 30, 60


@dataclass(frozen=True)
class Place:
    """The location of a file's bytes: a path on disk, or a member of an archive.

    Args:
        path: Path of the file or of the zip archive.
        member: Name of the member in the archive. None if the file is not in an archive.
    """

    path: Path
    member: str | None = None

    @property
    def label(self) -> str:
        """Name of the file for messages."""
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"


@dataclass(frozen=True)
class RawFile:
    """The unpacked bytes of a file.

    Args:
        label: Name of the file for messages.
        content: Unpacked bytes.
    """

    label: str
    content: bytes


def find_files(
    path: Path,
    candidates: Sequence[tuple[str, ...]],
    expected: str,
    archive: str | None = None,
    folder: str | None = None,
) -> tuple[Path, ...]:
    """Return the first complete set of files in a folder, or the archive that holds the files.

    Args:
        path: Path of a folder, of one of the files, or of a zip archive.
        candidates: Sets of file names, the preferred set first.
        expected: Description of these sets, for messages.
        archive: Name of the published zip archive. None if there is none.
        folder: Name of the folder that the archive unpacks to, in which files are searched too.
            None means the archive's name without its suffix.

    Raises:
        DataError: Nothing is at ``path``, or no set of files is complete.
    """
    require_path(path, expected)
    if path.is_file():
        if archive is not None and path.suffix == ".zip":
            return (path,)
        if not any(path.name in names for names in (*candidates, *_unpacked(candidates))):
            raise DataError(
                f"{path} is not a file of this data set: expected {expected}. "
                "Set data.path to the folder that holds them."
            )
        path = path.parent
    places = [path] if archive is None else [path, path / (folder or Path(archive).stem)]
    for place in places:
        for names in candidates:
            found = [_find_file(place / name) for name in names]
            if all(file is not None for file in found):
                return tuple(file for file in found if file is not None)
    if archive is not None and (path / archive).is_file():
        return (path / archive,)
    raise DataError(
        f"{path} does not hold the files of this data set: expected {expected}; "
        f"found {list_folder(path)}. Set data.path to the folder that holds them."
    )


def _unpacked(candidates: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the sets of files with the names of unpacked files, if these differ."""
    plain = [tuple(name.removesuffix(".gz") for name in names) for names in candidates]
    return [names for names in plain if names not in candidates]


def _find_file(path: Path) -> Path | None:
    """Return the path of a file, packed or unpacked, or None if it does not exist."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    return next((file for file in (path, plain) if file.is_file()), None)


def require_path(path: Path, expected: str) -> None:
    """Raise an error if nothing is at a path.

    Raises:
        DataError: There is neither a file nor a folder at the path.
    """
    if not path.exists():
        raise DataError(f"No file or folder at {path}. Expected {expected}; check data.path.")


def list_folder(path: Path) -> str:
    """Return the first names in a folder as text for messages."""
    return _list_names(sorted(entry.name for entry in path.iterdir()))


def find_places(files: tuple[Path, ...], candidates: Sequence[tuple[str, ...]]) -> dict[str, Place]:
    """Return the location of each file by its name; in a zip archive, of the first complete set.

    Raises:
        DataError: The archive is damaged or lacks the files.
    """
    if len(files) == 1 and files[0].suffix == ".zip":
        return _find_members(files[0], candidates)
    return {path.name: Place(path) for path in files}


def read_files(
    files: tuple[Path, ...], candidates: Sequence[tuple[str, ...]]
) -> dict[str, RawFile]:
    """Return the content of each file by its name; in a zip archive, of the first complete set.

    Raises:
        DataError: A file is damaged, or the archive lacks the files.
    """
    places = find_places(files, candidates)
    return {name: read_file(place) for name, place in places.items()}


def read_file(place: Place, bound: Bound | None = None) -> RawFile:
    """Read all bytes of a file, unpacked if the file is packed or in an archive.

    Args:
        place: Location of the file.
        bound: Largest number of bytes. None sets no bound.

    Raises:
        DataError: The file cannot be read, is empty, is cut short, is too large, or is an HTML
            page.
    """
    pieces, size = [], 0
    for piece in read_pieces(place, BLOCK_BYTES):
        pieces.append(piece)
        size += len(piece)
        if bound is not None and size > bound.allowed():
            raise DataError(f"{place.label} has {bound.explain(size, is_least=True)}.")
    content = b"".join(pieces)
    refuse_html(place.label, content)
    if not content.strip():
        raise DataError(f"{place.label} is empty. Download it again.")
    return RawFile(place.label, content)


def read_pieces(place: Place, piece_bytes: int) -> Generator[bytes]:
    """Yield the unpacked bytes of a file in pieces of up to ``piece_bytes`` bytes.

    Raises:
        DataError: The file cannot be read, is cut short, or unpacks to implausibly many bytes.
    """
    size = 0
    try:
        with ExitStack() as stack:
            stream, packed_bytes = _open(place, stack)
            while piece := stream.read(piece_bytes):
                size += len(piece)
                if packed_bytes is not None:
                    most = max(UNPACKED_BYTES.default, UNPACKED_RATIO * packed_bytes)
                    if size > UNPACKED_BYTES.allowed(most):
                        told = UNPACKED_BYTES.explain(size, default=most, is_least=True)
                        raise DataError(
                            f"{place.label} unpacks {packed_bytes:,} bytes to {told}. Real data "
                            "do not grow this much, but archives made to fill the memory do: use "
                            "the published file."
                        )
                yield piece
    except DAMAGE as error:
        if place.member is not None:
            raise _damaged_archive(place.path, error) from None
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"Cannot read {place.path}: {error.strerror}.") from None
        raise DataError(
            f"{place.path} is a damaged or incomplete {_packed_as(place.path)} file ({error}): "
            "expected the complete published file. Download it again."
        ) from None


def decode(
    file: RawFile, encoding: str = "utf-8-sig", *, offset: int = 0, first_line: int = 1
) -> str:
    """Decode the text of a file, by default as UTF-8 with or without a byte order mark.

    Args:
        file: Bytes of the file, or of a part of it.
        encoding: Character encoding of the text.
        offset: Position in the file at which the part begins, in bytes, for messages.
        first_line: Number of the line with which the part begins, for messages.

    Raises:
        DataError: The bytes are not text in this encoding.
    """
    try:
        return file.content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.label} is not {error.encoding} text: byte {offset + error.start}, on line "
            f"{first_line + file.content.count(NEWLINE, 0, error.start)}, cannot be read. "
            "Download the file again, or convert it to UTF-8."
        ) from None


def split_lines(text: str, first_line: int = 1) -> pl.DataFrame:
    """Split a text into its non-blank lines, as columns ``line`` (a number) and ``text``."""
    # str.splitlines would also split at characters that occur inside titles.
    lines = pl.DataFrame({"text": text.split("\n")}).select(
        pl.int_range(first_line, first_line + pl.len(), dtype=pl.Int64).alias("line"),
        pl.col("text").str.strip_suffix("\r"),
    )
    return lines.filter(pl.col("text").str.strip_chars() != "")


def split_fields(lines: pl.DataFrame, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """Split lines into the columns ``line`` and ``names``.

    A line with another number of fields has nulls in all columns of ``names``.
    """
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
    """Return the lines after the first, which must be this header.

    Raises:
        DataError: The first line is something else.
    """
    require_first_line(file.label, lines["text"].first(), header)
    return lines.slice(1)


def require_first_line(label: str, first: object, header: str) -> None:
    """Raise an error if the first line of a file is not this header.

    Args:
        label: Name of the file in messages.
        first: First line as it was read. None if the file is empty.
        header: Line that the file must start with.

    Raises:
        DataError: The first line is another one.
    """
    if first != header:
        raise DataError(
            f"{label} does not start with the header {header!r}, got {str(first)[:80]!r}. "
            "Use the published file as it is."
        )


def looks_packed(content: bytes) -> bool:
    """Return whether bytes look packed, which the fast parsers would unpack without being asked."""
    return content.startswith(PACKED_MAGICS)


def parse_json_lines(
    file: RawFile, schema: dict[str, ColumnType], first_line: int = 1
) -> pl.DataFrame:
    """Parse JSON lines into the column ``line`` and the columns of ``schema``.

    A value that a line lacks is null. Content without a malformed line, the usual case, is parsed
    at once. Otherwise each line is parsed alone, so that one broken line does not affect the
    others.

    Args:
        file: Bytes of the file, or of a part of it.
        schema: Names of the fields to read, and their types.
        first_line: Number of the first line.
    """
    numbers = pl.int_range(first_line, first_line + pl.len(), dtype=pl.Int64).alias("line")
    frame = pl.DataFrame()
    if not looks_packed(file.content) and not may_spell_half(file.content):
        with contextlib.suppress(pl.exceptions.PolarsError):
            frame = pl.read_ndjson(file.content, schema=schema)
    # The parser skips blank lines. Line numbers would then be wrong, so such content is not used.
    if frame.height == file.content.rstrip(b"\n").count(b"\n") + 1:
        return frame.select(numbers, *schema)
    lines = split_lines(file.content.decode("utf-8-sig", errors="replace"), first_line)
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
    """Return a text or number as text, which the schema then converts; other values give None."""
    return str(value) if isinstance(value, str | int | float) and is_text(str(value)) else None


def refuse_long_line(label: str, line: int, num_bytes: int) -> None:
    """Raise an error before a line without an end fills the memory.

    Raises:
        DataError: The line has more bytes than any real row.
    """
    if num_bytes > LINE_BYTES.allowed():
        raise DataError(
            f"{label}, line {line}: {LINE_BYTES.explain(num_bytes)}. Expected one row a line, "
            "separated by line ends. Is this the right file?"
        )


def show_names(names: Sequence[str]) -> str:
    """Return names of columns as text for messages, shortened if they are long or many."""
    shown = [name if len(name) <= SHOWN_BYTES else f"{name[:SHOWN_BYTES]}…" for name in names]
    more = [f"and {len(shown) - SHOWN_NAMES} more"] if len(shown) > SHOWN_NAMES else []
    return ", ".join((*shown[:SHOWN_NAMES], *more)) or "none"


def refuse_html(label: str, content: bytes) -> None:
    """Raise an error if a file begins as a web page does.

    Raises:
        DataError: The file is a web page.
    """
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{label} is an HTML page, not data: the download failed and saved an error or login "
            "page instead. Delete it and download the file again."
        )


def _find_members(path: Path, candidates: Sequence[tuple[str, ...]]) -> dict[str, Place]:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
    except DAMAGE as error:
        raise _damaged_archive(path, error) from None
    members = members_by_name(listed, itertools.chain(*candidates), str(path))
    for names in candidates:
        if all(name in members for name in names):
            return {name: Place(path, members[name]) for name in names}
    wanted = " or ".join(", ".join(names) for names in candidates)
    raise DataError(
        f"{path} does not hold {wanted}; found {_list_names(sorted(members))}. "
        "Use the archive as it was published."
    )


def _open(place: Place, stack: ExitStack) -> tuple[IO[bytes] | gzip.GzipFile, int | None]:
    """Open a stream of unpacked bytes, and return it with the packed size in bytes.

    The size is None if the file is not packed.
    """
    if place.member is not None:
        archive = stack.enter_context(zipfile.ZipFile(place.path))
        # The directory of the archive may be wrong, but no packed member is larger than the
        # archive.
        size = min(archive.getinfo(place.member).compress_size, place.path.stat().st_size)
        try:
            return stack.enter_context(archive.open(place.member)), size
        except RuntimeError as error:  # The archive needs a password.
            raise _damaged_archive(place.path, error) from None
    stream = stack.enter_context(place.path.open("rb"))
    start = stream.read(len(ZSTD_MAGIC))
    stream.seek(0)
    size = place.path.stat().st_size
    if start == ZSTD_MAGIC:
        import pyarrow as pa

        return stack.enter_context(pa.CompressedInputStream(stream, "zstd")), size
    if not start.startswith(GZIP_MAGIC):
        return stream, None
    return stack.enter_context(closing(gzip.GzipFile(fileobj=stream))), size


def _packed_as(path: Path) -> str:
    """Return the name of the format with which a file is packed."""
    with path.open("rb") as stream:
        return "zstd" if stream.read(len(ZSTD_MAGIC)) == ZSTD_MAGIC else "gzip"


def _damaged_archive(path: Path, error: Exception) -> DataError:
    with path.open("rb") as stream:
        refuse_html(str(path), stream.read(1024))
    return DataError(f"{path} is a damaged or incomplete zip archive ({error}). Download it again.")


def _list_names(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    listed = ", ".join(names[:MAX_NAMES_LISTED])
    rest = len(names) - MAX_NAMES_LISTED
    return f"{listed} and {rest} more" if rest > 0 else listed
