"""Reader of RecBole's atomic files: tab-separated, with a header of ``name:type`` fields.

``<name>.inter`` holds the interactions. The optional files ``<name>.item`` and ``<name>.user`` hold
the items and users. The types are ``token``, ``token_seq`` (separated by blanks), ``float`` and
``float_seq``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recgrit.data.id_columns import refuse_damaged_ids
from recgrit.data.sources.cleaning import (
    CleanRows,
    clean_interactions,
    clean_items,
    clean_text,
    to_raw_data,
)
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import (
    RawFile,
    decode,
    list_folder,
    read_files,
    require_path,
    split_fields,
    split_lines,
)
from recgrit.data.time_settings import TimeSettings
from recgrit.data.times import TimeReader
from recgrit.errors import DataError

# Column names used here, by the names of item fields in published data sets.
ITEM_FIELDS = {
    "movie_title": "title",
    "item_name": "title",
    "name": "title",
    "release_year": "year",
    "class": "genres",
    "genre": "genres",
}
LIST_FIELDS = ("genres", "categories")
ANY_TIMES, SECONDS = TimeSettings(), TimeSettings(time_unit="s")


@dataclass(frozen=True)
class RecBole:
    """The source of any data set in RecBole's atomic files.

    Args:
        times: Settings of how times are written.
    """

    times: TimeSettings = ANY_TIMES

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        return "exactly one *.inter file and, with the same name, optional *.item and *.user files"

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the file of interactions, and the files of items and users if they exist.

        Raises:
            DataError: There is not exactly one file of interactions.
        """
        require_path(path, self.expected)
        found = sorted(path.glob("*.inter")) if path.is_dir() else [path]
        if len(found) != 1 or found[0].suffix != ".inter":
            folder = path if path.is_dir() else path.parent
            raise DataError(
                f"{path} does not hold a data set in atomic files: expected {self.expected}; "
                f"found {list_folder(folder)}. Set data.path to the folder, or to one .inter file."
            )
        others = (found[0].with_suffix(suffix) for suffix in (".item", ".user"))
        return (found[0], *(other for other in others if other.is_file()))

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the interactions, and the items and users if their files exist."""
        suffixes = [file.suffix for file in files]
        contents = dict(zip(suffixes, read_files(files, ()).values(), strict=True))
        raw = read_atomic_files(
            contents[".inter"],
            contents.get(".item"),
            files,
            max_malformed_share,
            coder,
            times=self.times,
        )
        if (users := contents.get(".user")) is None:
            return raw
        return replace(raw, users=_read_user(users, max_malformed_share))


def read_atomic_files(
    inter: RawFile,
    item: RawFile | None,
    files: tuple[Path, ...],
    max_malformed_share: float,
    coder: InteractionCoder | None = None,
    *,
    times: TimeSettings = SECONDS,
) -> RawData:
    """Read the interactions and items of one data set in atomic files.

    Args:
        inter: Content of the file of interactions.
        item: Content of the file of items. None if there is none.
        files: Paths of all files, for the result.
        max_malformed_share: Largest share of malformed lines of a file.
        coder: Coder of user and item ids. None uses a new coder in memory.
        times: Settings of how times are written.

    Raises:
        DataError: A header lacks a required field, or the content is malformed.
    """
    coder = coder or InteractionCoder()
    interactions = _read_inter(inter, max_malformed_share, coder, times)
    if item is None:
        schema = {"item_id": pl.String, "title": pl.String}
        items = CleanRows(pl.DataFrame(schema=schema), num_read=0, num_malformed=0)
    else:
        items = _read_item(item, max_malformed_share)
    return to_raw_data(interactions, items, files, coder)


def _read_inter(
    file: RawFile, max_malformed_share: float, coder: InteractionCoder, times: TimeSettings
) -> CleanRows:
    rows, types = _read_table(file)
    # Times are required, because the order of the file may be arbitrary.
    missing = [name for name in ("user_id", "item_id", "timestamp") if name not in types]
    if missing:
        raise DataError(
            f"{file.label} lacks {', '.join(missing)}: expected the header fields user_id:token, "
            f"item_id:token, timestamp:float and maybe rating:float, got {', '.join(types)}."
        )
    for name in ("user_id", "item_id"):
        refuse_damaged_ids(rows[name].unique(maintain_order=True), file.label, name)
    reader = TimeReader("timestamp", times)
    exact = reader.read(rows["timestamp"], file.label)
    reader.finish()
    rows = rows.drop("timestamp").hstack(exact)
    names = ["line", "user_id", "item_id", *exact.columns]
    weight = [pl.col("rating").alias("weight")] if "rating" in types else []
    return clean_interactions(
        rows.select(*names, *weight),
        file.label,
        f"{len(types)} fields separated by tabs",
        max_malformed_share,
        coder,
        reader.describe_unread(),
    )


def _read_item(file: RawFile, max_malformed_share: float) -> CleanRows:
    rows, types = _read_table(file)
    renamed = {name: ITEM_FIELDS.get(name, name) for name in types}
    if "item_id" not in types or len(set(renamed.values())) != len(types):
        raise DataError(
            f"{file.label} needs the header field item_id:token and no field twice (title and "
            f"movie_title count as one), got {', '.join(types)}."
        )
    refuse_damaged_ids(rows["item_id"].unique(maintain_order=True), file.label, "item_id")
    columns = [
        _convert(pl.col(name), new_name, types[name]).alias(new_name)
        for name, new_name in renamed.items()
    ]
    if "title" not in renamed.values():
        columns.append(pl.lit(None, dtype=pl.String).alias("title"))
    frame = rows.select("line", *columns)
    return clean_items(
        frame.select("line", "item_id", "title", pl.exclude("line", "item_id", "title")),
        file.label,
        f"{len(types)} fields separated by tabs",
        max_malformed_share,
    )


def _read_user(file: RawFile, max_malformed_share: float) -> pl.DataFrame:
    rows, types = _read_table(file)
    if "user_id" not in types:
        raise DataError(
            f"{file.label} needs the header field user_id:token, got {', '.join(types)}."
        )
    refuse_damaged_ids(rows["user_id"].unique(maintain_order=True), file.label, "user_id")
    columns = [
        pl.col(name) if name == "user_id" else _convert(pl.col(name), name, types[name])
        for name in types
    ]
    return clean_items(
        rows.select("line", *columns).select("line", "user_id", pl.exclude("line", "user_id")),
        file.label,
        f"{len(types)} fields separated by tabs",
        max_malformed_share,
        id_name="user_id",
    ).frame


def _convert(column: pl.Expr, name: str, field_type: str) -> pl.Expr:
    """Convert a text column by its name or else by its type; empty fields become null."""
    words = column.str.extract_all(r"\S+")
    if name == "item_id":
        converted = column
    elif name == "year":
        converted = column.cast(pl.Float64, strict=False).cast(pl.Int32, strict=False)
    elif name in LIST_FIELDS or (field_type == "token_seq" and name != "title"):
        converted = pl.when(words.list.len() > 0).then(words)
    elif field_type == "float":
        converted = column.cast(pl.Float64, strict=False)
    elif field_type == "float_seq":
        converted = words.cast(pl.List(pl.Float64), strict=False)
    else:
        converted = column.map_elements(clean_text, return_dtype=pl.String)
    return converted


def _read_table(file: RawFile) -> tuple[pl.DataFrame, dict[str, str]]:
    """Read all fields as text with ``line``, and return them with the type of each field."""
    lines = split_lines(decode(file))
    header = str(lines["text"].first()).split("\t")
    types = dict(field.strip().partition(":")[::2] for field in header)
    if not all(types.values()) or len(types) != len(header):
        raise DataError(
            f"{file.label} does not start with a header of name:type fields separated by tabs, "
            f"got {str(lines['text'].first())[:80]!r}. Use RecBole's atomic files."
        )
    return split_fields(lines.slice(1), "\t", list(types)), types
