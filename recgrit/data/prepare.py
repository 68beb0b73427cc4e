"""Preparation of a data set: from raw files to interactions, items and their split.

The preparation keeps a funnel, which records how many interactions each step dropped. Published
results on the same data set often differ because of a filter that nobody reports.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from recgrit.data.config import DataConfig
from recgrit.data.download import fetch_dataset
from recgrit.data.funnel import Funnel
from recgrit.data.id_columns import ITEM_SETTINGS, USER_SETTINGS, require_meeting_ids
from recgrit.data.interactions import Interactions, save_ids, write_interactions
from recgrit.data.items import ItemTable
from recgrit.data.minionerec import minionerec
from recgrit.data.partitions import MemoryStore, RowPartitions, Scratch
from recgrit.data.protocols import (
    CutOffTimes,
    Splitter,
    choose_cut_off_times,
    draw_items,
    leave_one_out,
    split_by_time,
)
from recgrit.data.releases import find_release
from recgrit.data.rows import Rows, SortedRows
from recgrit.data.sources import TABLE, Source, build_source
from recgrit.data.sources.coding import InteractionCoder
from recgrit.data.sources.table import Table
from recgrit.data.splits import SequenceSplit, Split, SplitWriter
from recgrit.data.steps import build_steps, refuse_nothing_left
from recgrit.data.user_histories import LEFT_OUT_NAME, UserHistories
from recgrit.disk import explain_write_failure
from recgrit.errors import ConfigError, DataError, RecgritError

USERS_NAME = "user_features.parquet"


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set: dense interactions, their items and their split.

    Args:
        interactions: Interactions that are left after all filters.
        items: Item table with one row per item that has interactions. Row i is ``item_idx`` i.
        split: Split of the sequences of these interactions. Training parts lack the items that are
            held out of training.
        funnel: Table with one row per step, as `Funnel.to_polars` describes.
        left_out: Users of the log who have too few interactions, with their histories.
        users: User table of the source, with one row per user and ``user_id`` first. None if the
            source has no user table. A model uses it only if ``retriever.user_attributes`` names
            columns, and the evaluation only if ``evaluation.segments`` does. Exports include it.

    Raises:
        DataError: The parts do not belong together.
    """

    interactions: Interactions
    items: ItemTable
    split: SequenceSplit
    funnel: pl.DataFrame
    left_out: UserHistories
    users: pl.DataFrame | None = None

    def __post_init__(self) -> None:
        if not self.items.item_ids.equals(self.interactions.item_ids):
            raise DataError("The item table must list the items of the interactions, in order.")
        if self.users is not None and not self.users["user_id"].equals(self.interactions.user_ids):
            raise DataError("The user table must list the users of the interactions, in order.")
        sizes = (self.split.num_users, self.split.num_items)
        expected = (self.interactions.num_users, self.interactions.num_items)
        if sizes != expected:
            raise DataError(f"The split has {sizes} users and items, but the data have {expected}.")
        # The split has fewer interactions than the data if items are held out of training.
        num_own = int(self.split.offsets[self.split.num_users])
        if num_own > len(self.interactions):
            raise DataError(
                f"The split has {num_own} interactions, but the data have only "
                f"{len(self.interactions)}."
            )

    def save(self, directory: Path) -> None:
        """Write all parts, with the funnel as ``funnel.parquet``, into an existing folder."""
        self.interactions.save(directory)
        self.items.save(directory)
        self.split.save(directory)
        self.funnel.write_parquet(directory / "funnel.parquet")
        if len(self.left_out.user_ids):
            self.left_out.save(directory / LEFT_OUT_NAME)
        if self.users is not None:
            self.users.write_parquet(directory / USERS_NAME)

    @classmethod
    def load(cls, directory: Path) -> PreparedData:
        """Read the data set that `save` wrote.

        Raises:
            DataError: The parts are about different users or items.
        """
        interactions = Interactions.load(directory)
        users = directory / USERS_NAME
        loaded = cls(
            interactions=interactions,
            items=ItemTable.load(directory),
            split=SequenceSplit.load(directory, num_items=interactions.num_items).with_own_people(),
            funnel=pl.read_parquet(directory / "funnel.parquet", glob=False),
            left_out=UserHistories.load(directory / LEFT_OUT_NAME, interactions.num_items),
            users=pl.read_parquet(users, glob=False) if users.is_file() else None,
        )
        if not loaded.items.item_ids.equals(interactions.item_ids):
            raise DataError("The item table and the interactions have different items.")
        if loaded.split.num_users != interactions.num_users:
            raise DataError("The split and the interactions have different users.")
        return loaded


