"""Examination of a user's log and item table, to propose a configuration for them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recgrit.config import load_config
from recgrit.data.config import TableConfig
from recgrit.data.events import EventTypes
from recgrit.data.filtering import (
    drop_exact_duplicates,
    find_repeats,
    keep_events,
    keep_one_per_item,
)
from recgrit.data.id_columns import ITEM_SETTINGS, USER_SETTINGS, require_meeting_ids
from recgrit.data.items import ItemTable
from recgrit.data.prepare import build_item_table
from recgrit.data.sources.raw import RawData
from recgrit.data.sources.reading import show_names
from recgrit.data.sources.table import Table
from recgrit.data.sources.table_files import TableFile, find_tables, list_files, open_table
from recgrit.embedding.text import ChosenText, choose_text
from recgrit.errors import AmbiguousDatesError, ConfigError, DataError
from recgrit.experiment import ExperimentConfig
from recgrit.proposal.columns import Columns, find_columns
from recgrit.proposal.events import EventChoice, choose_events, count_targets, settle_targets
from recgrit.proposal.questions import Ask, Question
from recgrit.proposal.sizes import Kept, choose_filters
from recgrit.proposal.suspicions import (
    Repeats,
    find_clock,
    measure_repeats,
    suspect_items,
    suspect_log,
)

logger = logging.getLogger(__name__)

# Number of rows that columns are detected from. Everything else is computed from all rows.
SAMPLE = 100_000
PREFIX = "data.table."
# If the share of repeated interactions is below this, repeats change little and are kept.
FEW_REPEATS = 0.05
# Names of columns with amounts. A negative amount is probably a return.
_AMOUNTS = ("qty", "quantity", "amount", "count", "units", "menge")


@dataclass(frozen=True, kw_only=True)
class ShopFacts:
    """Everything that was found in a shop's files.

    Args:
        events: Path of the log, as it was given.
        items: Path of the item table. None if there is none.
        users: Path of the user table. None if there is none.
        user_columns: Columns of the user table except the id.
        columns: Names of the columns of the log and of the item table.
        table: Other settings of ``data.table`` that the user has set or answered, in order.
        num_rows: Number of usable rows of the log, without event types that are left out.
        num_users: Number of different users in the log.
        num_items: Number of different items in the log.
        first: First day of the log in UTC.
        last: Last day of the log in UTC.
        types: Number of rows of each event type. Empty if the log has no event types.
        events_choice: Proposed settings of event types. None if the log has no event types.
        num_targets: Approximate number of events that training predicts in an epoch.
        repeats: How often users interact with the same item again.
        keeps_repeats: Whether repeated interactions of a user with an item are kept.
        kept: The proposed filters, and the data that they leave.
        text: Columns that the item texts are made of. None without an item table.
        warnings: Warnings about what looks like a mistake or a leak.
    """

    events: Path
    items: Path | None
    users: Path | None
    user_columns: tuple[str, ...]
    columns: Columns
    table: dict[str, Any]
    num_rows: int
    num_users: int
    num_items: int
    first: str
    last: str
    types: dict[str, int]
    events_choice: EventChoice | None
    num_targets: int
    repeats: Repeats
    keeps_repeats: bool
    kept: Kept
    text: ChosenText | None
    warnings: tuple[str, ...]


def look_at(
    events: Path,
    items: Path | None,
    users: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    ask: Ask,
) -> ShopFacts:
    """Examine a shop's files, to find everything that a configuration needs.

    Args:
        events: The log: a file, a folder or a pattern.
        items: The item table: a file, a folder or a pattern. None if there is none.
        users: The user table: a file, a folder or a pattern. None if there is none.
        overrides: Settings of the files, such as ``data.table.user_id=customer``.
        ask: Function that answers questions that the files leave open.

    Raises:
        ConfigError: A question has no answer, or a setting is not one of ``data.table``.
        DataError: A file cannot be read, or has nothing to learn from.
    """
    known = _read_overrides(overrides, items, users)
    table = Table(**TableConfig(**known).model_dump())
    described = () if items is None else list_files(items, "items")
    of_users = () if users is None else list_files(users, "users")
    logs = list_files(events, "a log of interactions", apart=(*described, *of_users))
    log_tables = [_open(path, table, of_items=False) for path in logs]
    log_tables = [tables for tables in log_tables if tables]
    item_tables = [_open(path, table, of_items=True) for path in described]
    opened = [one for tables in log_tables for one in tables]
    log = _sample(opened, events)
    _require_columns(log, opened[0])
    clock = find_clock(log)
    columns = find_columns(
        log,
        None if items is None else _sample([one for found in item_tables for one in found], items),
        {role: str(known[role]) for role in ROLES if known.get(role) is not None},
        ask,
    )
    types, num_blank = _count_types(opened, columns.event)
    choice = choose_events(types, num_blank, ask) if types else None
    chosen = {role: name for role in ROLES if (name := getattr(columns, role)) is not None}
    sure = choice if choice is not None and choice.is_sure else None
    event_types = EventTypes.of(sure.weights, sure.targets) if sure else None
    if sure is None:
        chosen.pop("event", None)
    settings: dict[str, Any] = {**known, **chosen}
    raw = _read(events, settings, event_types, ask)
    require_meeting_ids(raw.coded.item_ids, raw.items["item_id"], ITEM_SETTINGS)
    if raw.users is not None:
        require_meeting_ids(raw.coded.user_ids, raw.users["user_id"], USER_SETTINGS, "user")
    return _weigh_up(
        events, items, users, columns, settings, raw, opened, types, choice, event_types, clock
    )


ROLES = ("user_id", "item_id", "items_id", "timestamp", "weight", "event", "title")


def _read_overrides(
    overrides: Sequence[str], items: Path | None, users: Path | None
) -> dict[str, Any]:
    """Return the settings of ``data.table`` that the user has set, converted to their types."""
    other = [text for text in overrides if not text.startswith(PREFIX)]
    if other:
        raise ConfigError(
            f"{other[0]!r} cannot be set here: 'recgrit init' accepts only settings of "
            f"{PREFIX[:-1]}. Set others in the YAML that it writes."
        )
    table = load_config(ExperimentConfig, None, overrides).data.table
    known = {name: getattr(table, name) for name in table.model_fields_set}
    for name, kind in (("items", "item"), ("users", "user")):
        if f"{name}_path" in known:
            raise ConfigError(
                f"Give the {kind} table with --{name} rather than data.table.{name}_path."
            )
    given = {"items_path": items, "users_path": users}
    return {name: path for name, path in given.items() if path is not None} | known


def _open(path: Path, table: Table, *, of_items: bool) -> list[TableFile]:
    """Open the tables in a file, without tables that have no columns."""
    wanted = [table.described_id] if of_items else [table.user_id, table.item_id, table.timestamp]
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


def _require_columns(log: pl.DataFrame, first: TableFile) -> None:
    """Raise an error if a log has fewer columns than the three for user, item and time."""
    if log.width >= 3:
        return
    hint = ""
    if first.text is not None:
        found = re.search(r"[~^ #/*+@§]", log.columns[0])
        # The character is quoted for YAML, where ~ alone means null.
        setting = f"data.table.separator=\"'{found[0] if found else '~'}'\""
        hint = f" If another character stands between the fields, add {setting}."
    raise DataError(
        f"{first.label} has {log.width} column{'s' * (log.width != 1)}, {show_names(log.columns)} "
        f"({first.describe()}): expected one each for the user, the item and the time.{hint}"
    )


def _sample(tables: Sequence[TableFile], path: Path) -> pl.DataFrame:
    """Return the first rows of some tables, with all columns."""
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
        raise DataError(
            f"{path} holds no row of data: expected a table with a header and rows. Is the "
            "file complete?"
        )
    return pl.concat(parts, how="diagonal_relaxed").head(SAMPLE)


def _read(
    events: Path, settings: dict[str, Any], event_types: EventTypes | None, ask: Ask
) -> RawData:
    """Read all rows as `prepare` reads them, and ask about dates that can be read in two ways."""
    while True:
        table = Table(**TableConfig(**settings).model_dump(), event_types=event_types)
        try:
            return table.read(table.find_files(events))
        except AmbiguousDatesError as error:
            settings["time_format"] = ask(
                Question(error.question, error.formats, None, "data.table.time_format")
            )


def _weigh_up(
    events: Path,
    items: Path | None,
    users: Path | None,
    columns: Columns,
    settings: dict[str, Any],
    raw: RawData,
    logs: Sequence[TableFile],
    types: dict[str, int],
    choice: EventChoice | None,
    event_types: EventTypes | None,
    clock: str | None,
) -> ShopFacts:
    frame = raw.coded.frame if event_types is None else keep_events(raw.coded.frame)
    suspects = find_repeats(frame)
    rows = drop_exact_duplicates(frame, suspects)
    user_ids, item_ids = raw.coded.user_ids, raw.coded.item_ids
    repeats = measure_repeats(rows)
    # A repeat within a day is probably the same visit. After more than a day, the user came back.
    keeps = repeats.share < FEW_REPEATS or repeats.soon < 0.5
    undone = () if event_types is None else event_types.left_out
    kept, left = choose_filters(
        rows if keeps else keep_one_per_item(rows, "first"),
        len(user_ids),
        len(item_ids),
        counted="interactions"
        + ("" if keeps else " with different items")
        + (f" beside {', '.join(undone)}, which are left out" if undone else ""),
    )
    if event_types is not None and choice is not None:
        choice = settle_targets(choice, left, event_types.names)
    text = None
    twice = suspects.drop("row")
    warnings = [
        *suspect_log(
            rows, raw.counts["rows_read"], twice.height - twice.unique().height, user_ids, clock
        )
    ]
    if items is not None:
        text = choose_text(ItemTable(build_item_table(item_ids, raw.items).frame))
        warnings += suspect_items(raw.items, item_ids, text.used)
    amounts = [n for n in logs[0].columns if n.lower() in _AMOUNTS and n not in settings.values()]
    if num_negative := _count_negative(logs, amounts):
        warnings.append(
            f"{num_negative:,} of {frame.height:,} rows have a negative {amounts[0]}: they look "
            "like returns but count as interactions. Remove them."
        )
    times = rows["timestamp"].to_numpy()
    first, last = (
        datetime.fromtimestamp(int(time), UTC).date().isoformat()
        for time in (times.min(), times.max())
    )
    return ShopFacts(
        events=events,
        items=items,
        users=users,
        user_columns=() if raw.users is None else tuple(raw.users.columns[1:]),
        columns=columns,
        table={n: v for n, v in settings.items() if n not in (*ROLES, "items_path", "users_path")},
        num_rows=frame.height,
        num_users=len(user_ids),
        num_items=len(item_ids),
        first=first,
        last=last,
        types=types,
        events_choice=choice,
        num_targets=count_targets(left, choice, event_types),
        repeats=repeats,
        keeps_repeats=keeps,
        kept=kept,
        text=text,
        warnings=tuple(warnings),
    )


def _count_types(logs: Sequence[TableFile], event: str | None) -> tuple[dict[str, int], int]:
    """Return the number of rows of each event type, and the number of rows without one.

    The most frequent type comes first. Types with equal counts are in the order of their names, so
    that the same log always gives the same file.
    """
    types: dict[str, int] = {}
    num_blank = 0
    for part in () if event is None else _parts(logs, [event]):
        assert event is not None
        names = part[event].cast(pl.String).str.strip_chars()
        num_blank += int((names.is_null() | (names == "")).sum())
        for name, number in names.drop_nulls().value_counts().iter_rows():
            if name:
                types[name] = types.get(name, 0) + number
    return dict(sorted(types.items(), key=lambda found: (-found[1], found[0]))), num_blank


def _count_negative(logs: Sequence[TableFile], amounts: Sequence[str]) -> int:
    """Return the number of rows with a negative number in the first of these columns."""
    return sum(
        int((part[amounts[0]].cast(pl.Float64, strict=False) < 0).sum())
        for part in _parts(logs, amounts[:1])
    )


def _parts(logs: Sequence[TableFile], names: Sequence[str]) -> Iterator[pl.DataFrame]:
    for table in logs if names else ():
        if set(names) <= set(table.columns):
            for part in table.rows(names):
                yield part.frame
