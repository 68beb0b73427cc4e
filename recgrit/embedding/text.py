"""One line of text per item from the fields its catalogue has.

A template names fields in braces. It falls into one segment per field: the words before the field
and the punctuation that closes it, up to the next blank. A segment whose field is unknown for an
item vanishes as a whole, so that no "Brand: None" pulls items together.

Prices become ranges on a fixed 1-2-5 scale, since digits mean little to a text encoder. The scale
does not depend on the catalogue: quantiles would give an item another text, and so another
semantic ID, when items are appended.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recgrit.data.items import ItemTable
from recgrit.errors import ConfigError

DEFAULT_TEMPLATE = (
    "{title}. Brand: {brand}. Categories: {categories}. Genres: {genres}. "
    "Year: {year}. Price: {price}. Tags: {tags}."
)
CLOSING_PUNCTUATION = ".,;:!?)]}'\""
PRICE_EDGES = [mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5)]
PRICE_RANGES = [
    f"under ${PRICE_EDGES[0]}",
    *(f"${low} to ${high}" for low, high in itertools.pairwise(PRICE_EDGES)),
    f"${PRICE_EDGES[-1]} or more",
]


@dataclass(frozen=True)
class Segment:
    """One field of a template with the words before it and the punctuation after it."""

    label: str
    field: str
    closing: str


def build_item_texts(items: ItemTable, template: str | None = None) -> list[str]:
    """The text of each item, in the order of ``item_idx``.

    Lists are joined with commas, prices become ranges. A title that only repeats the item's id
    counts as unknown; an item of which nothing is known has its id as text.

    Args:
        items: The item table.
        template: Text with fields of the table in braces; None takes whatever the table has of
            title, brand, categories, genres, year, price and tags.

    Raises:
        ConfigError: The given template cannot be read or names a field the table does not have.

    >>> frame = pl.DataFrame({
    ...     "item_id": ["a", "b"],
    ...     "title": ["Rose soap", "b"],
    ...     "categories": [["Beauty", "Bath"], []],
    ...     "price": [4.25, None],
    ... })
    >>> build_item_texts(ItemTable(frame))
    ['Rose soap. Categories: Beauty, Bath. Price: $2 to $5.', 'b']
    >>> build_item_texts(ItemTable(frame), "{title} ({price})")
    ['Rose soap ($2 to $5)', 'b']
    """
    segments = parse_template(DEFAULT_TEMPLATE if template is None else template)
    columns = items.frame.columns
    unknown = [segment.field for segment in segments if segment.field not in columns]
    if template is not None and unknown:
        raise ConfigError(
            f"The item text template names fields the item table does not have: {unknown}. "
            f"Known fields: {', '.join(columns)}."
        )
    parts = [
        _segment_text(items.frame, segment) for segment in segments if segment.field in columns
    ]
    text = pl.concat_str(parts, ignore_nulls=True).str.strip_chars()
    text = pl.when(text == "").then(pl.col("item_id")).otherwise(text)
    return items.frame.select(text.alias("text"))["text"].to_list()


def parse_template(template: str) -> list[Segment]:
    """The segments of a template.

    Raises:
        ConfigError: Braces do not match, a field has a format, or there is no field at all.

    >>> [segment.label for segment in parse_template("{title}. Brand: {brand}.")]
    ['', ' Brand: ']
    """
    segments: list[Segment] = []
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"Cannot read the item text template {template!r}: {error}.") from None
    for literal, field, form, conversion in pieces:
        if form or conversion:
            raise ConfigError(
                f"The item text template {template!r} formats a field; write {{{field}}} alone."
            )
        closing, label = _split_closing(literal) if segments else ("", literal)
        if segments:
            last = segments[-1]
            segments[-1] = Segment(last.label, last.field, last.closing + closing)
        if field is not None:
            segments.append(Segment(label, field, ""))
    if not segments:
        raise ConfigError(
            f"The item text template {template!r} names no field; write for example {{title}}."
        )
    return segments


def _split_closing(literal: str) -> tuple[str, str]:
    """Punctuation that closes the field before, and the rest.

    >>> _split_closing(". Brand: ")
    ('.', ' Brand: ')
    """
    end = 0
    while end < len(literal) and literal[end] in CLOSING_PUNCTUATION:
        end += 1
    return literal[:end], literal[end:]


def _segment_text(frame: pl.DataFrame, segment: Segment) -> pl.Expr:
    """A segment as text; null where its field is, which leaves it out of the item's text."""
    value = _field_text(frame, segment.field)
    return pl.concat_str([pl.lit(segment.label), value, pl.lit(segment.closing)])


def _field_text(frame: pl.DataFrame, field: str) -> pl.Expr:
    """A column as text, null where nothing is known."""
    dtype = frame.schema[field]
    column = pl.col(field)
    if field == "price" and dtype.is_numeric():
        return pl.lit(_price_ranges(frame[field]))
    if field == "title":
        # Sources without titles repeat the id, which says nothing about the item.
        column = pl.when(column != pl.col("item_id")).then(column)
    if isinstance(dtype, pl.List):
        if isinstance(dtype.inner, pl.List):
            # Several category paths: one flat list, each name once.
            column = column.list.eval(pl.element().explode())
        names = column.list.drop_nulls().list.unique(maintain_order=True)
        text = names.cast(pl.List(pl.String)).list.join(", ")
    elif dtype.is_float():
        text = column.fill_nan(None).cast(pl.String).str.replace(r"\.0$", "")
    else:
        text = column.cast(pl.String)
    text = text.str.strip_chars()
    return pl.when(text != "").then(text)


def _price_ranges(prices: pl.Series) -> pl.Series:
    """A price as the range it falls in, null where it is unknown or not positive."""
    values = prices.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    ranges = np.array(PRICE_RANGES)[np.searchsorted(PRICE_EDGES, values, side="right")]
    known = pl.Series(np.isfinite(values) & (values > 0))
    return pl.Series("price", ranges.tolist()).set(~known, None)


def order_texts(texts: Sequence[str]) -> list[str]:
    """Each different text once, longest first.

    So batches hold little padding, and too little memory shows at once.
    """
    return sorted(set(texts), key=lambda text: (-len(text), text))
