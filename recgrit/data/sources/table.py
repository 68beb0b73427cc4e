"""Reader of a user's own interactions, in files of any common format with any column names."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recgrit.data.decimals import read_decimals
from recgrit.data.events import EVENT, EventReader, EventTypes
from recgrit.data.id_columns import as_ids, refuse_damaged_ids, tell_lost_zeros, tell_stand_ins
from recgrit.data.sources.cleaning import CleanRows, RowCollector, join_rows, to_raw_data
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.item_table import NO_ITEMS, read_item_table, read_user_table
from recgrit.data.sources.raw import DEFAULT_MAX_MALFORMED_SHARE, RawData
from recgrit.data.sources.reading import show_names
from recgrit.data.sources.table_files import TableFile, find_tables, list_files, open_table
from recgrit.data.time_settings import TimeSettings, TimeUnit
from recgrit.data.times import TimeReader
from recgrit.errors import DataError

logger = logging.getLogger(__name__)

SAMPLE = 1000


@dataclass(frozen=True, kw_only=True)
class Table:
    """The source of a user's own files of interactions and, optionally, of items and users.

    Args:
        items_path: Files of items, with one row per item. None if only the ids of the items are
            known.
        users_path: Files of users, with one row per user. None if nothing is known of the users.
        user_id: Name of the column of user ids, in the files of interactions and of users.
        item_id: Name of the column of item ids, in the files of interactions and of items.
        items_id: Name of the column of item ids in the files of items, if it differs from
            ``item_id``. None if both have the same name.
        timestamp: Name of the column of times. Times are numbers, or dates with or without a time
            of day.
        weight: Name of the column of ratings. None if there are no ratings.
        event: Name of the column of event types. None if there are no event types.
        title: Name of the column of titles in the files of items.
        time_format: Format of times that are text. None detects it.
        time_unit: Unit of times that are numbers. None detects it.
        timezone: Time zone of times that name no zone.
        separator: Separator between the fields of text files. None detects it.
        encoding: Character encoding of text files. None detects it.
        quote: Quote character around fields of text files. None means the double quote.
        comment: Start of the lines of text files that are comments. None treats lines that start
            with ``#`` as comments if the file begins with such a line.
        decimal: Decimal mark in numbers. None detects it.
        columns: Names of the columns of interactions in text files without a header, in order. None
            reads the header.
        item_columns: Names of the columns of items in text files without a header, in order. None
            reads the header.
        event_types: Event types of the settings. None raises an error that lists the types in the
            files, if ``event`` names a column.
    """

    items_path: Path | None
    users_path: Path | None
    user_id: str
    item_id: str
    items_id: str | None
    timestamp: str
    weight: str | None
    event: str | None
    title: str
    time_format: str | None
    time_unit: TimeUnit | None
    timezone: str
    separator: str | None
    encoding: str | None
    quote: str | None
    comment: str | None
    decimal: str | None
    columns: tuple[str, ...] | None
    item_columns: tuple[str, ...] | None
    event_types: EventTypes | None = None

    @property
    def described_id(self) -> str:
        """Name of the column of item ids in the files of items."""
        return self.items_id or self.item_id

    @property
    def times(self) -> TimeSettings:
        """Settings of how times are written."""
        return TimeSettings(
            time_format=self.time_format, time_unit=self.time_unit, timezone=self.timezone
        )

    def text(self, columns: tuple[str, ...] | None) -> TextSettings:
        """Return the settings of how text files are written, with these names of columns."""
        return TextSettings(
            separator=self.separator,
            encoding=self.encoding,
            quote=self.quote,
            comment=self.comment,
            decimal=self.decimal,
            columns=columns,
        )

    @property
    def expected(self) -> str:
        """Description of the required files, for messages."""
        names = ", ".join(self._interaction_columns.values())
        return f"Parquet or CSV, or another table, with the columns {names}"

    @property
    def _interaction_columns(self) -> dict[str, str]:
        """Names of the columns of interactions in the files, by the names used here."""
        names = {"user_id": self.user_id, "item_id": self.item_id, "timestamp": self.timestamp}
        optional = {"weight": self.weight, EVENT: self.event}
        return names | {ours: name for ours, name in optional.items() if name is not None}

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """Return the files of interactions, followed by those of items and of users.

        Args:
            path: Path of a file or folder, or a pattern such as ``2024-*.parquet``.

        Raises:
            DataError: There are no such files, or files of several kinds.
        """
        items, users = self._described()
        return (*list_files(path, self.expected, apart=(*items, *users)), *items, *users)

    def _described(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Return the files of items and the files of users."""
        return (
            () if self.items_path is None else list_files(self.items_path, "items"),
            () if self.users_path is None else list_files(self.users_path, "users"),
        )

    def read(
        self,
        files: tuple[Path, ...],
        max_malformed_share: float = DEFAULT_MAX_MALFORMED_SHARE,
        coder: InteractionCoder | None = None,
    ) -> RawData:
        """Read the interactions, and the items and users if there are files of them."""
        described, of_users = self._described()
        logs = files[: len(files) - len(described) - len(of_users)]
        coder = coder or InteractionCoder()
        tables = self._open(logs)
        times = TimeReader(
            self.timestamp,
            self.times,
            other_files=lambda: (
                part.frame[self.timestamp]
                for table in tables
                for part in table.rows([self.timestamp])
            ),
        )
        events = None if self.event is None else EventReader(self.event, self.event_types)
        parts, labels = [], []
        for table in tables:
            first_codes = coder.users.num_ids, coder.items.num_ids
            part = self._read_interactions(
                table, max_malformed_share, coder, times, events, is_only=len(tables) == 1
            )
            if part is None:
                continue
            for ids, first, name in zip(
                (coder.users, coder.items),
                first_codes,
                (self.user_id, self.item_id),
                strict=True,
            ):
                if not ids.are_numbers:
                    refuse_damaged_ids(ids.ids()[first:], table.label, name)
            parts.append(part)
            labels.append(Path(table.label))
        if not parts:
            raise DataError(f"{logs[0]} and the files beside it hold no rows.")
        times.finish()
        if events is not None:
            events.finish()
        tell_lost_zeros(coder.items.ids(), self.item_id)
        for ids, name in ((coder.users, self.user_id), (coder.items, self.item_id)):
            if not ids.are_numbers:
                tell_stand_ins(ids.ids(), name)
        items = NO_ITEMS
        if described:
            items = read_item_table(
                described,
                item_id=self.described_id,
                title=self.title,
                text=self.text(self.item_columns),
                max_malformed_share=max_malformed_share,
            )
        raw = to_raw_data(join_rows(parts, labels), items, files, coder)
        if not of_users:
            return raw
        users = read_user_table(
            of_users,
            user_id=self.user_id,
            text=self.text(None),
            max_malformed_share=max_malformed_share,
        )
        return replace(raw, users=users)

    def _open(self, files: Sequence[Path]) -> list[TableFile]:
        """Open the tables in these files, check that they have all columns, and log their forms."""
        tables, forms = [], dict[str, list[str]]()
        wanted = list(self._interaction_columns.values())
        for path in files:
            for place in find_tables(path):
                table = open_table(place, wanted, self.text(self.columns))
                if table.columns or len(files) == 1:
                    _require_columns(table, self._interaction_columns)
                    table.refuse_repeated(wanted)
                    tables.append(table)
                    forms.setdefault(table.describe(), []).append(place.label)
        if not tables:
            raise DataError(f"{files[0]} is empty, and so is every file beside it.")
        for form, labels in forms.items():
            more = f" and {len(labels) - 1:,} more files" if len(labels) > 1 else ""
            logger.info("%s%s: %s", labels[0], more, form)
        return tables

    def _read_interactions(
        self,
        table: TableFile,
        max_malformed_share: float,
        coder: InteractionCoder,
        times: TimeReader,
        events: EventReader | None,
        *,
        is_only: bool,
    ) -> CleanRows | None:
        """Read the interactions of a file; an empty file that is not the only one gives None."""
        names = self._interaction_columns
        collector = RowCollector(
            coder, table.label, f"{', '.join(names.values())}, with times as dates or numbers"
        )
        num_read = 0
        num_unsplit = 0
        for part in table.rows(list(names.values())):
            columns = {
                ours: as_ids(part.frame[name], table.label, name).alias(ours)
                for ours, name in names.items()
                if ours in ("user_id", "item_id")
            }
            for ours, ids in columns.items():  # Errors in ids are raised before errors in times.
                sample = ids.head(SAMPLE).cast(pl.String).unique(maintain_order=True)
                refuse_damaged_ids(sample, table.label, names[ours])
            exact = times.read(part.frame[self.timestamp], table.label)
            further = []
            if self.weight is not None:
                numbers = read_decimals(
                    part.frame[self.weight], self.decimal, table.label, self.weight
                )
                further.append(numbers.alias("weight"))
            if events is not None:
                assert self.event is not None
                further.append(events.read(part.frame[self.event]))
            collector.add(
                pl.DataFrame([part.lines, columns["user_id"], columns["item_id"], *exact, *further])
            )
            collector.add_unsplit(part.unsplit)
            num_unsplit += len(part.unsplit)
            num_read += part.frame.height + len(part.unsplit)
        if not num_read and not is_only:
            return None
        reason = times.describe_unread()
        if num_unsplit:
            reason = "; ".join(
                [f"{num_unsplit} have too many or too few fields", *([reason] if reason else [])]
            )
        return collector.finish(max_malformed_share, reason)


def _require_columns(table: TableFile, names: dict[str, str]) -> None:
    missing = {ours: name for ours, name in names.items() if name not in table.columns}
    if not missing:
        return
    if not table.columns:
        raise DataError(f"{table.label} is empty: it has no line of data.")
    ours, first = next(iter(missing.items()))
    plain = {_plain(name): name for name in table.columns}
    close = difflib.get_close_matches(_plain(first), plain, n=1, cutoff=0.7)
    raise DataError(
        f"{table.label} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing.values())}; "
        f"it has {show_names(table.columns)} ({table.describe()}). Name yours as in "
        f"data.table.{ours}={plain[close[0]] if close else 'COLUMN'}"
        + (", or the separator with data.table.separator." if len(table.columns) == 1 else ".")
    )


def _plain(name: str) -> str:
    """Return the letters and digits of a name in lower case, for comparison with similar names."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
