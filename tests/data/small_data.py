"""Build interactions and sequences from the rows that a test lists."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from recgrit.data.interactions import Interactions, sort_by_user_and_time
from recgrit.data.protocols import Sequences


def build_interactions(rows: Sequence[tuple[str, str, int]]) -> Interactions:
    """Build interactions of rows (user, item, time), with indices by first appearance."""
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    ids = {name: frame[f"{name}_id"].unique(maintain_order=True) for name in ("user", "item")}
    indices = [
        frame[f"{name}_id"].replace_strict(of, range(len(of)), return_dtype=pl.Int32)
        for name, of in ids.items()
    ]
    columns = [column.alias(f"{name}_idx") for name, column in zip(ids, indices, strict=True)]
    return Interactions(
        frame=sort_by_user_and_time(frame.select(*columns, "timestamp")),
        user_ids=ids["user"],
        item_ids=ids["item"],
    )


def build_sequences(rows: Sequence[tuple[str, str, int]]) -> Sequences:
    """Build the sequences of rows (user, item, time)."""
    found = build_interactions(rows)
    return Sequences.of(found.frame, found.num_users, found.num_items)
