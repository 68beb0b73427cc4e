"""The function `recgrit.fit`, which runs the whole pipeline on data frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl

from recgrit.config import read_yaml, validate
from recgrit.disk import replacing
from recgrit.errors import ArtifactError, ConfigError, DataError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment

if TYPE_CHECKING:
    from recgrit.runs import Run

Frame = pl.DataFrame | pd.DataFrame
# Folder in the run folder that holds the data frames as Parquet files, which the run reads.
INPUTS = "inputs"
# Settings that name the files which the frames replace.
_FRAME_SETTINGS = {
    "data__source",
    "data__path",
    "data__table__items_path",
    "data__table__users_path",
}


def fit(
    events: Frame,
    items: Frame | None = None,
    *,
    users: Frame | None = None,
    config: Path | str | None = None,
    until: str = "recommend",
    force: bool = False,
    **settings: Any,
) -> Run:
    """Run the whole pipeline on data frames: from interactions to a model that recommends.

    The frames are written into ``inputs/`` of the run folder, as ``events.parquet``,
    ``items.parquet`` and ``users.parquet``, and are read like any files of your own
    (`data.source=table`). A second call with the same frames and settings does nothing.
    In pandas, an index with a name is a column.

    Args:
        events: One row per interaction, with columns of users, items and times.
        items: One row per item, with the same ids; None where only ids are known.
        users: One row per user, with the same ids, for `evaluation.segments` and
            `retriever.user_attributes`; None where only ids are known.
        config: A YAML file with settings, such as one that ``recgrit init`` wrote.
        until: The last stage to run, such as ``train``.
        force: Redo stages that are up to date.
        **settings: Settings by their names with two underscores in place of each point
            (``retriever__epochs=3``), or a section as a mapping (``retriever={"epochs": 3}``).
            ``run__dir`` is the run folder, and ``data__table__user_id`` names the column of user
            ids.

    Returns:
        The run, finished up to the stage ``until``.

    Raises:
        ConfigError: A setting is unknown or does not fit.
        DataError: An argument is not a data frame, or its values cannot be written as a table.

    Example:
        ``recgrit.fit(log, goods, data__table__user_id="customer", run__dir="runs/shop")``
    """
    values = {} if config is None else read_yaml(Path(config))
    for name, value in settings.items():
        _set(values, name.split("__"), value)
    data = dict(values.get("data") or {})
    table = dict(data.get("table") or {})
    if given := _FRAME_SETTINGS & settings.keys():
        raise ConfigError(
            f"{min(given)} cannot be set with data frames, because they are the data: leave it out."
        )
    data["source"] = "table"
    found = validate(ExperimentConfig, {**values, "data": data}, "the settings")
    folder = found.run.dir / INPUTS
    _write(events, folder / "events.parquet", "events")
    data["path"] = folder / "events.parquet"
    for name, frame in (("items", items), ("users", users)):
        table[f"{name}_path"] = None
        if frame is not None:
            _write(frame, folder / f"{name}.parquet", name)
            table[f"{name}_path"] = folder / f"{name}.parquet"
    data["table"] = table
    run = {"dir": found.run.dir, "cache_dir": found.run.cache_dir}
    complete = validate(ExperimentConfig, {**values, "data": data, "run": run}, "the settings")
    run_experiment(complete, until=until, force=force)
    from recgrit.runs import Run

    return Run(found.run.dir)


def _set(values: dict[str, Any], names: list[str], value: Any) -> None:
    """Set a value by the names of its sections and key; merge a mapping into an existing one."""
    *sections, last = names
    for section in sections:
        below = values.get(section)
        # A section may be given as one word, its kind: engine="ray" stands for engine.kind="ray".
        below = {"kind": below} if isinstance(below, str) else dict(below or {})
        values[section] = below
        values = below
    before = values.get(last)
    is_section = isinstance(value, Mapping) and isinstance(before, Mapping)
    values[last] = {**before, **value} if is_section else value  # type: ignore[dict-item]


def _write(frame: Frame, path: Path, name: str) -> None:
    """Write a data frame as Parquet atomically.

    Raises:
        ArtifactError: The folder cannot be written to.
        DataError: The value is not a data frame, or Parquet cannot hold its columns.
    """
    table = _to_polars(frame, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            table.write_parquet(temporary)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror or error}. Name another folder with run__dir."
        ) from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name} cannot be written as Parquet: {error}.") from None


def _to_polars(frame: Frame, name: str) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"{name} is a {type(frame).__name__}: expected a data frame of pandas or polars. For "
            "files, set data.path; 'recgrit init --events FILE' writes such a config."
        )
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{name} has two columns {twice!r}: give each a name of its own.")
    columns = {}
    for column in frame.columns:
        try:
            columns[str(column)] = pl.from_pandas(frame[column])
        except Exception as error:  # pandas, Arrow and polars raise their own errors.
            raise DataError(
                f"{name}: the column {column!r} holds values of several types ({error}). Make "
                "them one type, such as text with .astype(str)."
            ) from None
    return pl.DataFrame(columns)