def find_input_files(config: DataConfig) -> tuple[Path, ...]:
    """Return the raw files that `prepare` reads, and fetch published files if no path is set.

    Args:
        config: Settings of the data.

    Raises:
        ConfigError: ``path`` is not set, and the source cannot be fetched.
        DataError: The files do not exist or cannot be fetched.
    """
    source = _build_source(config)
    if config.path is not None:
        return source.find_files(config.path)
    release = find_release(config.source)
    if release is None:
        raise ConfigError(
            f"data.path is not set: the source {config.source} needs {source.expected}. "
            "Provide the files and set data.path=FOLDER."
        )
    category = config.source.partition("/")[2]
    return source.find_files(
        fetch_dataset(release, config.download_dir, category=category, mirrors=config.mirrors)
    )


def prepare(config: DataConfig, *, scratch_dir: Path | None = None) -> PreparedData:
    """Read, filter, index and split a data set.

    Args:
        config: Settings of the data.
        scratch_dir: Folder for partitions that are written to disk during the preparation. None
            uses the system's folder for temporary files.

    Raises:
        ConfigError: A setting does not fit the source.
        DataError: Files are missing or malformed, or a filter leaves nothing.
    """
    files = find_input_files(config)
    if config.partition_users is None:
        return _prepare(config, files, None)
    folder = TemporaryDirectory(prefix="recgrit-", dir=scratch_dir)
    try:
        data = _prepare(config, files, Scratch(Path(folder.name), config.partition_users))
    except Exception as error:
        folder.cleanup()
        reason = None if isinstance(error, RecgritError) else explain_write_failure(error)
        if reason is None:
            raise
        raise DataError(
            f"Cannot write partitions into {folder.name}: {reason}. They need about 40 bytes an "
            "interaction: free disk space, or name another folder (run.dir=PATH, or the "
            "environment variable TMPDIR outside a run)."
        ) from error
    # The folder is deleted only when the interactions are, because they read their rows from it.
    weakref.finalize(data.interactions, folder.cleanup)
    return data


def _prepare(config: DataConfig, files: tuple[Path, ...], scratch: Scratch | None) -> PreparedData:
    """Run all steps of the preparation, on one partition in memory or on many on disk."""
    # Read.
    on_disk = None if scratch is None else RowPartitions(scratch.open_store("read"))
    coder = InteractionCoder(on_disk)
    raw = _build_source(config).read(files, config.max_malformed_share, coder)
    own = config.source == TABLE
    require_meeting_ids(raw.coded.item_ids, raw.items["item_id"], ITEM_SETTINGS if own else None)
    if raw.users is not None:
        require_meeting_ids(
            raw.coded.user_ids, raw.users["user_id"], USER_SETTINGS if own else None, "user"
        )
    funnel, steps = Funnel.start(raw), build_steps(config, raw)
    user_ids, item_ids = raw.coded.user_ids, raw.coded.item_ids
    metadata, described = raw.items, raw.users
    rows = Rows(
        MemoryStore(raw.coded.frame) if on_disk is None else on_disk,
        num_users=len(user_ids),
        num_items=len(item_ids),
        scratch=scratch,
    )
    del coder, raw  # Free the ids, and all rows if they are in memory.

    # Drop duplicates and what the settings leave out.
    tallies = rows.filter([step.keep for step in steps])
    names = ["without user or item id", "exact duplicates", *(step.name for step in steps)]
    for step, tally in zip(names, tallies, strict=True):
        funnel.add(step, tally)
    refuse_nothing_left(steps, tallies)

    # Drop rare users and items.
    least_user, least_item = config.min_user_interactions, config.min_item_interactions
    core = rows.filter_k_core(least_user, least_item)
    if not core.interactions:
        raise DataError(
            f"None of {tallies[-1].interactions} interactions is left after dropping users with "
            f"fewer than {least_user} interactions and items with fewer than {least_item}. Lower "
            "data.min_user_interactions or data.min_item_interactions."
        )
    funnel.add(f"k-core of {least_user} per user, {least_item} per item", core)

    # Number users and items by first appearance, and sort by user and time.
    kept = rows.index()
    funnel.count("repeats of an item at another time", rows.num_repeats)
    left_out = rows.find_left_out(kept, user_ids)
    user_ids, item_ids = user_ids.gather(kept.users), item_ids.gather(kept.items)
    sorted_rows = rows.sort(
        kept,
        tie_seed=config.tie_seed if config.ties == "shuffle" else None,
        events=config.event_types,
    )
    del rows, kept  # Free the arrays with an entry per user, which are large with many users.

    # Split.
    splitter = _build_splitter(config, sorted_rows, core.interactions)
    interactions, split = _split(sorted_rows, splitter, user_ids, item_ids, scratch)

    # Join the tables of items and users, and complete the funnel.
    items = build_item_table(item_ids, metadata)
    _count_descriptions(items, metadata, funnel)
    users = None if described is None else _join_users(user_ids, described, funnel)
    for step, number in splitter.counts(len(interactions) - len(split.items)):
        funnel.count(step, number)
    funnel.repeat("kept")
    return PreparedData(interactions, items, split, funnel.to_polars(), left_out, users)


