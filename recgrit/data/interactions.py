"""Interactions of users with items, with dense indices and in time order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from polars.io.plugins import register_io_source

from recgrit.data.filtering import FRACTION, time_columns
from recgrit.disk import replacing
from recgrit.errors import ArtifactError, DataError, ReplacedError
from recgrit.summaries import Summarized

FILE_NAME = "interactions.parquet"
# Rows of a row group. The number is fixed, so that the bytes of the file do not depend on the sizes
# of the parts.
ROW_GROUP_SIZE = 2**18


class Interactions(Summarized):
    """Interactions with dense user and item indices, sorted by user, then time, then file order.

    Saved interactions are read when `frame` is first used. Ids and counts are known without it, and
    most stages read the split instead.

    Args:
        frame: Rows with the columns ``user_idx`` int32, ``item_idx`` int32, ``timestamp`` int64
            (seconds since 1970, UTC), optionally ``weight`` float32 (a rating) and optionally
            ``event`` (the event type). No nulls.
        user_ids: External id of each user; row i belongs to ``user_idx`` i.
        item_ids: External id of each item; row i belongs to ``item_idx`` i.

    Raises:
        DataError: Columns are missing or hold nulls, indices are not dense, rows are out of order,
            or ids are repeated.
    """

    user_ids: pl.Series
    item_ids: pl.Series

    def __init__(self, frame: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> None:
        _check(frame, user_ids, item_ids)
        self.user_ids, self.item_ids = user_ids, item_ids
        self._frame: pl.DataFrame | None = frame
        self._num_rows = frame.height
        # Path of the file from which the frame is read. None if the frame was given.
        self._path: Path | None = None
        self._identity: tuple[int, ...] = ()

    @property
    def frame(self) -> pl.DataFrame:
        """Rows of the interactions, which are read from disk at the first use.

        Raises:
            ArtifactError: The file of saved interactions is damaged, missing or replaced.
            DataError: The file does not hold valid interactions.
        """
        if self._frame is None:
            assert self._path is not None
            if _identify(self._path) != self._identity:
                raise ReplacedError(
                    f"{self._path} was replaced since it was opened: open it again."
                )
            try:
                frame = pl.read_parquet(self._path, glob=False)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise ArtifactError(
                    f"{self._path} cannot be read because it is damaged or missing: {error}. "
                    "Delete the folder and run again."
                ) from error
            _check(frame, self.user_ids, self.item_ids)
            self._frame = frame
        return self._frame

    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """Return the counts and examples of ids, and the time span if the rows are already read."""
        facts = {
            "users": f"{self.num_users:,}, such as {', '.join(self.user_ids.head(3))}",
            "items": f"{self.num_items:,}, such as {', '.join(self.item_ids.head(3))}",
        }
        if self._frame is not None and len(self):
            times = self._frame["timestamp"].to_numpy()
            first, last = pl.from_epoch(pl.Series([times.min(), times.max()])).dt.date()
            facts["time"] = f"{first} to {last}, in UTC"
        return f"{len(self):,} interactions", facts

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    def __len__(self) -> int:
        return self._num_rows

    def to_polars(self) -> pl.DataFrame:
        """Return a table with one row per interaction and the external ids as first columns."""
        return self.frame.select(
            pl.lit(self.user_ids).gather(pl.col("user_idx")).alias("user_id"),
            pl.lit(self.item_ids).gather(pl.col("item_idx")).alias("item_id"),
            pl.all(),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the table of `to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()

    def save(self, directory: Path) -> None:
        """Write ``interactions.parquet``, ``users.parquet`` and ``item_ids.parquet``."""
        if self._path is not None and self._frame is None:
            _link_or_copy(self._path, directory / FILE_NAME)
        else:
            _write(self.frame.lazy(), directory / FILE_NAME)
        save_ids(self.user_ids, self.item_ids, directory)

    @classmethod
    def load(cls, directory: Path) -> Interactions:
        """Open the interactions that `save` wrote, without reading their rows yet.

        Raises:
            DataError: Ids are missing or repeated, or are not text.
        """
        path = directory / FILE_NAME
        loaded = cls.__new__(cls)
        loaded.user_ids = pl.read_parquet(directory / "users.parquet", glob=False)["user_id"]
        loaded.item_ids = pl.read_parquet(directory / "item_ids.parquet", glob=False)["item_id"]
        for what, ids in (("users", loaded.user_ids), ("items", loaded.item_ids)):
            if ids.dtype != pl.String or ids.null_count() or ids.n_unique() != len(ids):
                raise DataError(f"The ids of {what} are not text, are null or are repeated.")
        loaded._frame, loaded._path, loaded._identity = None, path, _identify(path)
        # The number of rows stands at the end of the file. A truncated file raises an error here.
        loaded._num_rows = int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        return loaded


def write_interactions(
    parts: Callable[[], Iterator[pl.DataFrame]], schema: pl.Schema, directory: Path
) -> None:
    """Write ``interactions.parquet`` from consecutive parts, with one part in memory at a time.

    The file is equal, byte for byte, to the file that `Interactions.save` writes for all parts
    together.

    Args:
        parts: Function that returns an iterator over the parts, in order.
        schema: Columns of the parts and their types.
        directory: Folder of the file.
    """

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        return parts()

    _write(register_io_source(read, schema=schema), directory / FILE_NAME)


def save_ids(user_ids: pl.Series, item_ids: pl.Series, directory: Path) -> None:
    """Write ``users.parquet`` and ``item_ids.parquet`` into a folder."""
    user_ids.alias("user_id").to_frame().write_parquet(directory / "users.parquet")
    item_ids.alias("item_id").to_frame().write_parquet(directory / "item_ids.parquet")


def sort_by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by user and time, keep the order of equal rows, and drop fractions of seconds.

    Fractions of seconds are used for the order. User and time are combined into one number if it
    fits into 64 bits, because sorting one number is several times faster than sorting two.
    """
    if FRACTION in frame.columns:
        exact = ["user_idx", *time_columns(frame)]
        return frame.sort(exact, maintain_order=True).drop(FRACTION)
    user, time = pl.col("user_idx").cast(pl.Int64), pl.col("timestamp")
    first, last = frame["timestamp"].min(), frame["timestamp"].max()
    span = last - first + 1  # type: ignore[operator]
    if (frame["user_idx"].max() + 1) * span >= 2**63:  # type: ignore[operator]
        return frame.sort("user_idx", "timestamp", maintain_order=True)
    key = (user * span + (time - first)).alias("key")
    if frame.select(key.is_sorted()).item():
        return frame
    return frame.with_columns(key).sort("key", maintain_order=True).drop("key")


