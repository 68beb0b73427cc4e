"""From a source's files to what every later stage starts from, with an account of each row.

The funnel records what each step dropped: published results on the same data set often differ
because of a silent filter.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, field_validator, model_validator

from recgrit.artifacts import explain_write_failure
from recgrit.config import Config
from recgrit.data.download import fetch_dataset
from recgrit.data.filtering import (
    count_repeats,
    drop_exact_duplicates,
    filter_k_core,
    find_repeats,
)
from recgrit.data.funnel import Funnel
from recgrit.data.interactions import Interactions, save_ids, sort_by_user_and_time
from recgrit.data.items import ItemTable
from recgrit.data.minionerec import build_minionerec
from recgrit.data.partitioned import PartitionedRows, SortedRows
from recgrit.data.releases import find_release
from recgrit.data.sources import DEFAULT_MAX_MALFORMED_SHARE, TABLE, Source, load_source
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.partitions import RowPartitions
from recgrit.data.sources.table import Table, TimeUnit
from recgrit.data.sources.tags import with_tags
from recgrit.data.splits import (
    SequenceSplit,
    build_leave_one_out,
    build_temporal,
    choose_moments,
    draw_items,
    hold_out_items,
    leave_one_out,
    part_in_time,
    without_items,
)
from recgrit.data.steps import (
    DUPLICATES,
    HELD_OUT,
    HELD_OUT_WITH,
    REPEATS,
    TESTED,
    WITHOUT_ID,
    all_too_light,
    build_steps,
    name_k_core,
    no_core,
    nothing_left,
)
from recgrit.errors import ConfigError, DataError, RecgritError


class TableConfig(Config):
    """How a user's own files name their columns (``source: table``); see `Table`."""

    items_path: Path | None = None
    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    weight: str | None = None
    title: str = "title"
    time_unit: TimeUnit = "s"


class DataConfig(Config):
    """Which data, where it is, and what is left out of it."""

    source: str = "movielens-100k"
    path: Path | None = None
    table: TableConfig = TableConfig()
    # Of MovieLens, as text of the items: so many of the most given; 0 for none.
    movie_tags: int = Field(default=0, ge=0)
    download_dir: Path = Path("downloads")
    # Addresses of folders with the same files, tried where the official ones do not answer.
    mirrors: tuple[str, ...] = ()
    min_user_interactions: int = Field(default=5, ge=1)
    min_item_interactions: int = Field(default=5, ge=1)
    # From the start of the one day to before the other, in UTC.
    since: date | None = None
    until: date | None = None
    # What becomes of a user's interactions with an item taken before.
    repeats: Literal["keep", "first", "last"] = "keep"
    # How what a user did at one time is ordered: as in the file, or drawn anew with tie_seed, to
    # measure what the file's order is worth.
    ties: Literal["file", "shuffle"] = "file"
    tie_seed: int = Field(default=0, ge=0)
    min_title_length: int = Field(default=0, ge=0)
    max_title_words: int | None = Field(default=None, ge=1)
    min_weight: float | None = Field(default=None, allow_inf_nan=False)
    max_malformed_share: float = Field(default=DEFAULT_MAX_MALFORMED_SHARE, ge=0, le=1)
    split: Literal["leave_one_out", "temporal", "minionerec"] = "leave_one_out"
    # Of all interactions, the latest: how a temporal split parts them.
    valid_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    # Held out of all training parts, to see what becomes of items nobody has taken yet.
    cold_item_share: float = Field(default=0.0, ge=0, lt=1)
    cold_item_seed: int = Field(default=0, ge=0)
    # Users held in memory at a time, the others' interactions being on disk; None for all. Changes
    # no result.
    partition_users: int | None = Field(default=None, ge=1)

    @field_validator("source")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name != TABLE:
            load_source(name)
        return name

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

    def build_source(self) -> Source:
        """What reads the files.

        Raises:
            ConfigError: Tags are asked for where there are none.
        """
        if self.source == TABLE:
            return Table(**self.table.model_dump())
        source = load_source(self.source)
        return with_tags(source, self.source, self.movie_tags) if self.movie_tags else source


USERS_NAME = "user_features.parquet"


