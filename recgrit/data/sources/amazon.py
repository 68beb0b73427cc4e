"""Reader of the Amazon reviews of one category, in the editions of 2014, 2018 and 2023.

Reviews are JSON lines. The editions of 2014 and 2018 also have tables of ratings alone, and the
edition of 2023 has such tables and ready-made splits. Metadata lines of 2014 are Python dict
literals, which are parsed as literals and never run as code. Parsing a literal takes about 60 µs a
line. Most lines have only one kind of quotes; with other quotes these are JSON, which is parsed in
a tenth of that time. Metadata of later editions are JSON, and some of their titles are fragments of
web pages.

R. He and J. McAuley, "Ups and Downs", WWW 2016; J. McAuley et al., SIGIR 2015 (2014). J. Ni et al.,
EMNLP 2019 (2018). Y. Hou et al., arXiv 2403.03952 (2023).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.data.sources.cleaning import (
    CleanRows,
    RowCollector,
    clean_items,
    clean_text,
    join_rows,
    parse_price,
    to_raw_data,
)
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import (
    ColumnType,
    Place,
    RawFile,
    decode,
    find_files,
    parse_json_lines,
    read_file,
    split_lines,
)
from recgrit.data.sources.streaming import (
    collect_fields,
    fetch_ahead,
    read_blocks,
    read_first_line,
)
from recgrit.errors import DataError
from recgrit.progress import track
from recgrit.text import is_text

ITEM_SCHEMA: dict[str, ColumnType] = {
    "line": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "categories": pl.List(pl.String),
    "price": pl.Float64,
    "description": pl.String,
}
NO_BRAND = ("none", "unknown")


@dataclass(frozen=True)
class Edition:
    """The file names and field names of the Amazon reviews of one year.

    Args:
        year: Year of the edition.
        ratings: Sets of files that hold the interactions, the preferred set first. ``{}`` in a name
            stands for the category.
        metadata: Name of the file that describes the items. ``{}`` stands for the category.
        review_fields: Names of the fields of a review for the user, the item, the time and the
            stars.
        table_fields: Columns of a table of ratings, in order. None if the table has a header.
        brand_field: Name of the metadata field for the brand.
        category_field: Name of the metadata field for the categories.
        item_field: Name of the metadata field for the item id.
        time_unit: Number of time units in a second: 1 for seconds, 1000 for milliseconds.
    """

    year: int
    ratings: tuple[tuple[str, ...], ...]
    metadata: str
    review_fields: tuple[str, str, str, str]
    table_fields: tuple[str, str, str, str] | None
    brand_field: str = "brand"
    category_field: str = "category"
    item_field: str = "asin"
    time_unit: int = 1


EDITIONS = {
    2014: Edition(
        year=2014,
        ratings=(("reviews_{}_5.json.gz",), ("ratings_{}.csv",), ("reviews_{}.json.gz",)),
        metadata="meta_{}.json.gz",
        review_fields=("reviewerID", "asin", "unixReviewTime", "overall"),
        table_fields=("user_id", "item_id", "weight", "timestamp"),
        category_field="categories",
    ),
    2018: Edition(
        year=2018,
        ratings=(("{}_5.json.gz",), ("{}.csv",), ("{}.json.gz",)),
        metadata="meta_{}.json.gz",
        review_fields=("reviewerID", "asin", "unixReviewTime", "overall"),
        table_fields=("item_id", "user_id", "weight", "timestamp"),
    ),
    2023: Edition(
        year=2023,
        ratings=(
            ("{}.train.csv.gz", "{}.valid.csv.gz", "{}.test.csv.gz"),
            ("{}.csv.gz",),
            ("{}.jsonl.gz",),
        ),
        metadata="meta_{}.jsonl.gz",
        review_fields=("user_id", "parent_asin", "timestamp", "rating"),
        table_fields=None,
        brand_field="store",
        category_field="categories",
        item_field="parent_asin",
        time_unit=1000,
    ),
}
# Column names used here, by the names in tables with a header.
TABLE_NAMES = {
    "user_id": "user_id",
    "parent_asin": "item_id",
    "rating": "weight",
    "timestamp": "timestamp",
}


@dataclass(frozen=True)
class Amazon:
    """The source of one category of one edition, such as ``Beauty`` of 2014."""

    year: int
    category: str

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        *sets, metadata = [*self._rating_sets, (self._metadata,)]
        return f"{' or '.join(' + '.join(names) for names in sets)}, and {metadata[0]}"

    @property
    def _edition(self) -> Edition:
        return EDITIONS[self.year]

    @property
    def _rating_sets(self) -> list[tuple[str, ...]]:
        return [
            tuple(name.format(self.category) for name in names) for names in self._edition.ratings
        ]

    @property
    def _metadata(self) -> str:
        return self._edition.metadata.format(self.category)

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files of interactions and metadata, preferring the smallest that suffice.

        Raises:
            DataError: The files do not exist.
        """
        candidates = [(*names, self._metadata) for names in self._rating_sets]
        if path.is_file() and path.name.removesuffix(".gz") != self._metadata.removesuffix(".gz"):
            # The path is a file of one of the sets, packed or not: this set is used.
            plain = path.name.removesuffix(".gz")
            named = [n for n in candidates if plain in {name.removesuffix(".gz") for name in n}]
            candidates = named or candidates
        return find_files(path, candidates, self.expected)

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the ids, times and ratings of the interactions, and the metadata of the items."""
        *ratings, metadata = [Place(path) for path in files]
        coder = coder or InteractionCoder()
        parts = [
            _read_ratings(place, self._edition, max_malformed_share, coder) for place in ratings
        ]
        items = _read_metadata(read_file(metadata), self._edition, max_malformed_share)
        return to_raw_data(join_rows(parts, files[:-1]), items, files, coder)


def parse_literal(text: str) -> dict[str, Any] | None:
    """Parse a line of metadata as a dict, in Python's or JSON's notation, or return None."""
    # In a line without " and \\ each ' delimits a text. All other differences to JSON (None,
    # tuples, text with a raw tab) make the JSON parser fail.
    has_one_kind_of_quote = '"' not in text and "\\" not in text
    text_as_json = text.replace("'", '"') if has_one_kind_of_quote else text
    try:
        value = json.loads(text_as_json)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _read_ratings(
    place: Place, edition: Edition, max_malformed_share: float, coder: InteractionCoder
) -> CleanRows:
    read = _read_table if ".csv" in place.label else _read_reviews
    return read(place, edition, coder).finish(max_malformed_share)


def _read_reviews(place: Place, edition: Edition, coder: InteractionCoder) -> RowCollector:
    user, item, time, stars = edition.review_fields
    schema: dict[str, ColumnType] = {
        user: pl.String,
        item: pl.String,
        time: pl.Float64,
        stars: pl.Float64,
    }
    ours = dict(zip(schema, ("user_id", "item_id", "timestamp", "weight"), strict=True))
    collector = RowCollector(
        coder,
        place.label,
        f"JSON objects with {user}, {item}, {time} and maybe {stars}",
        units_per_second=edition.time_unit,
        # Some redistributed copies have no stars at all, so a weight is not required.
        weight_is_optional=True,
    )
    parsed = (
        parse_json_lines(block.file, schema, block.first_line) for block in read_blocks(place)
    )
    for rows in fetch_ahead(parsed):
        collector.add(rows.rename(ours))
    return collector


def _read_table(place: Place, edition: Edition, coder: InteractionCoder) -> RowCollector:
    names, header = list(edition.table_fields or ()), None
    if not names:
        header = read_first_line(place)
        names = _name_columns(header, place.label)
    collector = RowCollector(
        coder, place.label, header or ",".join(names), units_per_second=edition.time_unit
    )
    collect_fields(place, ",", names, collector, header)
    return collector


def _name_columns(header: str, label: str) -> list[str]:
    """Translate a header into the column names used here; unused columns get numbers.

    Raises:
        DataError: A required column is missing or occurs twice.
    """
    fields = header.split(",")
    missing = [name for name in TABLE_NAMES if name not in fields and name != "rating"]
    repeated = [name for name in TABLE_NAMES if fields.count(name) > 1]
    if missing or repeated:
        wanted = ", ".join(missing) if missing else f"{', '.join(repeated)} once"
        raise DataError(
            f"{label} does not start with a header that names {wanted}, got {header[:80]!r}. "
            "Use the published file as it is."
        )
    return [TABLE_NAMES.get(name, str(place)) for place, name in enumerate(fields)]


def _read_metadata(file: RawFile, edition: Edition, max_malformed_share: float) -> CleanRows:
    lines = split_lines(decode(file))
    parsed = track(lines.iter_rows(), "reading metadata", lines.height)
    rows = [
        (line, None, None, None, None, None, None)
        if (fields := parse_literal(text)) is None
        else (line, *_item_values(fields, edition))
        for line, text in parsed
    ]
    return clean_items(
        pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row"),
        file.label,
        f"{'Python dicts' if edition.year == 2014 else 'JSON objects'} with {edition.item_field} "
        "and maybe title, brand, categories and price",
        max_malformed_share,
    )


def _item_values(fields: dict[str, Any], edition: Edition) -> tuple[object, ...]:
    """Return the values of an item in the order of `ITEM_SCHEMA`, from fields of any types."""
    item_id = fields.get(edition.item_field)
    brand = clean_text(fields.get(edition.brand_field))
    return (
        item_id if isinstance(item_id, str) and is_text(item_id) else None,
        clean_text(fields.get("title")),
        None if brand is None or brand.lower() in NO_BRAND else brand,
        _flatten_categories(fields.get(edition.category_field)) or None,
        parse_price(fields.get("price")),
        _join_texts(fields.get("description")),
    )


def _join_texts(texts: object) -> str | None:
    """Join a list of paragraphs, or a single text, into one cleaned text."""
    parts = texts if isinstance(texts, list) else [texts]
    return " ".join(text for part in parts if (text := clean_text(part))) or None


def _flatten_categories(categories: object) -> list[str]:
    """Return the names on all paths of a nested list, without repeats and in order."""
    return list(dict.fromkeys(_category_names(categories)))


def _category_names(categories: object) -> Iterator[str]:
    if isinstance(categories, list):
        for entry in categories:
            yield from _category_names(entry)
    elif (name := clean_text(categories)) is not None:
        yield name
