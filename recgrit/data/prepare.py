"""From a source's files to what every later stage starts from, with an account of each row.

The funnel records what each step dropped: published results on the same data set often differ
because of a silent filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from recgrit.config import Config
from recgrit.data.download import fetch_dataset
from recgrit.data.filtering import (
    count_repeats,
    drop_exact_duplicates,
    filter_k_core,
    find_repeats,
    keep_one_per_item,
    keep_titled,
    keep_within,
)
from recgrit.data.funnel import Funnel
from recgrit.data.interactions import Interactions
from recgrit.data.items import ItemTable
from recgrit.data.minionerec import build_minionerec, keep_short_titles
from recgrit.data.releases import find_release
from recgrit.data.sources import DEFAULT_MAX_MALFORMED_SHARE, TABLE, Source, load_source
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.table import Table, TimeUnit
from recgrit.data.sources.tags import with_tags
from recgrit.data.splits import SequenceSplit, build_leave_one_out, build_temporal, hold_out_items
from recgrit.errors import ConfigError, DataError


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


def prepare(config: DataConfig) -> PreparedData:
    """Read, filter, index and split a data set.

    Raises:
        ConfigError: A setting does not fit the source.
        DataError: Files are missing or malformed, or a filter leaves nothing.
    """
    files = find_input_files(config)
    raw = config.build_source().read(files, max_malformed_share=config.max_malformed_share)
    funnel = Funnel.start(raw)
    metadata, user_ids, item_ids = raw.items, raw.coded.user_ids, raw.coded.item_ids
    described = raw.users
    repeats = find_repeats(raw.coded.frame)
    kept = drop_exact_duplicates(raw.coded.frame, repeats)
    num_read = raw.coded.frame.height
    del raw  # A large part of all memory, once something is dropped from it.
    funnel.add("exact duplicates", kept)
    if config.since is not None or config.until is not None:
        kept = keep_within(kept, config.since, config.until)
        funnel.add(f"not from {config.since or 'ever'} to {config.until or 'ever'}", kept)
    if config.min_weight is not None:
        kept = _filter_by_weight(kept, config)
        funnel.add(f"weight below {config.min_weight:g}", kept)
    if config.repeats != "keep":
        kept = keep_one_per_item(kept, config.repeats)
        funnel.add(f"repeats of an item, the {config.repeats} kept", kept)
    if config.min_title_length:
        kept = keep_titled(kept, _code_items(metadata, item_ids), config.min_title_length)
        funnel.add(f"title shorter than {config.min_title_length}", kept)
    if config.max_title_words is not None:
        kept = keep_short_titles(kept, _code_items(metadata, item_ids), config.max_title_words)
        funnel.add(f"title unknown or of more than {config.max_title_words} words", kept)
    if kept.is_empty():
        raise DataError(
            f"Nothing is left of {num_read} interactions. Loosen data.since, "
            "data.until, data.min_title_length or data.max_title_words."
        )
    kept = _filter_k_core(kept, config)
    funnel.add(
        f"k-core of {config.min_user_interactions} per user, "
        f"{config.min_item_interactions} per item",
        kept,
    )
    # Filters make none.
    num_repeats = 0 if repeats.is_empty() else count_repeats(kept)
    funnel.count("repeats of an item at another time", num_repeats)
    tie_seed = config.tie_seed if config.ties == "shuffle" else None
    interactions = build_interactions(kept, user_ids, item_ids, tie_seed=tie_seed)
    del kept
    items = build_item_table(interactions.item_ids, metadata)
    _count_descriptions(items, metadata, funnel)
    users = None if described is None else _join_users(interactions.user_ids, described, funnel)
    split = _build_split(interactions, config, funnel)
    if config.cold_item_share > 0:
        cold = hold_out_items(split, config.cold_item_share, config.cold_item_seed)
        split = cold.split
        funnel.count("items held out of training", int(cold.items.sum()))
        num_held_out = len(interactions) - len(split.items)
        funnel.count("training interactions held out with them", num_held_out)
    funnel.repeat("kept")
    return PreparedData(interactions, items, split, funnel.to_polars(), users)


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
        frame=_sort_by_user_and_time(frame),
        user_ids=users.ids() if user_ids is None else user_ids.gather(users.numbers()),
        item_ids=items.ids() if item_ids is None else item_ids.gather(items.numbers()),
    )


def _sort_by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """Stable. One number of both, where they fit into one, sorts several times faster than two."""
    user, time = pl.col("user_idx").cast(pl.Int64), pl.col("timestamp")
    first, last = frame["timestamp"].min(), frame["timestamp"].max()
    span = last - first + 1  # type: ignore[operator]
    if (frame["user_idx"].max() + 1) * span >= 2**63:  # type: ignore[operator]
        return frame.sort("user_idx", "timestamp", maintain_order=True)
    key = (user * span + (time - first)).alias("key")
    if frame.select(key.is_sorted()).item():
        return frame
    return frame.with_columns(key).sort("key", maintain_order=True).drop("key")


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


def _code_items(metadata: pl.DataFrame, item_ids: pl.Series) -> pl.DataFrame:
    """The metadata of items that interactions name, with their codes."""
    codes = item_ids.alias("item_id").to_frame().with_row_index("code")
    joined = metadata.join(codes, on="item_id", how="inner")
    return joined.with_columns(pl.col("code").cast(pl.Int32).alias("item_id"))


def _build_split(interactions: Interactions, config: DataConfig, funnel: Funnel) -> SequenceSplit:
    if config.split == "leave_one_out":
        return build_leave_one_out(interactions)
    if config.split == "minionerec":
        split = build_minionerec(interactions)
        funnel.count("validation targets", len(split.target_users("valid")))
        funnel.count("test targets", len(split.target_users("test")))
        return split
    split = build_temporal(
        interactions, valid_share=config.valid_share, test_share=config.test_share
    )
    funnel.count("users with a test target", len(split.target_users("test")))
    return split


def _filter_by_weight(interactions: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    if "weight" not in interactions.columns:
        raise ConfigError(
            f"data.min_weight is {config.min_weight:g}, but these files of {config.source} have "
            "no ratings. Set data.min_weight=null."
        )
    # In float32 as the column, else 3.1 would not be at least 3.1.
    kept = interactions.filter(pl.col("weight") >= pl.lit(config.min_weight, dtype=pl.Float32))
    if kept.is_empty():
        raise DataError(
            f"No interaction has a weight of at least {config.min_weight:g}; the largest is "
            f"{interactions['weight'].to_numpy().max():g}. Lower data.min_weight."
        )
    return kept


def _filter_k_core(interactions: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    per_user, per_item = config.min_user_interactions, config.min_item_interactions
    kept = filter_k_core(interactions, per_user, per_item)
    if kept.is_empty():
        raise DataError(
            f"None of {interactions.height} interactions is left after dropping users with fewer "
            f"than {per_user} interactions and items with fewer than {per_item}. Lower "
            "data.min_user_interactions or data.min_item_interactions."
        )
    return kept