def _build_source(config: DataConfig) -> Source:
    table = Table(**config.table.model_dump(), event_types=config.event_types)
    return build_source(config.source, table=table, movie_tags=config.movie_tags)


def _build_splitter(config: DataConfig, rows: SortedRows, num_interactions: int) -> Splitter:
    """Return the splitter for the protocol that the settings name."""
    held_out = None
    if config.cold_item_share > 0:
        held_out = draw_items(rows.num_items, config.cold_item_share, config.cold_item_seed)
    if config.split == "leave_one_out":
        counted: Mapping[Split, str] = {}
        if config.event_types is not None:
            counted = {
                "test": f"users with a test target ({', '.join(config.event_types.targets)})"
            }
        return Splitter(leave_one_out, counted, held_out)
    if config.split == "minionerec":
        return Splitter(minionerec, {"valid": "validation targets", "test": "test targets"})
    if config.cut_off_times is not None:
        cut_offs = CutOffTimes(*config.cut_off_times)
    else:
        cut_offs = choose_cut_off_times(
            num_interactions,
            rows.time_of,
            valid_share=config.valid_share,
            test_share=config.test_share,
        )
    return Splitter(
        partial(split_by_time, cut_offs=cut_offs), {"test": "users with a test target"}, held_out
    )


def _split(
    rows: SortedRows,
    splitter: Splitter,
    user_ids: pl.Series,
    item_ids: pl.Series,
    scratch: Scratch | None,
) -> tuple[Interactions, SequenceSplit]:
    """Split all rows, and return the interactions and their split.

    With ``scratch`` both are written to files partition by partition and read from there.
    """
    parts = ((frame, splitter.split(sequences)) for frame, sequences in rows.parts())
    if scratch is None:
        [(frame, split)] = parts
        return Interactions(frame, user_ids, item_ids), split
    folder = scratch.folder / "prepared"
    folder.mkdir()
    save_ids(user_ids, item_ids, folder)
    with SplitWriter(folder, len(user_ids)) as writer:

        def write_splits() -> Iterator[pl.DataFrame]:
            for frame, split in parts:
                writer.add(split)
                yield frame

        write_interactions(write_splits, rows.schema, folder)
    interactions = Interactions.load(folder)
    return interactions, SequenceSplit.load(folder, num_items=interactions.num_items)


def _count_descriptions(items: ItemTable, metadata: pl.DataFrame, funnel: Funnel) -> None:
    """Record the numbers of items without metadata and of metadata without an item."""
    known, needed = metadata["item_id"], items.item_ids
    untitled = needed.is_in(metadata.drop_nulls("title")["item_id"].implode()).not_()
    funnel.count("items without metadata", int(needed.is_in(known.implode()).not_().sum()))
    funnel.count("items titled by their id", int(untitled.sum()))
    funnel.count("metadata of items left out", int(known.is_in(needed.implode()).not_().sum()))


def _join_users(user_ids: pl.Series, described: pl.DataFrame, funnel: Funnel) -> pl.DataFrame:
    """Return the rows of the user table for these users, in order, and count missing users."""
    unknown = user_ids.is_in(described["user_id"].implode()).not_()
    funnel.count("users without attributes", int(unknown.sum()))
    frame = user_ids.alias("user_id").to_frame()
    return frame.join(described, on="user_id", how="left", maintain_order="left")


def build_item_table(item_ids: pl.Series, metadata: pl.DataFrame) -> ItemTable:
    """Return the item table of these items, in their order.

    An item without a title gets its id as title.

    Args:
        item_ids: External id of each item.
        metadata: Item table of the source, with ``item_id``, ``title`` and further columns.
    """
    frame = item_ids.alias("item_id").to_frame()
    joined = frame.join(metadata, on="item_id", how="left", maintain_order="left")
    return ItemTable(joined.with_columns(pl.col("title").fill_null(pl.col("item_id"))))
