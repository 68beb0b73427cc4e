"""Amazon reviews of one category: the editions of 2014, 2018 and 2023.

Reviews are JSON lines; of 2014 and 2018 there are tables of ratings alone, of 2023 such tables and
ready splits. Metadata lines of 2014 are Python dict literals, so they are parsed as literals and
never run as code. Parsing them costs about 60 µs a line; lines that have one kind of quote only,
the majority, are JSON but for their quotes and take a tenth of that. Later editions are JSON, their
titles sometimes scraps of a page.

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
    """How the files of one year are named and what their fields are called.

    Args:
        year: Of the edition.
        ratings: Sets of files, ``{}`` for the category, that hold the interactions; the preferred
            set first.
        metadata: The file that describes the items.
        review_fields: Names, in a review, of the user, the item, the time and the stars.
        table_fields: Order of those in a table of ratings; None where it has a header.
        brand_field: Name, in the metadata, of the brand.
        category_field: Likewise, the categories.
        item_field: Likewise, the item.
        time_unit: Parts of a second that times count.
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
# What the columns of tables with a header are called here.
TABLE_NAMES = {
    "user_id": "user_id",
    "parent_asin": "item_id",
    "rating": "weight",
    "timestamp": "timestamp",
}


@dataclass(frozen=True)
class Amazon:
    """One category of one edition, such as ``Beauty`` of 2014."""

    year: int
    category: str

    @property
    def expected(self) -> str:
        """The files wanted, in words."""
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
        """The interactions and the metadata; the smallest files that hold what is needed."""
        candidates = [(*names, self._metadata) for names in self._rating_sets]
        if path.is_file() and path.name.removesuffix(".gz") != self._metadata.removesuffix(".gz"):
            # One of several sets was named, packed or not: that one is meant.
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
        """Read ids, times and stars, and the metadata."""
        *ratings, metadata = [Place(path) for path in files]
        coder = coder or InteractionCoder()
        parts = [
            _read_ratings(place, self._edition, max_malformed_share, coder) for place in ratings
        ]
        items = _read_metadata(read_file(metadata), self._edition, max_malformed_share)
        return to_raw_data(join_rows(parts, files[:-1]), items, files, coder)


def parse_literal(text: str) -> dict[str, Any] | None:
    """The dict that a line of metadata spells, in Python's or JSON's notation; None if neither."""
    # Without " and \\ each ' delimits a text, and what is left to differ from JSON (None, tuples,
    # text with a raw tab) makes the JSON parser fail.
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
        # Some redistributed copies carry no stars at all: then there is no weight to require.
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
    """Our names for what a header names; numbers for what is not read.

    Raises:
        DataError: A column that is needed is missing, or there twice.
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
    """Values in the order of `ITEM_SCHEMA`, whatever types the line has them in."""
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
    """One text of one, or of a list of paragraphs."""
    parts = texts if isinstance(texts, list) else [texts]
    return " ".join(text for part in parts if (text := clean_text(part))) or None


def _flatten_categories(categories: object) -> list[str]:
    """The names on all paths of a nested list, each once, in order."""
    return list(dict.fromkeys(_category_names(categories)))


def _category_names(categories: object) -> Iterator[str]:
    if isinstance(categories, list):
        for entry in categories:
            yield from _category_names(entry)
    elif (name := clean_text(categories)) is not None:
        yield name
