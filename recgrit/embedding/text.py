"""Item texts: one line of text per item, built by a template from the columns of the item table.

A template names columns ("fields") in braces. It consists of segments, one per field. A segment is
the words before the field, the field, and the punctuation after it up to the next blank. If an item
has no value in a field, its text leaves out the whole segment, so that a text such as "Brand: None"
does not make items similar.

Prices become ranges on a fixed 1-2-5 scale, because digits mean little to a text encoder. The scale
does not depend on the catalogue. With quantiles, an item could get another text, and so another
semantic ID, when items are appended.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recgrit.data.items import ItemTable
from recgrit.errors import ConfigError

DEFAULT_TEMPLATE = (
    "{title}. Brand: {brand}. Categories: {categories}. Genres: {genres}. "
    "Year: {year}. Price: {price}. Tags: {tags}."
)
# Maximum number of characters to keep of a column that is not in the default template.
MAX_LENGTH = 300
CLOSING_PUNCTUATION = ".,;:!?)]}'\""
PRICE_EDGES = [mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5)]
PRICE_RANGES = [
    f"under ${PRICE_EDGES[0]}",
    *(f"${low} to ${high}" for low, high in itertools.pairwise(PRICE_EDGES)),
    f"${PRICE_EDGES[-1]} or more",
]


@dataclass(frozen=True)
class Segment:
    """A template segment: one field with the words before it and the punctuation after it.

    Args:
        label: Words before the field.
        field: Name of a column of the item table.
        closing: Punctuation after the field.
        limit: Maximum number of characters to keep of the field's value. None keeps all.
    """

    label: str
    field: str
    closing: str
    limit: int | None = None


def build_item_texts(items: ItemTable, template: str | None = None) -> list[str]:
    """Return the text of each item, in the order of ``item_idx``.

    Lists are joined with commas, and prices become ranges. A title that only repeats the item's id
    counts as unknown. An item without any known field has its id as text.

    Args:
        items: Item table to read.
        template: Text with column names in braces. ``{description:300}`` keeps the first 300
            characters of a description. None uses the title, brand, categories, genres, year, price
            and tags that the table has.

    Raises:
        ConfigError: The template cannot be parsed or names a column that the table does not have.

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


@dataclass(frozen=True)
class ChosenText:
    """A proposed template, with the columns of an item table that it uses and leaves out.

    Args:
        template: Template that builds the item texts.
        used: Columns in the template, in order.
        left_out: Reason for each column that is not in the template, by name of the column.
    """

    template: str
    used: tuple[str, ...]
    left_out: dict[str, str]

    def describe(self) -> str:
        """Return one line that names the used columns, and the other columns with reasons."""
        left = "; ".join(f"{name} ({why})" for name, why in self.left_out.items())
        return f"item texts are made of {', '.join(self.used)}" + (
            f"; left out: {left}. embedding.template changes that" if left else ""
        )


def choose_text(items: ItemTable) -> ChosenText:
    """Propose a template for an item table: known fields first, then other columns that hold text.

    The other columns are in the table's order, each with its name as a label and at most
    `MAX_LENGTH` characters. A column holds text if most of its cells have letters and are neither
    codes nor addresses.

    >>> table = {"item_id": ["a", "b"], "title": ["Rose", "Oak"], "colour": ["red", "dark brown"]}
    >>> choose_text(ItemTable(pl.DataFrame(table | {"stock": [1, 2]}))).template
    '{title}. Colour: {colour:300}.'
    """
    frame = items.frame
    known = [segment for segment in parse_template(DEFAULT_TEMPLATE) if segment.field in frame]
    parts = [f"{segment.label}{{{segment.field}}}{segment.closing}" for segment in known]
    used = [segment.field for segment in known]
    left_out = {}
    for name in frame.columns:
        if name == "item_id" or name in used:
            continue
        if why := _why_no_text(frame, name):
            left_out[name] = why
            continue
        label = name.replace("_", " ").strip().capitalize()
        parts.append(f" {label}: {{{name}:{MAX_LENGTH}}}.")
        used.append(name)
    return ChosenText("".join(parts).strip(), tuple(used), left_out)


