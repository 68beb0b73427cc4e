"""The reading and writing of recommendation lists of other tools, so that they can be evaluated.

The lists are a table with one row per recommended item. Its columns are ``user_id``, ``item_id``
and either ``rank`` (counted from 1) or ``score`` (higher is better). If a split has several targets
per user, the column ``row`` replaces ``user_id``. It holds the number of the line of the exported
test or validation file whose target the list is for. Lines after the header are counted from 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recgrit.data.damage import TABLE_DAMAGE, read_parquet
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.errors import DataError


def read_lists(
    path: Path,
    split: SequenceSplit,
    split_name: Split,
    user_ids: pl.Series,
    item_ids: pl.Series,
) -> Recommendations:
    """Read recommendation lists from a Parquet, CSV or tab-separated file.

    Args:
        path: File with the table of lists.
        split: Split that the lists were made for.
        split_name: Part of the split whose targets the lists are for, ``"valid"`` or ``"test"``.
        user_ids: External id of each user, in the order of ``user_idx``.
        item_ids: External id of each item, in the order of ``item_idx``.

    Raises:
        DataError: The file cannot be read or is empty, a column is missing, a rank or score is not
            a finite number, a user or an item is not in the split, or two items of a list have the
            same rank.
    """
    rows = _read_table(path)
    key = "user_id" if split.owners is None else "row"
    order = next((name for name in ("rank", "score") if name in rows.columns), "rank")
    missing = [name for name in (key, "item_id", order) if name not in rows.columns]
    if missing:
        reason = (
            ""
            if split.owners is None
            else " This split has several targets per user: row is the number of the target's "
            f"line, from 0, in the exported .{split_name}.inter file."
        )
        raise DataError(
            f"{path} lacks {', '.join(missing)}: expected {key}, item_id and rank or score, got "
            f"{', '.join(rows.columns)}.{reason}"
        )
    places = pl.Series("place", rows[order].cast(pl.Float64, strict=False))
    if not places.is_finite().fill_null(False).all():
        raise DataError(f"{path}: every {order} must be a number.")
    if key == "user_id":
        known = dict(zip(user_ids, range(len(user_ids)), strict=True))
    else:
        targets = split.target_users(split_name)
        known = {str(row): int(sequence) for row, sequence in enumerate(targets)}
    lists = pl.DataFrame(
        {
            "list": _look_up(path, rows[key], known, key),
            "item": _look_up(
                path,
                rows["item_id"],
                dict(zip(item_ids, range(len(item_ids)), strict=True)),
                "item_id",
            ),
            "place": places if order == "rank" else -places,
        }
    )
    if order == "rank" and lists.select("list", "place").is_duplicated().any():
        raise DataError(f"{path}: a list has two items with the same rank.")
    lists = lists.sort("list", "place", maintain_order=True).with_columns(
        pl.int_range(pl.len()).over("list").alias("rank")
    )
    names = lists["list"].unique(maintain_order=True)
    row_of = pl.DataFrame({"list": names, "at": np.arange(len(names))})
    at = lists.join(row_of, on="list", how="left", maintain_order="left")
    shape = (len(names), int(at["rank"].to_numpy().max()) + 1)
    items = np.full(shape, NO_ITEM, dtype=np.int32)
    scores = np.full(shape, -np.inf, dtype=np.float32)
    cells = (at["at"].to_numpy(), at["rank"].to_numpy())
    items[cells], scores[cells] = at["item"].to_numpy(), -at["place"].to_numpy()
    return Recommendations(names.to_numpy().astype(np.int64), items, scores)


def _look_up(path: Path, names: pl.Series, known: dict[str, int], what: str) -> pl.Series:
    found = pl.Series([known.get(name) for name in names.cast(pl.String)], dtype=pl.Int64)
    if found.null_count():
        unknown = names.filter(found.is_null()).unique(maintain_order=True)
        raise DataError(
            f"{path}: {len(unknown)} values of {what} are not in this run, the first "
            f"{unknown.head(3).to_list()}. Use the ids of the exported files."
        )
    return found


def _read_table(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            rows = read_parquet(path)
        else:
            separator = "\t" if path.suffix == ".tsv" else ","
            rows = pl.read_csv(path, infer_schema=False, separator=separator, glob=False)
    except TABLE_DAMAGE as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as a table of lists ({reason}): expected Parquet, .csv or .tsv."
        ) from None
    if rows.is_empty():
        raise DataError(f"{path} holds no lists.")
    return rows


def without_history(
    lists: Recommendations, split: SequenceSplit, split_name: Split
) -> Recommendations:
    """Return lists from which the items of the history before the target are filtered out.

    Filtering makes a list shorter. To evaluate k items, pass lists that are longer than k by the
    length of the history.

    Args:
        lists: Lists by sequence of the split.
        split: Split that the lists were made for.
        split_name: Part of the split whose targets the lists are for, ``"valid"`` or ``"test"``.
    """
    items, scores = np.full_like(lists.items, NO_ITEM), np.full_like(lists.scores, -np.inf)
    for row, sequence in enumerate(lists.users.tolist()):
        ranked = lists.items[row]
        kept = (ranked != NO_ITEM) & ~np.isin(ranked, split.history(sequence, split_name))
        items[row, : kept.sum()] = ranked[kept]
        scores[row, : kept.sum()] = lists.scores[row, kept]
    return Recommendations(lists.users, items, scores)


def name_lists(
    lists: Recommendations,
    split: SequenceSplit,
    split_name: Split,
    user_ids: pl.Series,
    item_ids: pl.Series,
) -> pl.DataFrame:
    """Return lists as a table that `read_lists` reads, with the rank and score of each item.

    Args:
        lists: Lists by sequence of the split. Each sequence has a target.
        split: Split that the lists were made for.
        split_name: Part of the split whose targets the lists are for, ``"valid"`` or ``"test"``.
        user_ids: External id of each user, in the order of ``user_idx``.
        item_ids: External id of each item, in the order of ``item_idx``.
    """
    rows = lists.to_polars()
    if split.owners is None:
        key = user_ids.gather(rows["user_idx"]).alias("user_id")
    else:
        targets = split.target_users(split_name)
        key = pl.Series("row", np.searchsorted(targets, rows["user_idx"].to_numpy()))
    items = item_ids.gather(rows["item_idx"]).alias("item_id")
    return pl.DataFrame([key, items, rows["rank"], rows["score"]])
