"""Settings of the data."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recgrit.bounds import EVENT_TYPES
from recgrit.config import Config
from recgrit.data.events import EventTypes
from recgrit.data.sources import DEFAULT_MAX_MALFORMED_SHARE, TABLE, load_source
from recgrit.data.time_settings import TimeUnit

# Far beyond use; sums of weights stay exact enough in float32.
MAX_EVENT_WEIGHT = 1_000_000


class TableConfig(Config):
    """How a user's own files name their columns (``source: table``).

    Args:
        items_path: Files that describe the items, one row per item: a file, a folder or a pattern.
            None where only the ids of items are known.
        users_path: Files that describe the users, one row per user, with the user's column of the
            interactions; None where nothing is known of them.
        user_id: Name of the user's column.
        item_id: Name of the item's column, in both kinds of files.
        items_id: Its name in the files of items, such as ``product_id`` beside ``sku``; None where
            both call it alike.
        timestamp: Name of the time's column: numbers, or dates with times.
        time_format: Form of times that are text, such as ``%m/%d/%Y %H:%M``; None finds it out,
            and asks where dates can be read in two ways.
        time_unit: What times count since 1970 where they are numbers: ``s``, ``ms``, ``us``,
            ``ns``, ``min``, ``h``, ``d``, or the day numbers of a spreadsheet (``excel``); None
            finds it out.
        timezone: Where times that name no zone were taken, such as ``Europe/Berlin``. These three
            count for the source ``recbole`` too.
        separator: What stands between the fields of text files, such as ``;``. This and what
            follows is found out where it is None.
        encoding: Of text files, such as ``latin-1``; UTF-8 and UTF-16 are found.
        quote: What stands around fields of text files; ``none`` where quotes are inches.
        comment: What lines of text files begin with that are no data.
        decimal: What stands before decimals in ratings and prices, a point or a comma.
        columns: Names of the columns of interactions, in order, where text files have no header.
        item_columns: Likewise, of items.
        weight: Name of the rating's column; None for none.
        event: Name of the column of event types, such as view and purchase; None for none.
        title: Name of the title's column among the items.
    """

    items_path: Path | None = None
    users_path: Path | None = None
    user_id: str = "user_id"
    item_id: str = "item_id"
    items_id: str | None = None
    timestamp: str = "timestamp"
    weight: str | None = None
    event: str | None = None
    title: str = "title"
    time_format: str | None = None
    time_unit: TimeUnit | None = None
    timezone: str = "UTC"
    separator: str | None = Field(default=None, min_length=1)
    encoding: str | None = None
    quote: str | None = None
    comment: str | None = Field(default=None, min_length=1)
    decimal: Literal[".", ","] | None = None
    columns: tuple[str, ...] | None = None
    item_columns: tuple[str, ...] | None = None

    @field_validator("quote")
    @classmethod
    def _is_quote(cls, quote: str | None) -> str | None:
        if quote is not None and quote != "none" and len(quote) != 1:
            raise ValueError("a quote is one character, or none")
        return quote


class DataConfig(Config):
    """Which data, where they are, and what is left out of them.

    ``path``, ``table.items_path``, ``table.users_path`` and ``download_dir`` are paths. A stage's
    key holds no path: the content of the files counts.

    Args:
        source: Name of the format, as ``recgrit datasets`` lists them.
        path: A folder, an archive or one of the files. None fetches a published data set into
            ``download_dir``.
        table: Columns of the source ``table``.
        movie_tags: So many of the tags that most users gave a movie become part of its text; 0 for
            none. MovieLens has them from 10M on.
        download_dir: Where fetched files go.
        mirrors: Addresses of folders with the same files, tried in turn where the official ones do
            not answer.
        min_user_interactions: Users with fewer interactions are dropped, and items likewise, until
            neither is left (k-core). 5 is what most published results on these data use.
        min_item_interactions: As for users.
        since: Day in UTC from whose start on interactions are kept; None for no bound.
        until: Day in UTC before whose start interactions are kept; None for no bound.
        repeats: What becomes of a user's interactions with one item at different times: all are
            kept, or the first, or the last; where events have types, of those of the strongest
            type (targets, then by weight).
        ties: How a user's interactions at one time are ordered: as in the file, or drawn with
            ``tie_seed``, which measures what the file's order is worth.
        tie_seed: Seed of that draw.
        min_title_length: Items whose title has fewer characters are left out; 0 keeps all.
        max_title_words: Items without a title, or with more words in it, are left out; None for no
            bound.
        event_weights: Event types in the column ``table.event``, each with what it counts in the
            training loss where it is predicted: ``{view: 1, cart: 3, purchase: 5}``. 0 keeps a type
            in histories only, null leaves it out. A type in the files that is not named is an
            error.
        target_events: The types that are predicted, in training, validation and test; all others
            stand in histories only. None for all whose weight is over 0.
        min_weight: Interactions with a lower rating are left out; None keeps all.
        max_malformed_share: Share of a file's lines that may be malformed and are left out; above
            it the file is taken for damaged or of another format.
        split: Protocol of training, validation and test; see ``docs/explanation/evaluation.md``.
        valid_share: Share of all interactions, before the test period, in which a temporal split
            looks for validation targets.
        test_share: Share of all interactions, the latest, in which it looks for test targets.
        valid_from: When validation of a temporal split begins, in UTC, in place of the shares; as
            ``test_from``, with which it goes.
        test_from: When its test begins.
        test_until: When its test ends: interactions from then on are left out before any other step
            sees them. None for the end of the log.
        cold_item_share: Share of items held out of all training parts, to measure what becomes of
            items that nobody has interacted with yet.
        cold_item_seed: Seed that draws these items.
        partition_users: Users whose interactions are held in memory at a time, all others being on
            disk; None holds all in memory, which is faster. It changes no result.
    """

    source: str = "movielens-100k"
    path: Path | None = None
    table: TableConfig = TableConfig()
    movie_tags: int = Field(default=0, ge=0)
    download_dir: Path = Path("downloads")
    mirrors: tuple[str, ...] = ()
    min_user_interactions: int = Field(default=5, ge=1)
    min_item_interactions: int = Field(default=5, ge=1)
    since: date | None = None
    until: date | None = None
    repeats: Literal["keep", "first", "last"] = "keep"
    ties: Literal["file", "shuffle"] = "file"
    tie_seed: int = Field(default=0, ge=0)
    min_title_length: int = Field(default=0, ge=0)
    max_title_words: int | None = Field(default=None, ge=1)
    event_weights: dict[str, float | None] = Field(default_factory=dict)
    target_events: tuple[str, ...] | None = None
    min_weight: float | None = Field(default=None, allow_inf_nan=False)
    max_malformed_share: float = Field(default=DEFAULT_MAX_MALFORMED_SHARE, ge=0, le=1)
    split: Literal["leave_one_out", "temporal", "minionerec"] = "leave_one_out"
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    valid_from: datetime | None = None
    test_from: datetime | None = None
    test_until: datetime | None = None
    cold_item_share: float = Field(default=0.0, ge=0, lt=1)
    cold_item_seed: int = Field(default=0, ge=0)
    partition_users: int | None = Field(default=None, ge=1)

    @field_validator("source")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name != TABLE:
            load_source(name)
        return name

    @property
    def event_types(self) -> EventTypes | None:
        """The types of events; None where the log has none."""
        return EventTypes.of(self.event_weights, self.target_events)

    @field_validator("event_weights")
    @classmethod
    def _are_weights(cls, weights: dict[str, float | None]) -> dict[str, float | None]:
        given = [weight for weight in weights.values() if weight is not None]
        if any(not 0 <= weight <= MAX_EVENT_WEIGHT for weight in given):
            raise ValueError(
                f"weights are numbers from 0 to {MAX_EVENT_WEIGHT:,}, or null to leave out the type"
            )
        if len(weights) > EVENT_TYPES.allowed():
            raise ValueError(f"there are {EVENT_TYPES.explain(len(weights))}")
        return weights

    @model_validator(mode="after")
    def _check_events(self) -> DataConfig:
        if self.table.event is not None and self.source != TABLE:
            raise ValueError("table.event names a column of source=table")
        if self.table.event is None and (self.event_weights or self.target_events is not None):
            raise ValueError(
                "event_weights and target_events need the column of event types: set "
                "data.table.event=COLUMN"
            )
        if self.table.event is None:
            return self
        if self.split == "minionerec":
            raise ValueError("table.event goes with split=leave_one_out or temporal")
        weighed = [name for name, weight in self.event_weights.items() if weight]
        for name in self.target_events or ():
            if name not in weighed:
                raise ValueError(
                    f"target_events holds {name!r}, which has no weight over 0 in event_weights"
                )
        if self.target_events == () or (self.event_weights and not weighed):
            raise ValueError("there is no target: give a type a weight over 0, and name one target")
        return self

    @model_validator(mode="after")
    def _check_times(self) -> DataConfig:
        asks = [name for name in ("since", "until") if getattr(self, name) is not None]
        if self.split == "temporal":
            asks.append("split=temporal")
        if self.source == "sequences" and asks:
            raise ValueError(
                f"source=sequences has no times, which data.{asks[0]} goes by: leave it out, or "
                "bring the interactions with their times (source=table)"
            )
        return self

    @field_validator("valid_from", "test_from", "test_until", mode="before")
    @classmethod
    def _refuse_numbers(cls, moment: object) -> object:
        """A number could be a year or seconds."""
        if isinstance(moment, int | float) or (isinstance(moment, str) and moment.isdigit()):
            raise ValueError(f"expected a time such as 2024-01-31T12:00, got the number {moment}")
        return moment

    @field_validator("valid_from", "test_from", "test_until")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        """Whole seconds, as cut-off times are compared with."""
        if moment is None:
            return None
        if moment.microsecond:
            raise ValueError("a moment has whole seconds, such as 2024-01-31T12:00:00")
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    @property
    def cut_off_times(self) -> tuple[int, int] | None:
        """When validation and test begin, in seconds since 1970; None where shares say so."""
        if self.valid_from is None or self.test_from is None:
            return None
        return to_seconds(self.valid_from), to_seconds(self.test_from)

    @model_validator(mode="after")
    def _check_moments(self) -> DataConfig:
        names = ("valid_from", "test_from", "test_until")
        given = [name for name in names if getattr(self, name) is not None]
        if given and self.split != "temporal":
            raise ValueError(f"{given[0]} goes with split=temporal, and split is {self.split}")
        if given and "valid_from" not in given:
            raise ValueError(f"{given[0]} needs valid_from and test_from")
        if given and "test_from" not in given:
            raise ValueError(f"{given[0]} needs test_from")
        moments = [getattr(self, name) for name in given]
        if any(moments[i] >= moments[i + 1] for i in range(len(moments) - 1)):
            raise ValueError(f"{', '.join(given)} must follow one another in time")
        return self

    @model_validator(mode="after")
    def _check_cold_items(self) -> DataConfig:
        if self.cold_item_share > 0 and self.split == "minionerec":
            raise ValueError(
                "cold_item_share goes with split=leave_one_out or temporal: the histories of "
                "minionerec are published as they are"
            )
        return self

    @model_validator(mode="after")
    def _check_partitions(self) -> DataConfig:
        for name, value in (("split", "minionerec"), ("ties", "shuffle")):
            if self.partition_users is not None and getattr(self, name) == value:
                raise ValueError(
                    f"partition_users does not go with {name}={value}, which needs all "
                    "interactions in memory: set data.partition_users=null, or choose another "
                    f"data.{name}"
                )
        return self


def to_seconds(moment: datetime) -> int:
    """Seconds since 1970 of a moment in UTC.

    >>> to_seconds(datetime(1970, 1, 2, tzinfo=UTC))
    86400
    """
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