@dataclass(frozen=True)
class PreparedData:
    """Dense interactions, their items and their split; row i of ``items`` is ``item_idx`` i.

    Args:
        interactions: What is left after all filters.
        items: One row per item that has interactions.
        split: Sequences over the interactions, less those of items held out of training.
        funnel: One row per step, as `Funnel.to_polars` describes.
        users: What the source says of users, one row per user with ``user_id`` first; None if it
            says nothing. No model here reads it; it goes on to other tools.

    Raises:
        DataError: The parts do not belong together.
    """

    interactions: Interactions
    items: ItemTable
    split: SequenceSplit
    funnel: pl.DataFrame
    users: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        if not self.items.item_ids.equals(self.interactions.item_ids):
            raise DataError("The item table must list the items of the interactions, in order.")
        if self.users is not None and not self.users["user_id"].equals(self.interactions.user_ids):
            raise DataError("The user table must list the users of the interactions, in order.")
        sizes = (self.split.num_users, self.split.num_items)
        expected = (self.interactions.num_users, self.interactions.num_items)
        if sizes != expected:
            raise DataError(f"The split has {sizes} users and items, the data {expected}.")
        # Fewer where items are held out of training.
        num_own = int(self.split.offsets[self.split.num_users])
        if num_own > len(self.interactions):
            raise DataError(
                f"The split has {num_own} interactions, the data only {len(self.interactions)}."
            )

    def save(self, directory: Path) -> None:
        """Write all parts, and the funnel as ``funnel.parquet``, into an existing folder."""
        self.interactions.save(directory)
        self.items.save(directory)
        self.split.save(directory)
        self.funnel.write_parquet(directory / "funnel.parquet")
        if self.users is not None:
            self.users.write_parquet(directory / USERS_NAME)

    @classmethod
    def load(cls, directory: Path) -> PreparedData:
        """Read what `save` wrote."""
        interactions = Interactions.load(directory)
        users = directory / USERS_NAME
        return cls(
            interactions=interactions,
            items=ItemTable.load(directory),
            split=SequenceSplit.load(directory, num_items=interactions.num_items),
            funnel=pl.read_parquet(directory / "funnel.parquet", glob=False),
            users=pl.read_parquet(users, glob=False) if users.is_file() else None,
        )


def find_input_files(config: DataConfig) -> tuple[Path, ...]:
    """The raw files that `prepare` will read; published ones are fetched where no path is set.

    Raises:
        ConfigError: ``path`` is not set and the source is not one that can be fetched.
        DataError: The files are not there, or cannot be fetched.
    """
    source = config.build_source()
    if config.path is not None:
        return source.find_files(config.path)
    release = find_release(config.source)
    if release is None:
        raise ConfigError(
            f"data.path is not set: the source {config.source} needs {source.expected}. "
            "Bring the files and set data.path=FOLDER."
        )
    category = config.source.partition("/")[2]
    return source.find_files(
        fetch_dataset(release, config.download_dir, category=category, mirrors=config.mirrors)
    )


def prepare(config: DataConfig, *, scratch_dir: Path | None = None) -> PreparedData:
    """Read, filter, index and split a data set.

    Args:
        config: What to read, and what to leave out.
        scratch_dir: Where partitions lie while they are worked on; None for where the system has
            temporary files.

    Raises:
        ConfigError: A setting does not fit the source.
        DataError: Files are missing or malformed, or a filter leaves nothing.
    """
    files = find_input_files(config)
    if config.partition_users is not None:
        return _prepare_in_partitions(config, files, config.partition_users, scratch_dir)
    raw = config.build_source().read(files, max_malformed_share=config.max_malformed_share)
    funnel = Funnel.start(raw)
    funnel.add(WITHOUT_ID, raw.coded.frame)
    steps = build_steps(config, raw)
    metadata, user_ids, item_ids = raw.items, raw.coded.user_ids, raw.coded.item_ids
    described = raw.users
    repeats = find_repeats(raw.coded.frame)
    kept = drop_exact_duplicates(raw.coded.frame, repeats)
    num_read = raw.coded.frame.height
    del raw  # A large part of all memory, once something is dropped from it.
    funnel.add(DUPLICATES, kept)
    for step in steps:
        before, kept = kept, step.keep(kept)
        if step.is_of_weight and kept.is_empty() and not before.is_empty():
            raise all_too_light(config, before["weight"].to_numpy().max())
        funnel.add(step.name, kept)
        del before
    if kept.is_empty():
        raise nothing_left(num_read)
    num_kept = kept.height
    kept = filter_k_core(kept, config.min_user_interactions, config.min_item_interactions)
    if kept.is_empty():
        raise no_core(num_kept, config)
    funnel.add(name_k_core(config), kept)
    # Filters make none.
    num_repeats = 0 if repeats.is_empty() else count_repeats(kept)
    funnel.count(REPEATS, num_repeats)
    tie_seed = config.tie_seed if config.ties == "shuffle" else None
    interactions = build_interactions(kept, user_ids, item_ids, tie_seed=tie_seed)
    del kept
    split = _build_split(interactions, config)
    return _complete(interactions, split, metadata, described, funnel)


