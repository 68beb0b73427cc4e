"""Reader of MovieLens: the official files of every release, and RecBole's copy of 100K.

There are three layouts. 100K has tables with tabs and bars, 1M and 10M use ``::``, and all later
releases are comma-separated with headers.

Titles end with the year, as in 'Toy Story (1995)'. The year is moved to the column ``year``, where
RecBole's copy has it already. Both copies of MovieLens-100K then give equal titles, and the year
can still be put into the text of an item from its own column.

F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", TiiS 5(4), 2015.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recgrit.data.sources.cleaning import (
    CleanRows,
    RowCollector,
    clean_interactions,
    clean_items,
    clean_text,
    to_raw_data,
)
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import (
    ColumnType,
    RawFile,
    decode,
    find_files,
    find_places,
    read_file,
    read_files,
    require_header,
    split_fields,
    split_lines,
)
from recgrit.data.sources.recbole import read_atomic_files
from recgrit.data.sources.streaming import collect_fields
from recgrit.errors import DataError

RATING_FIELDS = ("user_id", "item_id", "weight", "timestamp")
OFFICIAL_100K = ("u.data", "u.item")
RECBOLE_100K = ("ml-100k.inter", "ml-100k.item")

# Genres in the order of the 19 flags at the end of each line of u.item.
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
# Words for unknown titles and genres. Item 267 of MovieLens-100K has the title 'unknown', which
# RecBole's copy misspells.
PLACEHOLDERS = ("unknown", "unkonwn", "(no genres listed)")

ITEM_SCHEMA: dict[str, ColumnType] = {
    "line": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "year": pl.Int32,
    "genres": pl.List(pl.String),
}
# Of a range of years, as in 'Death Note (2006–2007)', the first year is used.
_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)$")


@dataclass(frozen=True)
class MovieLens100K:
    """The source MovieLens-100K, from the official files or from RecBole's atomic files.

    It has 943 users, 1,682 movies and 100,000 ratings.
    """

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        return "u.data and u.item, or ml-100k.inter and ml-100k.item, or ml-100k.zip"

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the two files or the archive, preferring the official files over RecBole's copy.

        Raises:
            DataError: The files do not exist.
        """
        return find_files(path, (OFFICIAL_100K, RECBOLE_100K), self.expected, "ml-100k.zip")

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the ratings and movies from either copy."""
        contents = read_files(files, (OFFICIAL_100K, RECBOLE_100K))
        if RECBOLE_100K[0] in contents:
            raw = read_atomic_files(
                contents[RECBOLE_100K[0]],
                contents[RECBOLE_100K[1]],
                files,
                max_malformed_share,
                coder,
            )
            return replace(raw, items=_drop_placeholders(raw.items))
        ratings = contents[OFFICIAL_100K[0]]
        coder = coder or InteractionCoder()
        interactions = clean_interactions(
            split_fields(split_lines(decode(ratings)), "\t", RATING_FIELDS),
            ratings.label,
            "user id, item id, rating and timestamp, separated by tabs",
            max_malformed_share,
            coder,
        )
        items = _read_flagged_items(contents[OFFICIAL_100K[1]], max_malformed_share)
        return to_raw_data(interactions, items, files, coder)


@dataclass(frozen=True)
class MovieLens:
    """The source of a later MovieLens release, with ratings and movies in one of two layouts.

    Args:
        archive: Name of the published zip archive.
        layout: File names and form of the files in the archive.
        folder: Name of the folder in the archive. None means the archive's name without ``.zip``.
    """

    archive: str
    layout: Layout
    folder: str | None = None

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        return f"{' and '.join(self.layout.files)}, or {self.archive}"

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files of ratings and movies, or the archive that holds them.

        Raises:
            DataError: The files do not exist.
        """
        return find_files(path, (self.layout.files,), self.expected, self.archive, self.folder)

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the ratings and the movies."""
        places = find_places(files, (self.layout.files,))
        ratings, movies = (places[name] for name in self.layout.files)
        coder = coder or InteractionCoder()
        collector = RowCollector(coder, ratings.label, self.layout.fields)
        collect_fields(
            ratings,
            self.layout.separator,
            RATING_FIELDS,
            collector,
            self.layout.fields if self.layout.has_header else None,
        )
        interactions = collector.finish(max_malformed_share)
        items = self.layout.read_items(read_file(movies), max_malformed_share)
        return to_raw_data(interactions, items, files, coder)


def _read_flagged_items(file: RawFile, max_malformed_share: float) -> CleanRows:
    """Read u.item: id | title | release date | video date | address | 19 flags, in latin-1."""
    num_fields = 5 + len(GENRES_100K)
    rows: list[tuple[int, str | None, str | None, int | None, list[str] | None]] = []
    for line, text in split_lines(decode(file, "latin-1")).iter_rows():
        fields = text.split("|")
        if len(fields) != num_fields:
            rows.append((line, None, None, None, None))
            continue
        title, year = split_year(fields[1])
        if year is None and fields[2][-4:].isdigit():  # 01-Jan-1995
            year = int(fields[2][-4:])
        genres = [name for name, flag in zip(GENRES_100K, fields[5:], strict=True) if flag == "1"]
        rows.append((line, fields[0], title, year, genres))
    return clean_items(
        _drop_placeholders(pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row")),
        file.label,
        f"{num_fields} fields separated by '|', the last {len(GENRES_100K)} of them genre flags",
        max_malformed_share,
    )


def _read_colon_items(file: RawFile, max_malformed_share: float) -> CleanRows:
    """Read movies.dat: id::title::genres separated by '|', in latin-1 (1M) or UTF-8 (10M)."""
    rows: list[tuple[int, str | None, str | None, int | None, list[str] | None]] = []
    for line, text in split_lines(_decode_either(file)).iter_rows():
        fields = text.split("::")
        if len(fields) != 3:
            rows.append((line, None, None, None, None))
            continue
        title, year = split_year(fields[1])
        rows.append((line, fields[0], title, year, fields[2].split("|")))
    return clean_items(
        _drop_placeholders(pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row")),
        file.label,
        "MovieID::Title::Genres",
        max_malformed_share,
    )


def _decode_either(file: RawFile) -> str:
    """Decode a file as UTF-8, or as latin-1 if it is not valid UTF-8.

    Text in latin-1 that has an accent is not valid UTF-8.
    """
    try:
        return decode(file)
    except DataError:
        return decode(file, "latin-1")


def _read_quoted_items(file: RawFile, max_malformed_share: float) -> CleanRows:
    """Read movies.csv: id, title (quoted if it has a comma), genres separated by '|'."""
    header = "movieId,title,genres"
    rows: list[tuple[int, str | None, str | None, int | None, list[str] | None]] = []
    for line, text in require_header(file, split_lines(decode(file)), header).iter_rows():
        # Each line is parsed alone, so that a stray quote damages one movie and not all after it.
        try:
            fields = next(csv.reader([text]))
        except csv.Error:  # The line has a carriage return inside, or a field without end.
            fields = []
        if len(fields) != header.count(",") + 1:
            rows.append((line, None, None, None, None))
            continue
        title, year = split_year(fields[1])
        rows.append((line, fields[0], title, year, fields[2].split("|")))
    return clean_items(
        _drop_placeholders(pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row")),
        file.label,
        header,
        max_malformed_share,
    )


def split_year(text: str) -> tuple[str | None, int | None]:
    """Split a title into the title without its year and the year.

    >>> split_year("Seven (a.k.a. Se7en) (1995) ")
    ('Seven (a.k.a. Se7en)', 1995)
    """
    title = clean_text(text)
    match = _YEAR.search(title or "")
    if title is None or match is None:
        return title, None
    return title[: match.start()] or None, int(match[1])


def _drop_placeholders(items: pl.DataFrame) -> pl.DataFrame:
    """Replace words that mean 'not known' by null, so that a text encoder does not read them."""
    title = pl.when(~pl.col("title").is_in(PLACEHOLDERS)).then("title").alias("title")
    if "genres" not in items.columns:  # Some copies have no genres.
        return items.with_columns(title)
    known = pl.element().filter(~pl.element().is_in(PLACEHOLDERS))
    genres = pl.col("genres").list.eval(known)
    return items.with_columns(title, pl.when(genres.list.len() > 0).then(genres).alias("genres"))


@dataclass(frozen=True)
class Layout:
    """The file names and form of the files of a MovieLens release.

    Args:
        files: Names of the files of ratings and of movies.
        separator: Separator between the fields of a rating.
        fields: Header of the ratings, or the publisher's names of the fields if there is no header.
        has_header: Whether the ratings begin with this header.
        read_items: Function that reads the movies, given the file and the largest malformed share.
    """

    files: tuple[str, str]
    separator: str
    fields: str
    has_header: bool
    read_items: Callable[[RawFile, float], CleanRows]


# Layout of 1M and 10M.
COLONS = Layout(
    files=("ratings.dat", "movies.dat"),
    separator="::",
    fields="UserID::MovieID::Rating::Timestamp",
    has_header=False,
    read_items=_read_colon_items,
)
# Layout of 20M and all later releases.
COMMAS = Layout(
    files=("ratings.csv", "movies.csv"),
    separator=",",
    fields="userId,movieId,rating,timestamp",
    has_header=True,
    read_items=_read_quoted_items,
)
