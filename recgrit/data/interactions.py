"""Which user interacted with which item, and when: dense indices, in time order."""

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
# Fixed, so that the file's bytes do not depend on how many rows were at hand at a time.
ROW_GROUP_SIZE = 2**18


class Interactions(Summarized):
    """Interactions with dense user and item indices, sorted by user, then time, then file order.

    What was saved is read when `frame` is first asked for: ids and counts do without it, and most
    stages read the split alone.

    Args:
        frame: Columns ``user_idx`` int32, ``item_idx`` int32, ``timestamp`` int64 (seconds UTC)
            and, where the source has one, ``weight`` float32 (a rating). No nulls.
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
        # Where the frame can be read, if it was not given.
        self._path: Path | None = None
        self._identity: tuple[int, ...] = ()

    @property
    def frame(self) -> pl.DataFrame:
        """The rows.

        Raises:
            ArtifactError: The file they were saved in is damaged.
            DataError: What it holds is not in order.
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
                    f"{self._path} cannot be read, it is damaged or gone: {error}. Delete the "
                    "folder and run again."
                ) from error
            _check(frame, self.user_ids, self.item_ids)
            self._frame = frame
        return self._frame

    def summarize(self) -> tuple[str, Mapping[str, str]]:
        """Counts and ids, and the time they span where the rows are read already."""
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
        """One row per interaction, with the external ids first."""
        return self.frame.select(
            pl.lit(self.user_ids).gather(pl.col("user_idx")).alias("user_id"),
            pl.lit(self.item_ids).gather(pl.col("item_idx")).alias("item_id"),
            pl.all(),
        )

    def to_pandas(self) -> pd.DataFrame:
        """`to_polars` as a pandas frame."""
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
        """What `save` wrote, its rows to be read when they are asked for.

        Raises:
            DataError: Ids are missing, come twice or are no text.
        """
        path = directory / FILE_NAME
        loaded = cls.__new__(cls)
        loaded.user_ids = pl.read_parquet(directory / "users.parquet", glob=False)["user_id"]
        loaded.item_ids = pl.read_parquet(directory / "item_ids.parquet", glob=False)["item_id"]
        for what, ids in (("users", loaded.user_ids), ("items", loaded.item_ids)):
            if ids.dtype != pl.String or ids.null_count() or ids.n_unique() != len(ids):
                raise DataError(f"The ids of {what} are no texts, have gaps or come twice.")
        loaded._frame, loaded._path, loaded._identity = None, path, _identify(path)
        # Of the file's end only, which a file that was cut lacks.
        loaded._num_rows = int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        return loaded


def write_interactions(
    parts: Callable[[], Iterator[pl.DataFrame]], schema: pl.Schema, directory: Path
) -> None:
    """Write ``interactions.parquet`` of parts that follow one another, one in memory at a time.

    The file is the one that `Interactions.save` writes of them all, byte for byte.
    """

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        return parts()

    _write(register_io_source(read, schema=schema), directory / FILE_NAME)


def save_ids(user_ids: pl.Series, item_ids: pl.Series, directory: Path) -> None:
    """Write ``users.parquet`` and ``item_ids.parquet``."""
    user_ids.alias("user_id").to_frame().write_parquet(directory / "users.parquet")
    item_ids.alias("item_id").to_frame().write_parquet(directory / "item_ids.parquet")


def sort_by_user_and_time(frame: pl.DataFrame) -> pl.DataFrame:
    """Stable; fractions of seconds count, and are dropped.

    One number of user and time, where they fit into one, sorts several times faster than two.
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
    # Not into a file that is there, which may have another name in another run.
    with replacing(path) as temporary:
        frame.sink_parquet(temporary, row_group_size=ROW_GROUP_SIZE, engine="streaming")


def _identify(path: Path) -> tuple[int, ...]:
    """What tells a file from another one of its name; nothing where there is none."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _link_or_copy(source: Path, target: Path) -> None:
    """Two names of one file where the disk allows; it is never written again."""
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
            raise DataError(f"Every {name}_id must stand for one {name}; some are repeated.")
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
    """Whether these are all the numbers from 0 to ``num - 1``, each at least once."""
    if indices.is_empty() or not 0 <= indices.min() <= indices.max() < num:  # type: ignore[operator]
        return num == 0 and indices.is_empty()
    seen = np.zeros(num, np.bool_)
    seen[indices.to_numpy()] = True
    return bool(seen.all())