def _prepare_in_partitions(
    config: DataConfig, files: tuple[Path, ...], num_users: int, scratch_dir: Path | None
) -> PreparedData:
    """As in memory; the result's rows stay on disk as long as its `Interactions` are in use."""
    scratch = TemporaryDirectory(prefix="recgrit-", dir=scratch_dir)
    try:
        data = _prepare_on_disk(config, files, num_users, Path(scratch.name))
    except RecgritError:
        raise
    except Exception as error:
        reason = explain_write_failure(error)
        if reason is None:
            raise
        raise DataError(
            f"Cannot write partitions into {scratch.name}: {reason}. They take some 40 bytes an "
            "interaction: make room for them, or name another folder (run.dir=PATH, or TMPDIR in "
            "the environment where there is no run)."
        ) from error
    weakref.finalize(data.interactions, scratch.cleanup)
    return data


def _prepare_on_disk(
    config: DataConfig, files: tuple[Path, ...], num_users: int, folder: Path
) -> PreparedData:
    coder = InteractionCoder(RowPartitions(folder / "read", num_users))
    raw = config.build_source().read(files, config.max_malformed_share, coder)
    funnel = Funnel.start(raw)
    steps = build_steps(config, raw)
    metadata, user_ids, item_ids = raw.items, raw.coded.user_ids, raw.coded.item_ids
    described = raw.users
    assert coder.partitions is not None
    (folder / "steps").mkdir()
    rows = PartitionedRows(
        coder.partitions,
        has_weights="weight" in raw.coded.frame.columns,
        num_users=len(user_ids),
        num_items=len(item_ids),
        folder=folder / "steps",
    )
    del coder, raw
    tallies = rows.filter([lambda read: read, drop_exact_duplicates, *(s.keep for s in steps)])
    names = [WITHOUT_ID, DUPLICATES, *(step.name for step in steps)]
    for name, tally in zip(names, tallies, strict=True):
        funnel.add_counts(name, tally.interactions, users=tally.users, items=tally.items)
    for step, tally in zip(steps, tallies[2:], strict=True):
        if step.is_of_weight and not tally.interactions and tally.highest_weight is not None:
            raise all_too_light(config, tally.highest_weight)
    if not tallies[-1].interactions:
        raise nothing_left(tallies[0].interactions)
    core = rows.filter_k_core(config.min_user_interactions, config.min_item_interactions)
    if not core.interactions:
        raise no_core(tallies[-1].interactions, config)
    funnel.add_counts(name_k_core(config), core.interactions, users=core.users, items=core.items)
    kept = rows.index()
    funnel.count(REPEATS, kept.num_repeats)
    artifact = folder / "prepared"
    artifact.mkdir()
    save_ids(user_ids.gather(kept.user_codes), item_ids.gather(kept.item_codes), artifact)
    sorted_rows = rows.sort(kept)
    del user_ids, item_ids, rows, kept  # What there is of each user counts, where they are many.
    counts = _write_split(sorted_rows, config, artifact)
    interactions = Interactions.load(artifact)
    split = SequenceSplit.load(artifact, num_items=interactions.num_items)
    return _complete(interactions, _CountedSplit(split, counts), metadata, described, funnel)


@dataclass(frozen=True)
class _CountedSplit:
    """A split, and what was counted in making it, for the funnel."""

    split: SequenceSplit
    counts: list[tuple[str, int]]


def _complete(
    interactions: Interactions,
    split: _CountedSplit,
    metadata: pl.DataFrame,
    described: pl.DataFrame | None,
    funnel: Funnel,
) -> PreparedData:
    """Join what is known of items and users, and end the account."""
    items = build_item_table(interactions.item_ids, metadata)
    _count_descriptions(items, metadata, funnel)
    users = None if described is None else _join_users(interactions.user_ids, described, funnel)
    for step, number in split.counts:
        funnel.count(step, number)
    funnel.repeat("kept")
    return PreparedData(interactions, items, split.split, funnel.to_polars(), users)


