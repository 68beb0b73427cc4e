"""Search for files with a table under a path, and readers of their formats, block by block."""

from __future__ import annotations

import glob
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from recgrit.bounds import JSON_BYTES
from recgrit.data.damage import TABLE_DAMAGE, refuse_too_many_rows
from recgrit.data.sources.archive import DAMAGE, members_by_name
from recgrit.data.sources.delimited import Rows, TextFile
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.reading import (
    Place,
    decode,
    list_folder,
    looks_packed,
    read_file,
    require_path,
)
from recgrit.errors import DataError
from recgrit.text import is_text, may_spell_half

logger = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq")
JSON = (".jsonl", ".ndjson", ".json")
TEXT = (".csv", ".tsv", ".txt")
PACKED = (".gz", ".zst")
SUFFIXES = (*PARQUET, *JSON, *TEXT, ".zip")
WORKBOOKS = (b"\xd0\xcf\x11\xe0",)
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
PARQUET_ROWS = 2**19


@dataclass(frozen=True)
class TableFile:
    """A file with a table, or a member of an archive, whose columns are known.

    Args:
        place: Location of the file.
        kind: Format of the file: ``parquet``, ``json`` or ``text``.
        columns: Names of the columns. Columns that are named by the file's folders
            (``day=2024-01-01``) come last.
        folders: Values of the columns that are named by the file's folders.
        text: Opened text file. None for other formats.
    """

    place: Place
    kind: str
    columns: tuple[str, ...]
    folders: dict[str, str | None]
    text: TextFile | None = None

    @property
    def label(self) -> str:
        """Name of the file for messages."""
        return self.place.label

    def describe(self) -> str:
        """Describe the format of the file, for messages."""
        if self.text is not None:
            return self.text.describe()
        return {"parquet": "Parquet", "json": "JSON lines"}[self.kind]

    def refuse_repeated(self, names: Sequence[str]) -> None:
        """Raise an error if the header has one of these names twice, because either may be meant.

        Raises:
            DataError: A name occurs twice.
        """
        if self.text is None or self.text.dialect is None:
            return
        for name in names:
            if name in self.text.dialect.repeated:
                raise DataError(
                    f"{self.label} has several columns called {name}: rename or delete all but "
                    "one in the header."
                )

    def rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        """Yield these columns of all rows, block by block.

        Rows of Parquet files are numbered from 2 on, as lines after a header are.

        Raises:
            DataError: The file is damaged.
        """
        own = [name for name in dict.fromkeys(columns) if name not in self.folders]
        for part in self._own_rows(own):
            frame = part.frame.with_columns(
                pl.lit(self.folders[name], dtype=pl.String).alias(name)
                for name in columns
                if name in self.folders
            )
            yield Rows(frame.select(list(dict.fromkeys(columns))), part.lines, part.unsplit)

    def _own_rows(self, columns: list[str]) -> Iterator[Rows]:
        if self.text is not None:
            yield from self.text.rows(columns)
            return
        parts = self._parquet(columns) if self.kind == "parquet" else self._json(columns)
        line = 2 if self.kind == "parquet" else 1
        try:
            for frame in parts:
                lines = pl.int_range(line, line + frame.height, dtype=pl.Int64, eager=True)
                yield Rows(frame, lines.alias("line"), pl.Series("line", [], pl.Int64))
                line += frame.height
        except TABLE_DAMAGE as error:
            raise _unreadable(self.label, self.kind, error) from None

    def _parquet(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        import pyarrow.parquet as pq

        refuse_too_many_rows(self.place.path)
        file = pq.ParquetFile(self.place.path)
        for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
            batch.validate(full=True)  # Wrong lengths would lead to reads outside of memory.
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame

    def _json(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        yield _read_json(self.place).select(columns)


def open_table(
    place: Place,
    wanted: Sequence[str],
    settings: TextSettings,
    *,
    setting_of: str = "columns",
) -> TableFile:
    """Open a file far enough to know its columns.

    Excel is recognised by the first bytes of the file, Parquet by these or by its name, and JSON by
    its name.

    Args:
        place: Location of the file.
        wanted: Names of required columns, which help to detect the form of text files.
        settings: Settings of how text files are written.
        setting_of: Setting that names the columns of a text file without a header, for messages.

    Raises:
        DataError: The file is damaged, or its format holds no table.
    """
    folders = _hive_columns(place.path)
    start = _first_bytes(place)
    name = place.label.lower()
    if start.startswith(b"PAR1") or (name.endswith(PARQUET) and place.member is None):
        import pyarrow.parquet as pq

        try:
            columns = tuple(pq.read_schema(place.path).names)
        except TABLE_DAMAGE as error:
            raise _unreadable(place.label, "parquet", error) from None
        return _with_folders(place, "parquet", columns, folders)
    if start.startswith(WORKBOOKS):
        raise DataError(
            f"{place.label} is an Excel workbook: save it as CSV (UTF-8) and give that file."
        )
    if _without_packing(name).endswith(JSON):
        return _with_folders(place, "json", tuple(_read_json(place).columns), folders)
    text = TextFile(place, [w for w in wanted if w not in folders], settings, setting_of=setting_of)
    return _with_folders(place, "text", text.columns, folders, text)


def list_files(path: Path, expected: str, *, apart: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the files with a table that a path stands for, sorted by name.

    Args:
        path: Path of a file, or of a folder, or a pattern. A folder stands for its files or, if it
            has none, for those of its subfolders.
        expected: Description of the required files, for messages.
        apart: Files to leave out.

    Raises:
        DataError: There are no such files, or files of several kinds.
    """
    if path.is_file():
        return (path,)
    if not path.exists() and glob.has_magic(str(path)):
        base = Path(*[*_before_magic(path)])
        require_path(base, expected)
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        found = [file for entry in found for file in _files_below(entry)]
    else:
        require_path(path, expected)
        base, found = path, _files_below(path)
    left_out = {file.resolve() for file in apart}
    found = [file for file in dict.fromkeys(found) if file.resolve() not in left_out]
    kinds: dict[str, list[Path]] = {}
    for file in found:
        kinds.setdefault(_kind_of(file), []).append(file)
    if len(kinds) > 1:
        kinds.pop(".txt", None)  # Text files beside others are read-me files and the like.
    if len(kinds) != 1:
        listed = sorted(kinds, key=lambda kind: (SUFFIXES.index(_without_packing(kind)), kind))
        what = f"files of several kinds ({', '.join(listed)})" if kinds else "no such file"
        raise DataError(
            f"{path} holds {what}: expected {expected}, in files of one of {', '.join(SUFFIXES)} "
            f"(text and JSON also as .gz or .zst); found "
            f"{list_folder(base if base.is_dir() else base.parent)}. Set data.path to a file, a "
            f"folder or a pattern like {base / '*.parquet'}."
        )
    return tuple(next(iter(kinds.values())))


def find_tables(path: Path) -> tuple[Place, ...]:
    """Return the tables in a file: the file itself, or the members of a zip archive.

    Raises:
        DataError: The archive is damaged or holds no table.
    """
    if not _is_zip(path):
        return (Place(path),)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except DAMAGE as error:
        raise DataError(f"{path} is a damaged zip archive ({error}). Copy it again.") from None
    if any(name.startswith("xl/") for name in names):
        raise DataError(f"{path} is an Excel workbook: save it as CSV (UTF-8) and give that file.")
    members_by_name(names, (), str(path))  # Raises an error if a name leads out of the archive.
    tables = sorted(
        name for name in names
        if Path(name).name.lower().endswith((*TEXT, *JSON)) and not _is_hidden(Path(name))
    )  # fmt: skip
    if not tables:
        raise DataError(
            f"{path} holds {', '.join(names[:8]) or 'nothing'}: expected files of one of "
            f"{', '.join((*TEXT, *JSON))}. Unpack it, and set data.path to the unpacked files."
        )
    return tuple(Place(path, name) for name in tables)


def read_table(file: TableFile, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read all rows of a file at once, without the lines that cannot be split.

    Args:
        file: The file to read.
        columns: Names of the columns to read. None reads all columns.
    """
    chosen = file.columns if columns is None else columns
    parts = [part.frame for part in file.rows(chosen)]
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(chosen, pl.String))
    return pl.concat(parts, how="vertical_relaxed")


def _read_json(place: Place) -> pl.DataFrame:
    """Read JSON objects, one per line or in an array, with types that fit all of them."""
    file = read_file(place, JSON_BYTES)
    content = file.content.lstrip(b"\xef\xbb\xbf \t\r\n")
    objects = None
    try:
        if content.startswith(b"["):
            objects = json.loads(decode(file))
        elif not looks_packed(content) and not may_spell_half(content):
            return pl.read_ndjson(content, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        pass
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place.label} cannot be read as JSON: {error}.") from None
    if objects is None:
        objects = []
        for line, text in enumerate(decode(file).split("\n"), start=1):
            if text.strip():
                try:
                    objects.append(json.loads(text))
                except (ValueError, RecursionError) as error:
                    raise DataError(
                        f"{place.label}, line {line} is not a JSON object: {error}. Expected "
                        "one object a line."
                    ) from None
    if not all(isinstance(value, dict) for value in objects):
        raise DataError(
            f"{place.label} holds JSON that is not an object: expected one object a line."
        )
    names = dict.fromkeys(name for value in objects for name in value)
    if broken := [name for name in names if not is_text(name)]:
        raise DataError(
            f"{place.label} names a column {ascii(broken[0])[:80]}, which contains an "
            "incomplete character: rename it."
        )
    columns = {}
    for name in names:
        values = [value.get(name) for value in objects]
        try:
            columns[name] = _column(values)
        except UnicodeEncodeError:
            texts = (json.dumps(value, ensure_ascii=False) for value in values)
            row = next(row for row, text in enumerate(texts, start=1) if not is_text(text))
            raise DataError(
                f"{place.label}, row {row}: column {name[:80]} contains an incomplete character. "
                "Fix it in the source."
            ) from None
    return pl.DataFrame(columns)


def _column(values: list[object]) -> pl.Series:
    """Return a column of values, as text if their types differ."""
    try:
        return pl.Series(values, strict=True)
    except (TypeError, pl.exceptions.PolarsError, OverflowError):
        texts = [
            value if value is None or isinstance(value, str) else json.dumps(value)
            for value in values
        ]
        return pl.Series(texts, dtype=pl.String)


def _files_below(path: Path) -> list[Path]:
    """Return the files of a folder or, if it has none, the files of its subfolders."""
    if not path.is_dir():
        return [path] if _kind_of(path) else []
    entries = sorted(entry for entry in path.iterdir() if not _is_hidden(Path(entry.name)))
    files = [entry for entry in entries if entry.is_file() and _kind_of(entry)]
    if files:
        return files
    return [file for entry in entries if entry.is_dir() for file in _files_below(entry)]


def _kind_of(path: Path) -> str:
    """Return the suffix of a file name that shows its format, or an empty text."""
    name = path.name.lower()
    plain = _without_packing(name)
    packed = name[len(plain) :]
    return next((suffix + packed for suffix in SUFFIXES if plain.endswith(suffix)), "")


def _without_packing(name: str) -> str:
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return name


def _is_hidden(path: Path) -> bool:
    """Return whether a name is of a kind that Spark, macOS and others leave beside the data."""
    return any(part.startswith(("_", ".")) for part in path.parts)


def _is_zip(path: Path) -> bool:
    return path.is_file() and _first_bytes(Place(path)).startswith(b"PK\x03\x04")


def _first_bytes(place: Place) -> bytes:
    if place.member is not None:
        return b""
    try:
        with place.path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise DataError(f"Cannot read {place.path}: {error.strerror}.") from None


def _before_magic(path: Path) -> Iterator[str]:
    """Yield the parts of a pattern before the first part with a wildcard."""
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _hive_columns(path: Path) -> dict[str, str | None]:
    """Return the columns that are named by a file's folders, as in ``day=2024-01-01``."""
    pairs = [re.fullmatch(r"([^=]+)=(.*)", part) for part in path.parts[:-1]]
    found = {match[1]: unquote(match[2]) for match in pairs if match}
    return {name: None if value == HIVE_NULL else value for name, value in found.items()}


def _with_folders(
    place: Place,
    kind: str,
    columns: tuple[str, ...],
    folders: dict[str, str | None],
    text: TextFile | None = None,
) -> TableFile:
    """Return a file with the columns that its folders name, unless the file has them itself."""
    added = {name: value for name, value in folders.items() if name not in columns}
    return TableFile(place, kind, (*columns, *added), added, text)


def _unreadable(label: str, kind: str, error: BaseException) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{label} cannot be read as {kind} ({reason}).")
