"""Amazon reviews, edition of 2014: 5-core reviews and metadata of one category.

Reviews are JSON lines. Metadata lines are Python dict literals, so they are parsed as literals and
never run as code. Parsing them costs about 60 µs a line; lines that have one kind of quote only,
the majority, are JSON but for their quotes and take a tenth of that.

R. He and J. McAuley, "Ups and Downs", WWW 2016; J. McAuley et al., SIGIR 2015.
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
    clean_interactions,
    clean_items,
    clean_text,
    parse_price,
    to_raw_data,
)
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import (
    ColumnType,
    RawFile,
    decode,
    find_files,
    parse_json_lines,
    read_files,
    split_lines,
)
from recgrit.progress import track

REVIEW_FIELDS: dict[str, ColumnType] = {
    "reviewerID": pl.String,
    "asin": pl.String,
    "unixReviewTime": pl.Float64,
    "overall": pl.Float64,
}
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
class Amazon2014:
    """One category, such as ``Beauty`` or ``Sports_and_Outdoors``."""

    category: str

    @property
    def expected(self) -> str:
        """The files wanted, in words."""
        return " and ".join(self._names)

    @property
    def _names(self) -> tuple[str, str]:
        return f"reviews_{self.category}_5.json.gz", f"meta_{self.category}.json.gz"

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The reviews and the metadata."""
        return find_files(path, (self._names,), self.expected)

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
    ) -> RawData:
        """Read the reviews' ids, times and stars, and the metadata."""
        contents = read_files(files, (self._names,))
        reviews, metadata = (contents[name] for name in self._names)
        return to_raw_data(
            _read_reviews(reviews, max_malformed_share),
            _read_metadata(metadata, max_malformed_share),
            files,
        )


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


def _read_reviews(file: RawFile, max_malformed_share: float) -> CleanRows:
    rows = parse_json_lines(file, REVIEW_FIELDS).select(
        "line",
        pl.col("reviewerID").alias("user_id"),
        pl.col("asin").alias("item_id"),
        pl.col("unixReviewTime").alias("timestamp"),
        pl.col("overall").alias("weight"),
    )
    # Some redistributed copies carry no stars at all: then there is no weight to require.
    if rows["weight"].null_count() == rows.height:
        rows = rows.drop("weight")
    return clean_interactions(
        rows,
        file.label,
        "JSON objects with reviewerID, asin, unixReviewTime and maybe overall",
        max_malformed_share,
    )


def _read_metadata(file: RawFile, max_malformed_share: float) -> CleanRows:
    lines = split_lines(decode(file))
    parsed = track(lines.iter_rows(), "reading metadata", lines.height)
    rows = [
        (line, None, None, None, None, None, None)
        if (fields := parse_literal(text)) is None
        else (line, *_item_values(fields))
        for line, text in parsed
    ]
    return clean_items(
        pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row"),
        file.label,
        "Python dicts with asin and maybe title, brand, categories and price",
        max_malformed_share,
    )


def _item_values(fields: dict[str, Any]) -> tuple[object, ...]:
    """Values in the order of `ITEM_SCHEMA`, whatever types the line has them in."""
    item_id = fields.get("asin")
    brand = clean_text(fields.get("brand"))
    return (
        item_id if isinstance(item_id, str) else None,
        clean_text(fields.get("title")),
        None if brand is None or brand.lower() in NO_BRAND else brand,
        _flatten_categories(fields.get("categories")) or None,
        parse_price(fields.get("price")),
        clean_text(fields.get("description")),
    )


def _flatten_categories(categories: object) -> list[str]:
    """The names on all paths of a nested list, each once, in order."""
    return list(dict.fromkeys(_category_names(categories)))


def _category_names(categories: object) -> Iterator[str]:
    if isinstance(categories, list):
        for entry in categories:
            yield from _category_names(entry)
    elif (name := clean_text(categories)) is not None:
        yield name