def build_interactions(
    interactions: pl.DataFrame,
    user_ids: pl.Series | None = None,
    item_ids: pl.Series | None = None,
    *,
    tie_seed: int | None = None,
) -> Interactions:
    """Dense ids in order of first appearance, sorted by user and time, ties in the given order.

    Args:
        interactions: ``user_id``, ``item_id``, ``timestamp`` and what else is to be kept.
        user_ids: Where ids are codes, what each stands for; None where they are text.
        item_ids: Likewise.
        tie_seed: Draws the order of what a user did at one time, in place of the given one.
    """
    coder = InteractionCoder()
    coded = coder.encode(interactions).rename({"user_id": "user_idx", "item_id": "item_idx"})
    frame = coded.select("user_idx", "item_idx", pl.exclude("user_idx", "item_idx"))
    if tie_seed is not None:
        frame = frame[np.random.default_rng(tie_seed).permutation(frame.height)]
    users, items = coder.users, coder.items
    return Interactions(
        frame=sort_by_user_and_time(frame),
        user_ids=users.ids() if user_ids is None else user_ids.gather(users.numbers()),
        item_ids=items.ids() if item_ids is None else item_ids.gather(items.numbers()),
    )


def _count_descriptions(items: ItemTable, metadata: pl.DataFrame, funnel: Funnel) -> None:
    """Record what the metadata lack and what they have beside these items."""
    known, needed = metadata["item_id"], items.item_ids
    untitled = needed.is_in(metadata.drop_nulls("title")["item_id"].implode()).not_()
    funnel.count("items without metadata", int(needed.is_in(known.implode()).not_().sum()))
    funnel.count("items titled by their id", int(untitled.sum()))
    funnel.count("metadata of items left out", int(known.is_in(needed.implode()).not_().sum()))


def _join_users(user_ids: pl.Series, described: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """What the source says of these users, in their order."""
    unknown = user_ids.is_in(described["user_id"].implode()).not_()
    funnel.count("users that nothing describes", int(unknown.sum()))
    frame = user_ids.alias("user_id").to_frame()
    return frame.join(described, on="user_id", how="left", maintain_order="left")


def build_item_table(item_ids: pl.Series, metadata: pl.DataFrame) -> ItemTable:
    """The metadata of these items, in their order; the id stands in for an unknown title."""
    frame = item_ids.alias("item_id").to_frame()
    joined = frame.join(metadata, on="item_id", how="left", maintain_order="left")
    return ItemTable(joined.with_columns(pl.col("title").fill_null(pl.col("item_id"))))


def _build_split(interactions: Interactions, config: DataConfig) -> _CountedSplit:
    counts = []
    if config.split == "leave_one_out":
        split = build_leave_one_out(interactions)
    elif config.split == "minionerec":
        split = build_minionerec(interactions)
        counts.append(("validation targets", len(split.target_users("valid"))))
        counts.append(("test targets", len(split.target_users("test"))))
    else:
        split = build_temporal(
            interactions, valid_share=config.valid_share, test_share=config.test_share
        )
        counts.append((TESTED, len(split.target_users("test"))))
    if config.cold_item_share > 0:
        cold = hold_out_items(split, config.cold_item_share, config.cold_item_seed)
        split = cold.split
        counts.append((HELD_OUT, int(cold.items.sum())))
        counts.append((HELD_OUT_WITH, len(interactions) - len(split.items)))
    return _CountedSplit(split, counts)


def _write_split(rows: SortedRows, config: DataConfig, directory: Path) -> list[tuple[str, int]]:
    """`_build_split` of partitions, into files beside those of the interactions; the counts."""
    moments = held_out = None
    if config.split == "temporal":
        moments = choose_moments(
            rows.num_interactions,
            rows.time_of,
            valid_share=config.valid_share,
            test_share=config.test_share,
        )
    if config.cold_item_share > 0:
        held_out = draw_items(rows.num_items, config.cold_item_share, config.cold_item_seed)
    num_tested = num_taught = 0

    def split(
        items: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], times: npt.NDArray[np.int64]
    ) -> SequenceSplit:
        nonlocal num_tested, num_taught
        if moments is None:
            part = leave_one_out(items, offsets, rows.num_items)
        else:
            part = part_in_time(items, offsets, rows.num_items, times, moments)
        num_tested += len(part.target_users("test"))
        if held_out is not None:
            part = without_items(part, held_out)
        num_taught += len(part.items)
        return part

    rows.write(directory, split)
    counts = [] if moments is None else [(TESTED, num_tested)]
    if held_out is not None:
        counts.append((HELD_OUT, int(held_out.sum())))
        counts.append((HELD_OUT_WITH, rows.num_interactions - num_taught))
    return counts
