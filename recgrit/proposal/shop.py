"""A configuration for a log of interactions and an item table that somebody brings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.config import load_config
from recgrit.data.config import TableConfig
from recgrit.data.filtering import drop_exact_duplicates, find_repeats
from recgrit.data.id_columns import require_meeting_ids
from recgrit.data.items import ItemTable
from recgrit.data.prepare import build_item_table
from recgrit.data.sources.raw import RawData
from recgrit.data.sources.table import Table
from recgrit.data.sources.table_files import TableFile, find_tables, list_files, open_table
from recgrit.embedding.text import ChosenText, choose_text
from recgrit.errors import AmbiguousDatesError, ConfigError
from recgrit.experiment import ExperimentConfig
from recgrit.proposal.columns import Columns, find_columns
from recgrit.proposal.questions import Ask, Question
from recgrit.proposal.sizes import Kept, choose_filters
from recgrit.proposal.suspicions import Repeats, measure_repeats, suspect_items, suspect_log

logger = logging.getLogger(__name__)

# Rows by which columns are found; all rows count for all else.
SAMPLE = 100_000
PREFIX = "data.table."
# Columns of amounts, of which negative ones are returns.
_AMOUNTS = ("qty", "quantity", "amount", "count", "units", "menge")


@dataclass(frozen=True, kw_only=True)
class ShopFacts:
    """What was found in a shop's files.

    Args:
        events: Where the log is, as it was given.
        items: Where the item table is; None where there is none.
        columns: Which column is which.
        table: Settings of ``data.table`` beside those, in order.
        num_rows: Usable rows of the log.
        num_users: Different users in it.
        num_items: Different items in it.
        first: The first day.
        last: The last day.
        kinds: How often each kind of event is there; empty where none are told.
        repeats: How often users meet an item again.
        keeps_repeats: Whether interactions with an item that a user had before are kept.
        kept: What the proposed filters leave.
        text: What item texts are made of; None without an item table.
        warnings: What looks like a mistake or a leak, a sentence each.
    """

    events: Path
    items: Path | None
    columns: Columns
    table: dict[str, Any]
    num_rows: int
    num_users: int
    num_items: int
    first: str
    last: str
    kinds: dict[str, int]
    repeats: Repeats
    keeps_repeats: bool
    kept: Kept
    text: ChosenText | None
    warnings: tuple[str, ...]


def look_at(
    events: Path, items: Path | None, *, overrides: Sequence[str] = (), ask: Ask
) -> ShopFacts:
    """Find out what a configuration has to say of a shop's files.

    Args:
        events: The log: a file, a folder or a pattern.
        items: Likewise, of the items; None for none.
        overrides: What is known of the files, as ``data.table.user_id=customer``.
        ask: Answers what the files leave open.

    Raises:
        ConfigError: A question stays open, or a setting is not one of ``data.table``.
        DataError: A file cannot be read, or holds nothing to learn from.
    """
    known = _read_overrides(overrides, items)
    table = Table(**TableConfig(**known).model_dump())
    described = () if items is None else list_files(items, "items")
    logs = list_files(events, "a log of interactions", apart=described)
    log_tables = [_open(path, table, of_items=False) for path in logs]
    log_tables = [tables for tables in log_tables if tables]
    item_tables = [_open(path, table, of_items=True) for path in described]
    opened = [one for tables in log_tables for one in tables]
    columns = find_columns(
        _sample(opened),
        _sample([one for tables in item_tables for one in tables]) if items is not None else None,
        {role: str(known[role]) for role in _ROLES if role in known},
        ask,
    )
    chosen = {role: getattr(columns, role) for role in _ROLES}
    if chosen["title"] is None:
        del chosen["title"]
    settings: dict[str, Any] = {**known, **chosen}
    raw = _read(events, settings, ask)
    require_meeting_ids(raw.coded.item_ids, raw.items["item_id"], "data.table.item_id")
    return _weigh_up(events, items, columns, settings, raw, opened)


_ROLES = ("user_id", "item_id", "timestamp", "weight", "title")


def _read_overrides(overrides: Sequence[str], items: Path | None) -> dict[str, Any]:
    """What is set of ``data.table``, in the types it has there."""
    other = [text for text in overrides if not text.startswith(PREFIX)]
    if other:
        raise ConfigError(
            f"{other[0]!r} says nothing of how the files are read: 'recgrit init' takes settings "
            f"of {PREFIX[:-1]} alone. Set others in the YAML that it writes."
        )
    table = load_config(ExperimentConfig, None, overrides).data.table
    known = {name: getattr(table, name) for name in table.model_fields_set}
    if "items_path" in known:
        raise ConfigError("Give the item table with --items rather than data.table.items_path.")
    return known if items is None else {"items_path": items, **known}


def _open(path: Path, table: Table, *, of_items: bool) -> list[TableFile]:
    """The tables in a file, those without columns left out."""
    wanted = [table.item_id] if of_items else [table.user_id, table.item_id, table.timestamp]
    names = table.item_columns if of_items else table.columns
    found = [
        open_table(
            place,
            wanted,
            table.text(names),
            setting_of="item_columns" if of_items else "columns",
        )
        for place in find_tables(path)
    ]
    return [one for one in found if one.columns]


def _sample(tables: Sequence[TableFile]) -> pl.DataFrame:
    """The first rows, with all columns."""
    parts: list[pl.DataFrame] = []
    for table in tables:
        for part in table.rows(table.columns):
            parts.append(part.frame)
            if sum(frame.height for frame in parts) >= SAMPLE:
                break
        else:
            continue
        break
    if not parts:
        raise ConfigError("The files hold no row: there is nothing to look at.")
    return pl.concat(parts, how="diagonal_relaxed").head(SAMPLE)


def _read(events: Path, settings: dict[str, Any], ask: Ask) -> RawData:
    """All rows, as preparing reads them; dates that can be read in two ways are asked about."""
    while True:
        table = Table(**TableConfig(**settings).model_dump())
        try:
            return table.read(table.find_files(events))
        except AmbiguousDatesError as error:
            settings["time_format"] = ask(
                Question(error.question, error.formats, None, "data.table.time_format")
            )


def _weigh_up(
    events: Path,
    items: Path | None,
    columns: Columns,
    settings: dict[str, Any],
    raw: RawData,
    logs: Sequence[TableFile],
) -> ShopFacts:
    frame = raw.coded.frame
    rows = drop_exact_duplicates(frame, find_repeats(frame))
    user_ids, item_ids = raw.coded.user_ids, raw.coded.item_ids
    repeats = measure_repeats(rows)
    # Again within a day is one visit; later on, people come back.
    keeps = repeats.share < 0.05 or repeats.soon < 0.5
    counted = rows if keeps else rows.unique(["user_id", "item_id"], maintain_order=True)
    kept = choose_filters(counted, len(user_ids), len(item_ids))
    text = None
    warnings = [*suspect_log(rows, raw.counts["rows_read"], frame.height - rows.height, user_ids)]
    if items is not None:
        text = choose_text(ItemTable(build_item_table(item_ids, raw.items).frame))
        warnings += suspect_items(raw.items, item_ids, text.used)
    amounts = [n for n in logs[0].columns if n.lower() in _AMOUNTS and n not in settings.values()]
    kinds, num_negative = _count(logs, columns.event, amounts)
    if num_negative:
        warnings.append(
            f"{num_negative:,} of {frame.height:,} rows have a negative {amounts[0]}: they look "
            "like returns, and count as interactions. Take them out."
        )
    times = rows["timestamp"].to_numpy()
    first, last = (
        datetime.fromtimestamp(int(time), UTC).date().isoformat()
        for time in (times.min(), times.max())
    )
    return ShopFacts(
        events=events,
        items=items,
        columns=columns,
        table={n: v for n, v in settings.items() if n not in (*_ROLES, "items_path")},
        num_rows=frame.height,
        num_users=len(user_ids),
        num_items=len(item_ids),
        first=first,
        last=last,
        kinds=kinds,
        repeats=repeats,
        keeps_repeats=keeps,
        kept=kept,
        text=text,
        warnings=tuple(warnings),
    )


def _count(
    logs: Sequence[TableFile], event: str | None, amounts: Sequence[str]
) -> tuple[dict[str, int], int]:
    """How often each kind of event is there, the most frequent first; rows of negative amounts."""
    kinds: dict[str, int] = {}
    num_negative = 0
    for part in _parts(logs, [*([event] if event else []), *amounts[:1]]):
        for name in amounts[:1]:
            numbers = part[name].cast(pl.Float64, strict=False)
            num_negative += int((numbers < 0).sum())
        if event:
            counts = part[event].cast(pl.String).drop_nulls().str.strip_chars().value_counts()
            for kind, number in counts.iter_rows():
                kinds[kind] = kinds.get(kind, 0) + number
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1])), num_negative


def _parts(logs: Sequence[TableFile], names: Sequence[str]) -> Iterator[pl.DataFrame]:
    for table in logs if names else ():
        if set(names) <= set(table.columns):
            for part in table.rows(names):
                yield part.frame
