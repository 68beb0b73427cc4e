"""Checks and cleaning of rows: valid ids, times and ratings, repeated items, and scraped text."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recgrit.data.events import EVENT
from recgrit.data.filtering import FRACTION
from recgrit.data.sources.coding import CodedInteractions, InteractionCoder
from recgrit.data.sources.raw import RawData
from recgrit.errors import DataError
from recgrit.text import is_text

# In seconds this is the year 5138. Larger numbers are milliseconds or damaged.
MAX_TIMESTAMP = 100_000_000_000

# Only known tags count as markup, because titles such as 'Size <M>' or 'I <3 You' are none. A title
# that was cut within a tag has no closing bracket.
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h\d|i|img|li|p|small|span|strong|sub|sup|table|td|tr|u|ul)\b"
    r"[^<>]*(?:>|$)",
    re.IGNORECASE,
)
_SCRIPT = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
# Page code that was scraped instead of the text, and that has lost its <script> tag.
_BARE_SCRIPT = re.compile(
    r"\bfunction\s*\w*\([\w\s,]*\)\s*\{|\bvar aPageStart\b|\(new Date\(\)\)|^\s*[.#][\w-]+\s*\{"
)
_LACKED = {"timestamp": "time", "weight": "rating that is a number", EVENT: "type of event"}
_PRICE = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")


@dataclass(frozen=True)
class CleanRows:
    """The usable rows of a file, and counts of the rows that were left out.

    Args:
        frame: Usable rows. Rows of interactions have codes in place of ids.
        num_read: Number of rows that were read.
        num_malformed: Number of rows that were left out as malformed.
        num_without_id: Number of malformed rows that lack a user or item id.
        num_repeated: Number of identical repeats of an item that were left out.
    """

    frame: pl.DataFrame
    num_read: int
    num_malformed: int
    num_without_id: int = 0
    num_repeated: int = 0


class RowCollector:
    """A collector of the usable rows of a file, block by block, with codes in place of ids.

    Args:
        coder: Coder of user and item ids, shared by all files of a data set.
        label: Name of the file, for messages.
        expected: Description of a valid line, for messages.
        units_per_second: Number of time units in a second. Fractions of a second are kept.
        weight_is_optional: Whether a file may have no ratings at all. If any line has a rating,
            lines without one are left out.
    """

    def __init__(
        self,
        coder: InteractionCoder,
        label: str,
        expected: str,
        *,
        units_per_second: int = 1,
        weight_is_optional: bool = False,
    ) -> None:
        self._coder, self._label, self._expected = coder, label, expected
        self._units, self._weight_is_optional = units_per_second, weight_is_optional
        self._parts: list[pl.DataFrame] = []
        self._malformed: list[pl.Series] = []
        self._unrated: list[pl.Series] = []
        self._num_read = self._num_without_id = 0
        # Number of lines that have both ids and lack a time, a rating or an event type.
        self._lacking = {"timestamp": 0, "weight": 0, EVENT: 0}
        self._has_weights = False

    def add(self, rows: pl.DataFrame) -> None:
        """Keep the rows that have both ids, a time, and the rating and event type if required.

        Args:
            rows: Table with ``line``, ``user_id``, ``item_id``, ``timestamp``, and optionally
                ``fraction``, ``weight`` and ``event``. Times and weights are text or numbers, and
                ``event`` is the number of the event type. All fields of a line that could not be
                split are null.
        """
        names = [name for name in ("timestamp", "weight") if name in rows.columns]
        number = {name: _to_number(name, rows.schema) for name in names}
        required = names[:1] if self._weight_is_optional else names
        seconds = number["timestamp"] // self._units if self._units > 1 else number["timestamp"]
        has_ids = _is_given("user_id", rows.schema) & _is_given("item_id", rows.schema)
        has: dict[str, pl.Expr] = {
            name: number[name].is_finite().fill_null(False) for name in required
        }
        if EVENT in rows.columns:
            has[EVENT] = pl.col(EVENT).is_not_null()
        has["timestamp"] &= (seconds.abs() <= MAX_TIMESTAMP).fill_null(False)
        checked = rows.with_columns(
            has_ids.alias("has_ids"), (has_ids & pl.all_horizontal(has.values())).alias("usable")
        )
        for name, is_there in has.items():
            self._lacking[name] += checked.filter(has_ids & ~is_there).height
        self._malformed.append(checked.filter(~pl.col("usable"))["line"])
        # A line that could not be split has no ids either, but is not counted as one without id.
        splittable = pl.any_horizontal(pl.col("user_id", "item_id", "timestamp").is_not_null())
        self._num_without_id += checked.filter(~pl.col("has_ids") & splittable).height
        usable = checked.filter("usable").select(
            "line",
            _strip_id("user_id", rows.schema),
            _strip_id("item_id", rows.schema),
            number["timestamp"].alias("timestamp"),
            *(name for name in rows.columns if name == FRACTION),
            *(number[name].cast(pl.Float32).alias(name) for name in names if name == "weight"),
            *(name for name in rows.columns if name == EVENT),
        )
        if self._weight_is_optional and "weight" in names:
            self._has_weights |= rows["weight"].null_count() < rows.height
            usable = usable.with_columns(
                pl.when(pl.col("weight").is_finite()).then("weight").alias("weight")
            )
            self._unrated.append(usable.filter(pl.col("weight").is_null())["line"])
        self._keep(usable.drop("line"))
        self._num_read += rows.height

    def add_checked(self, rows: pl.DataFrame) -> None:
        """Keep rows that are already known to be usable and have the types that `add` produces."""
        self._keep(rows)
        self._num_read += rows.height

    def add_unsplit(self, lines: pl.Series) -> None:
        """Count lines that could not be split into fields as malformed.

        Args:
            lines: Numbers of these lines.
        """
        self._malformed.append(lines.cast(pl.Int64))
        self._num_read += len(lines)

    def finish(self, max_malformed_share: float, reason: str = "") -> CleanRows:
        """Return all kept rows, in file order.

        Args:
            max_malformed_share: Largest share of malformed lines; above it an error is raised.
            reason: Known reason for malformed lines, for the message.

        Raises:
            DataError: Too many lines are malformed, or no line is left.
        """
        malformed = self._malformed + (self._unrated if self._has_weights else [])
        lines = pl.concat([pl.Series("line", [], dtype=pl.Int64), *malformed])
        refuse_malformed(
            lines.sort(),
            self._num_read,
            self._label,
            self._expected,
            max_malformed_share,
            self._explain(reason),
        )
        # Blocks in which all times are whole seconds lack the column of fractions.
        frame = pl.concat(self._parts, how="diagonal", rechunk=True)
        if FRACTION in frame.columns:
            frame = frame.with_columns(pl.col(FRACTION).fill_null(0.0))
        self._parts.clear()
        if self._has_weights:
            frame = frame.drop_nulls("weight")
        elif self._weight_is_optional:
            frame = frame.drop("weight", strict=False)
        if FRACTION in frame.columns and not (frame[FRACTION] > 0).any():
            frame = frame.drop(FRACTION)
        if self._coder.partitions is not None:
            has_weights = "weight" in frame.columns
            self._coder.partitions.end_file(has_weights=has_weights)
        return CleanRows(
            frame=frame,
            num_read=self._num_read,
            num_malformed=len(lines),
            num_without_id=self._num_without_id,
        )

    def _explain(self, reason: str) -> str:
        """Describe how many lines lack which field, for messages."""
        counts = [
            f"{count} of them lack a {what}"
            for name, what in _LACKED.items()
            if (count := self._lacking[name])
        ]
        counts += [f"{self._num_without_id} lack a user or item id"] * (self._num_without_id > 0)
        return "; ".join([*counts, *([reason] if reason else [])])

    def _keep(self, rows: pl.DataFrame) -> None:
        time = pl.col("timestamp")
        if self._units > 1:
            rows = rows.with_columns(
                time // self._units, ((time % self._units) / self._units).alias(FRACTION)
            )
        coded = self._coder.encode(rows).with_columns(time.cast(pl.Int64))
        partitions = self._coder.partitions
        self._parts.append(coded if partitions is None else partitions.keep(coded))


def clean_interactions(
    rows: pl.DataFrame,
    label: str,
    expected: str,
    max_malformed_share: float,
    coder: InteractionCoder,
    reason: str = "",
) -> CleanRows:
    """Return the usable rows of a file that is read as a whole, checked by `RowCollector`.

    Args:
        rows: Rows of the file, as for `RowCollector.add`.
        label: Name of the file, for messages.
        expected: Description of a valid line, for messages.
        max_malformed_share: Largest share of malformed lines.
        coder: Coder of user and item ids, shared by all files of a data set.
        reason: Known reason for malformed lines, for the message.

    Raises:
        DataError: Too many lines are malformed, or no line is left.
    """
    collector = RowCollector(coder, label, expected)
    collector.add(rows)
    return collector.finish(max_malformed_share, reason)


def clean_items(
    rows: pl.DataFrame,
    label: str,
    expected: str,
    max_malformed_share: float,
    *,
    id_name: str = "item_id",
) -> CleanRows:
    """Return the rows that have an id, with each id once and without the column ``line``.

    Args:
        rows: Rows of the file with ``line``, the id and further columns.
        label: Name of the file, for messages.
        expected: Description of a valid line, for messages.
        max_malformed_share: Largest share of lines without an id.
        id_name: Name of the column of ids.

    Raises:
        DataError: Too many lines are malformed, or two rows with the same id differ.
    """
    has_id = _is_given(id_name, rows.schema)
    refuse_malformed(
        rows.filter(~has_id)["line"], rows.height, label, expected, max_malformed_share
    )
    valid = rows.filter(has_id).with_columns(pl.col(id_name).str.strip_chars())
    first = valid.unique(id_name, keep="first", maintain_order=True).drop("line")
    repeated = valid.filter(pl.col(id_name).is_duplicated())
    if not repeated.is_empty():
        _refuse_contradictions(repeated, label, id_name)
    return CleanRows(
        frame=first,
        num_read=rows.height,
        num_malformed=rows.height - valid.height,
        num_repeated=valid.height - first.height,
    )


def join_rows(parts: Sequence[CleanRows], files: Sequence[Path]) -> CleanRows:
    """Concatenate the rows of several files and add up their counts.

    Args:
        parts: Rows of each file.
        files: Path of each file, for messages.

    Raises:
        DataError: One file has ratings and another has none.
    """
    columns = [[n for n in part.frame.columns if n != FRACTION] for part in parts]
    for names, file in zip(columns, files, strict=True):
        if names != columns[0]:
            raise DataError(
                f"{file} has the columns {', '.join(names)}, but {files[0]} has "
                f"{', '.join(columns[0])}. Use files with the same columns."
            )
    frame = pl.concat([part.frame for part in parts], how="diagonal")
    if FRACTION in frame.columns:
        frame = frame.with_columns(pl.col(FRACTION).fill_null(0.0))
    return CleanRows(
        frame=frame,
        num_read=sum(part.num_read for part in parts),
        num_malformed=sum(part.num_malformed for part in parts),
        num_without_id=sum(part.num_without_id for part in parts),
        num_repeated=sum(part.num_repeated for part in parts),
    )


def to_raw_data(
    interactions: CleanRows, items: CleanRows, files: tuple[Path, ...], coder: InteractionCoder
) -> RawData:
    """Build the raw data from interactions, items and their counts."""
    return RawData(
        coded=CodedInteractions(interactions.frame, coder.users.ids(), coder.items.ids()),
        items=items.frame,
        counts={
            "rows_read": interactions.num_read,
            "rows_malformed": interactions.num_malformed,
            "rows_without_id": interactions.num_without_id,
            "items_read": items.num_read,
            "items_malformed": items.num_malformed,
            "items_repeated": items.num_repeated,
        },
        files=files,
    )


def refuse_malformed(
    lines: pl.Series,
    num_read: int,
    label: str,
    expected: str,
    max_malformed_share: float,
    reason: str = "",
) -> None:
    """Raise an error if too many lines of a file are malformed.

    Args:
        lines: Numbers of the malformed lines.
        num_read: Number of all lines.
        label: Name of the file, for messages.
        expected: Description of a valid line, for messages.
        max_malformed_share: Largest share of malformed lines.
        reason: Known reason for malformed lines, for the message.

    Raises:
        DataError: More than ``max_malformed_share`` of the lines or all lines are malformed, or the
            file has no lines.
    """
    if num_read == 0:
        raise DataError(f"{label} holds no lines of data. Expected {expected}.")
    if len(lines) > max_malformed_share * num_read or len(lines) == num_read:
        where = ", ".join(str(line) for line in lines.head(3))
        raise DataError(
            f"{label}: {len(lines)} of {num_read} lines are malformed, the first at line "
            f"{where}{f' ({reason})' if reason else ''}. Expected {expected}. Check that this is "
            f"the right file and that its download is complete; up to {max_malformed_share:.0%} "
            "are skipped (data.max_malformed_share)."
        )


def clean_text(text: object) -> str | None:
    r"""Return text without entities, markup and line breaks, or None if nothing readable is left.

    >>> clean_text("Crabtree &amp; Evelyn\t<b>Hand\nTherapy</b>")
    'Crabtree & Evelyn Hand Therapy'
    """
    if not isinstance(text, str):
        return None
    text = html.unescape(text)
    if not is_text(text):
        # Two matching surrogates become one character, and a single one becomes U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if "<" in text:
        text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    if _BARE_SCRIPT.search(text):
        return None
    return " ".join(text.split()) or None


def parse_price(price: object) -> float | None:
    """Parse a price as a number; ranges, page fragments and other texts give None.

    >>> parse_price("$1,299.00")
    1299.0
    """
    if isinstance(price, str):
        match = _PRICE.fullmatch(price.strip())
        price = float(match[1].replace(",", "")) if match else None
    if isinstance(price, bool) or not isinstance(price, int | float):
        return None
    return float(price) if math.isfinite(price) and price >= 0 else None


def _to_number(name: str, schema: pl.Schema) -> pl.Expr:
    if schema[name].is_numeric():
        return pl.col(name).cast(pl.Float64)
    return pl.col(name).cast(pl.String).str.strip_chars().cast(pl.Float64, strict=False)


def _is_given(name: str, schema: pl.Schema) -> pl.Expr:
    if schema[name].is_integer():
        return pl.col(name).is_not_null()
    # The JSON parser turns half of a surrogate pair, which is not text, into NUL.
    text = pl.col(name).cast(pl.String).str.strip_chars()
    return ((text != "") & ~text.str.contains("\0", literal=True)).fill_null(False)


def _strip_id(name: str, schema: pl.Schema) -> pl.Expr:
    return pl.col(name) if schema[name].is_integer() else pl.col(name).str.strip_chars()


def _refuse_contradictions(repeated: pl.DataFrame, label: str, id_name: str) -> None:
    kept: dict[str, tuple[int, tuple[object, ...]]] = {}
    differing: dict[str, str] = {}
    for line, id_, *fields in repeated.select(
        "line", id_name, pl.exclude("line", id_name)
    ).iter_rows():
        first_line, first = kept.setdefault(id_, (line, tuple(fields)))
        if first != tuple(fields):
            differing.setdefault(id_, f"{id_!r} on lines {first_line} and {line}")
    if differing:
        what = id_name.removesuffix("_id").capitalize()
        raise DataError(
            f"{what} ids must be unique: {label} describes {len(differing)} ids more than once "
            f"with different values: {', '.join(list(differing.values())[:3])}. "
            "Keep one line for each."
        )