def _why_no_text(frame: pl.DataFrame, name: str) -> str:
    """Return the reason why a column holds no text, or an empty string if it holds text."""
    dtype = frame.schema[name]
    if re.search(r"[{}\[\]:!.]", name):
        return "its name cannot be used in a template"
    if not (dtype == pl.String or dtype == pl.List(pl.String)):
        return f"{dtype} values" if dtype.is_nested() else "numbers or dates"
    cells = frame.select(_field_text(frame, name)).to_series().drop_nulls()
    if cells.is_empty():
        return "empty"
    kinds = {
        "addresses": cells.str.contains(r"^(?:https?://|www\.|/)\S*$"),
        "numbers or dates": ~cells.str.contains(r"\p{L}")
        | cells.str.contains(r"^\d{4}-\d\d-\d\d(?:[T ].*)?$|^[^\p{L}]*\d\s?[A-Z]{3}$"),
        "true or false": cells.str.contains(r"(?i)^(?:true|false|yes|no|y|n|t|f)$"),
        "codes": cells.str.contains(r"^[^\s]*\d[^\s]*$"),
    }
    for what, fits in kinds.items():
        if int(fits.sum()) > len(cells) // 2:
            return what
    if len(cells) > 1 and cells.n_unique() == 1 and len(cells) == frame.height:
        return "the same for all items"
    return ""


def with_fields(items: ItemTable, template: str) -> tuple[ItemTable, list[str]]:
    """Add the columns that a template names and the items lack, filled with nulls.

    Args:
        items: Item table to complete.
        template: Text with column names in braces.

    Returns:
        The items with all columns of the template, and the names of the added columns.
    """
    names = dict.fromkeys(segment.field for segment in parse_template(template))
    missing = [name for name in names if name not in items.frame.columns]
    nothing = (pl.lit(None, dtype=pl.String).alias(name) for name in missing)
    return ItemTable(items.frame.with_columns(nothing)), missing


def parse_template(template: str) -> list[Segment]:
    """Split a template into its segments.

    Raises:
        ConfigError: Braces do not match, a format is not a number of characters, or there is no
            field.

    >>> [segment.label for segment in parse_template("{title}. Brand: {brand}.")]
    ['', ' Brand: ']
    """
    segments: list[Segment] = []
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"Cannot read the item text template {template!r}: {error}.") from None
    for literal, field, form, conversion in pieces:
        if conversion or (form and not re.fullmatch(r"[1-9]\d*", form)):
            raise ConfigError(
                f"The item text template {template!r} formats a field; write {{{field}}} alone, or "
                f"{{{field}:300}} for its first 300 characters."
            )
        closing, label = _split_closing(literal) if segments else ("", literal)
        if segments:
            last = segments[-1]
            segments[-1] = replace(last, closing=last.closing + closing)
        if field is not None:
            segments.append(Segment(label, field, "", int(form) if form else None))
    if not segments:
        raise ConfigError(
            f"The item text template {template!r} names no field; write for example {{title}}."
        )
    return segments


def _split_closing(literal: str) -> tuple[str, str]:
    """Split the text between two fields into the punctuation that closes the first, and the rest.

    >>> _split_closing(". Brand: ")
    ('.', ' Brand: ')
    """
    end = 0
    while end < len(literal) and literal[end] in CLOSING_PUNCTUATION:
        end += 1
    return literal[:end], literal[end:]


def _segment_text(frame: pl.DataFrame, segment: Segment) -> pl.Expr:
    """Return a segment as text, or null if its field is null."""
    value = _field_text(frame, segment.field)
    if segment.limit is not None:
        # The text is cut after the last whole word.
        cut = value.str.head(segment.limit + 1).str.replace(r"\s+\S*$", "")
        cut = cut.str.head(segment.limit)
        value = pl.when(value.str.len_chars() > segment.limit).then(cut).otherwise(value)
    return pl.concat_str([pl.lit(segment.label), value, pl.lit(segment.closing)])


def _field_text(frame: pl.DataFrame, field: str) -> pl.Expr:
    """Return a column as text, with null for unknown values."""
    dtype = frame.schema[field]
    column = pl.col(field)
    if field == "price" and dtype.is_numeric():
        return pl.lit(_price_ranges(frame[field]))
    if field == "title":
        # Some sources have no titles and repeat the id, which says nothing about the item.
        column = pl.when(column != pl.col("item_id")).then(column)
    if isinstance(dtype, pl.List):
        if isinstance(dtype.inner, pl.List):
            # An item may have several category paths. They become one flat list with each name
            # once.
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
    """Return the range of each price, or null if the price is unknown or not positive."""
    values = prices.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    ranges = np.array(PRICE_RANGES)[np.searchsorted(PRICE_EDGES, values, side="right")]
    known = pl.Series(np.isfinite(values) & (values > 0))
    return pl.Series("price", ranges.tolist()).set(~known, None)


def order_texts(texts: Sequence[str]) -> list[str]:
    """Return each different text once, longest first.

    Batches of texts of similar length need little padding, and a lack of memory shows at the start.
    """
    return sorted(set(texts), key=lambda text: (-len(text), text))
