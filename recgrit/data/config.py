"""Settings of the ``data`` section: which data to read, how to filter and to split them."""

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

# Largest weight of an event type. It is far above useful weights, and sums of weights up to it stay
# precise enough in float32.
MAX_EVENT_WEIGHT = 1_000_000


class TableConfig(Config):
    """Columns and format of a user's own files (``source: table``).

    Args:
        items_path: Files that describe the items, with one row per item: a file, a folder or a
            pattern such as ``items/*.csv``. None if only the ids of the items are known.
        users_path: Files that describe the users, with one row per user. Their column of user ids
            has the same name as in the interactions. None if nothing is known of the users.
        user_id: Name of the column of user ids, in the files of interactions and of users.
        item_id: Name of the column of item ids, in the files of interactions and of items.
        items_id: Name of the column of item ids in the files of items, if it differs from
            ``item_id``, such as ``product_id`` beside ``sku``. None if both have the same name.
        timestamp: Name of the column of times. Times are numbers, or dates with or without a time
            of day.
        time_format: Format of times that are text, such as ``%m/%d/%Y %H:%M``. None detects the
            format, and raises an error if day and month cannot be told apart.
        time_unit: Unit of times that are numbers counted since 1970: ``s``, ``ms``, ``us``, ``ns``,
            ``min``, ``h`` or ``d``. ``excel`` reads the day numbers of spreadsheets. None detects
            the unit.
        timezone: Time zone of times that name no zone, such as ``Europe/Berlin``. The source
            ``recbole`` also uses ``time_format``, ``time_unit`` and ``timezone``.
        separator: Separator between the fields of text files, such as ``;``. None detects it.
        encoding: Character encoding of text files, such as ``latin-1``. None detects UTF-8 and
            UTF-16.
        quote: Quote character around fields of text files. ``none`` treats quote characters as
            ordinary characters, such as inch marks. None means the double quote.
        comment: Start of the lines of text files that are comments. None treats lines that start
            with ``#`` as comments if the file begins with such a line.
        decimal: Decimal mark of ratings and prices, a point or a comma. None detects it.
        columns: Names of the columns of the interaction files, in order, if text files have no
            header. None reads the names from the header.
        item_columns: Names of the columns of the item files, in order, if text files have no
            header. None reads the names from the header.
        weight: Name of the column of ratings. None if there are no ratings.
        event: Name of the column of event types, such as view and purchase. None if there are no
            event types.
        title: Name of the column of titles in the files of items.
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
    """Settings of the data: which files to read, which interactions to keep, and how to split them.

    Moving the files of ``path``, ``table.items_path`` and ``table.users_path`` repeats no stage:
    stages depend on the content of files and not on their paths.

    Args:
        source: Name of the data set or format. ``recgrit datasets`` lists the names.
        path: Path of the raw data: a folder, an archive or one of the files. None fetches a
            published data set into ``download_dir``.
        table: Columns and format of the files of the source ``table``.
        movie_tags: Largest number of tags that are added to the text of each movie. The tags that
            most users gave the movie are chosen. 0 adds no tags. MovieLens has tags from the 10M
            edition on.
        download_dir: Folder for fetched files.
        mirrors: Addresses of folders that hold copies of the published files. They are tried in
            order if the official address does not answer.
        min_user_interactions: Smallest number of interactions of a user. Users and items with fewer
            interactions than their minimum are dropped in turns until all that remain have enough
            (k-core). Most published results on these data use 5.
        min_item_interactions: Smallest number of interactions of an item, applied together with
            ``min_user_interactions``.
        since: First day, in UTC, whose interactions are kept. None sets no bound.
        until: First day, in UTC, whose interactions are no longer kept. None sets no bound.
        repeats: Which of a user's interactions with the same item at different times are kept:
            ``keep`` all, the ``first`` or the ``last``. If events have types, ``first`` and
            ``last`` choose among the events of the strongest type (targets, then by weight).
        ties: Order of a user's interactions at the same time. ``file`` keeps the order of the file.
            ``shuffle`` draws a random order, which shows how much a result depends on the order of
            the file.
        tie_seed: Seed of the random order of ``ties=shuffle``.
        min_title_length: Smallest number of characters of an item's title. Items without a title,
            or with a shorter one, are left out. 0 keeps all items.
        max_title_words: Largest number of words of an item's title. Items without a title, or with
            a longer one, are left out. None keeps all items.
        event_weights: Weight of each event type of the column ``table.event`` in the training loss,
            if the type is a target: ``{view: 1, cart: 3, purchase: 5}``. 0 keeps a type in
            histories only, and null leaves the type out. A type that is in the files but not named
            here raises an error.
        target_events: Event types that are predicted in training, validation and test. All other
            types occur in histories only. None predicts all types with a weight above 0.
        min_weight: Lowest rating that is kept. Interactions with a lower rating are left out. The
            files need ratings; those of ``source=table`` are in the column ``table.weight``. None
            keeps all.
        max_malformed_share: Largest share of malformed lines of a file. Up to this share malformed
            lines are left out. Above it an error is raised, because the file is probably damaged or
            in another format.
        split: Protocol that splits the interactions into training, validation and test.
            ``leave_one_out`` tests each user's last item and validates with the one before it.
            ``temporal`` splits the interactions of all users at two cut-off times. ``minionerec``
            repeats the protocol of that publication. ``docs/explanation/evaluation.md`` compares
            them.
        valid_share: Share of all interactions that forms the validation period of a temporal split,
            right before the test period.
        test_share: Share of all interactions that forms the test period of a temporal split, which
            is the latest.
        valid_from: Cut-off time at which the validation period of a temporal split begins, in UTC.
            If set, ``valid_from`` and ``test_from`` replace the shares, and both are needed.
        test_from: Cut-off time at which the test period of a temporal split begins, in UTC.
        test_until: Cut-off time at which the test period of a temporal split ends, in UTC.
            Interactions from then on are left out before any other step. None ends the test period
            with the last interaction.
        cold_item_share: Share of items that are held out of all training histories. Use it to
            measure how well items without interactions are recommended.
        cold_item_seed: Seed of the random choice of the held-out items.
        partition_users: Number of users whose interactions are held in memory at a time, while
            those of all other users are on disk. None holds all in memory, which is faster. The
            result is the same. Set it if the interactions do not fit into memory.
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
        """Event types of the settings. None if ``event_weights`` is empty."""
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
            raise ValueError("table.event works only with source=table")
        if self.table.event is None and (self.event_weights or self.target_events is not None):
            raise ValueError(
                "event_weights and target_events need the column of event types: set "
                "data.table.event=COLUMN"
            )
        if self.table.event is None:
            return self
        if self.split == "minionerec":
            raise ValueError("table.event works only with split=leave_one_out or temporal")
        weighed = [name for name, weight in self.event_weights.items() if weight]
        for name in self.target_events or ():
            if name not in weighed:
                raise ValueError(
                    f"target_events holds {name!r}, which has no weight above 0 in event_weights"
                )
        if self.target_events == () or (self.event_weights and not weighed):
            raise ValueError(
                "there is no target event: give a type a weight above 0, and name it in "
                "target_events"
            )
        return self

    @model_validator(mode="after")
    def _check_times(self) -> DataConfig:
        asks = [name for name in ("since", "until") if getattr(self, name) is not None]
        if self.split == "temporal":
            asks.append("split=temporal")
        if self.source == "sequences" and asks:
            raise ValueError(
                f"source=sequences has no times, but data.{asks[0]} needs them: leave it out, or "
                "provide the interactions with their times (source=table)"
            )
        return self

    @field_validator("valid_from", "test_from", "test_until", mode="before")
    @classmethod
    def _refuse_numbers(cls, moment: object) -> object:
        """Raise an error if a time is a number, because a number could be a year or seconds."""
        if isinstance(moment, int | float) or (isinstance(moment, str) and moment.isdigit()):
            raise ValueError(f"expected a time such as 2024-01-31T12:00, got the number {moment}")
        return moment

    @field_validator("valid_from", "test_from", "test_until")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        """Convert a time to UTC, and raise an error if it has a fraction of a second.

        A time that names no zone is in UTC.
        """
        if moment is None:
            return None
        if moment.microsecond:
            raise ValueError("a time must have whole seconds, such as 2024-01-31T12:00:00")
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    @property
    def cut_off_times(self) -> tuple[int, int] | None:
        """Cut-off times of validation and test in seconds since 1970, or None if shares are set."""
        if self.valid_from is None or self.test_from is None:
            return None
        return to_seconds(self.valid_from), to_seconds(self.test_from)

    @model_validator(mode="after")
    def _check_moments(self) -> DataConfig:
        names = ("valid_from", "test_from", "test_until")
        given = [name for name in names if getattr(self, name) is not None]
        if given and self.split != "temporal":
            raise ValueError(
                f"{given[0]} works only with split=temporal, but split is {self.split}"
            )
        if given and "valid_from" not in given:
            raise ValueError(f"{given[0]} needs valid_from and test_from")
        if given and "test_from" not in given:
            raise ValueError(f"{given[0]} needs test_from")
        moments = [getattr(self, name) for name in given]
        if any(moments[i] >= moments[i + 1] for i in range(len(moments) - 1)):
            raise ValueError(f"{', '.join(given)} must be in chronological order")
        return self

    @model_validator(mode="after")
    def _check_cold_items(self) -> DataConfig:
        if self.cold_item_share > 0 and self.split == "minionerec":
            raise ValueError(
                "cold_item_share works only with split=leave_one_out or temporal: minionerec keeps "
                "the published histories unchanged"
            )
        return self

    @model_validator(mode="after")
    def _check_partitions(self) -> DataConfig:
        for name, value in (("split", "minionerec"), ("ties", "shuffle")):
            if self.partition_users is not None and getattr(self, name) == value:
                raise ValueError(
                    f"partition_users does not work with {name}={value}, which needs all "
                    "interactions in memory: set data.partition_users=null, or choose another "
                    f"data.{name}"
                )
        return self


def to_seconds(moment: datetime) -> int:
    """Return the seconds since 1970 of a time in UTC.

    >>> to_seconds(datetime(1970, 1, 2, tzinfo=UTC))
    86400
    """
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