def _write(frame: pl.LazyFrame, path: Path) -> None:
    # An existing file is replaced and not overwritten, because another run may share it by a link.
    with replacing(path) as temporary:
        frame.sink_parquet(temporary, row_group_size=ROW_GROUP_SIZE, engine="streaming")


def _identify(path: Path) -> tuple[int, ...]:
    """Return device, inode, size and modification time, which differ if the file is replaced.

    A missing file gives an empty tuple.
    """
    try:
        state = path.stat()
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name by a hard link, or copy it if the disk allows no link.

    A link is safe because the file is never written again.
    """
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _check(frame: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series) -> None:
    expected = ["user_idx", "item_idx", "timestamp"]
    missing = [name for name in expected if name not in frame.columns]
    if missing:
        raise DataError(f"Interactions need the columns {expected}; missing: {missing}.")
    if frame.null_count().sum_horizontal().item():
        raise DataError("Interactions must not hold nulls; drop or fill these rows first.")
    for name, ids in (("user", user_ids), ("item", item_ids)):
        if ids.n_unique() != len(ids):
            raise DataError(f"The {name}_ids must be unique; some are repeated.")
        if not _is_dense(frame[f"{name}_idx"], len(ids)):
            raise DataError(
                f"{name}_idx must be dense from 0 to {len(ids) - 1}: every {name} needs at "
                "least one interaction."
            )
    if not _in_order(frame):
        raise DataError("Interactions must be sorted by user_idx, then timestamp.")


def _in_order(frame: pl.DataFrame) -> bool:
    user, time = pl.col("user_idx"), pl.col("timestamp")
    later = (user > user.shift()) | ((user == user.shift()) & (time >= time.shift()))
    return bool(frame.select(later.fill_null(True).all()).item())


def _is_dense(indices: pl.Series, num: int) -> bool:
    """Return whether the indices include every number from 0 to ``num - 1`` and no other."""
    if indices.is_empty() or not 0 <= indices.min() <= indices.max() < num:  # type: ignore[operator]
        return num == 0 and indices.is_empty()
    seen = np.zeros(num, np.bool_)
    seen[indices.to_numpy()] = True
    return bool(seen.all())
