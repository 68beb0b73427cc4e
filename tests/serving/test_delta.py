"""A bundle records what a night changed, so that a feature store loads only the changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.errors import ArtifactError
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle

Like = Callable[..., ItemTable]


def changes(directory: Path) -> pl.DataFrame:
    return pl.read_parquet(directory / "delta" / "items.parquet")


def apply(table: pl.DataFrame, delta: pl.DataFrame) -> pl.DataFrame:
    """Apply a delta as a feature store does: delete removed items, insert new and changed ones."""
    kept = table.filter(~pl.col("item_id").is_in(delta["item_id"].implode()))
    rows = delta.filter(pl.col("change") != "removed").drop("change")
    return pl.concat([kept, rows.select(table.columns)]).sort("item_id")


def listed(bundle: Bundle) -> pl.DataFrame:
    return bundle.semantic_ids.to_polars().filter(bundle.catalogue.listed).sort("item_id")


def test_the_delta_makes_the_new_table_of_the_old(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    """This holds over several nights in which items are added, removed and renamed."""
    renamed = like(["3", "4"], "").frame.with_columns(title=pl.lit("Another ") + pl.col("title"))
    offered = ItemTable(pl.concat([like(["5", "6"]).frame, renamed, like(["9"], "").frame]))
    first = append_items(bundle, tmp_path / "1", offered, removed=["7", "8"])
    assert (first.num_added, first.num_removed, first.num_listed, first.num_changed) == (2, 2, 3, 2)
    found = changes(tmp_path / "1")
    assert found.columns[:4] == ["item_id", "change", "title", "level_0"]
    assert found.columns[-1] == "semantic_id"
    by_change = dict(found.group_by("change").agg(pl.col("item_id").sort()).iter_rows())
    assert by_change == {
        "added": ["new 5", "new 6"],
        "removed": ["7", "8"],
        "changed": ["3", "4"],
    }
    assert apply(listed(bundle), found).equals(listed(first.bundle))
    second = append_items(first.bundle, tmp_path / "2", like(["1"]), removed=["new 5"])
    assert changes(tmp_path / "2").select("item_id", "change").rows() == [
        ("new 1", "added"),
        ("new 5", "removed"),
    ]
    assert apply(listed(first.bundle), changes(tmp_path / "2")).equals(listed(second.bundle))


def test_another_title_moves_no_id_and_a_missing_one_changes_nothing(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    items = like(["3", "4"], "").frame
    title = pl.when(pl.col("item_id") == "3").then(pl.lit("Neu")).otherwise(pl.col("item_id"))
    made = append_items(bundle, tmp_path / "1", ItemTable(items.with_columns(title=title)))
    assert "1 of them got another title" in made.describe()
    table, before = made.bundle.semantic_ids, bundle.semantic_ids
    assert np.array_equal(table.codes, before.codes)
    assert np.array_equal(made.bundle.features.vectors, bundle.features.vectors)
    assert table.titles[table.item_idx("3")] == "Neu"
    row = table.item_idx("4")
    assert table.titles[row] == before.titles[row]


def test_a_first_bundle_has_no_delta_and_a_night_without_changes_an_empty_one(
    bundle: Bundle, tmp_path: Path
) -> None:
    assert not (bundle.directory / "delta").exists()
    append_items(bundle, tmp_path / "1")
    assert changes(tmp_path / "1").is_empty()
    assert changes(tmp_path / "1").schema["level_0"] == pl.Int32
    report = json.loads((tmp_path / "1" / "delta" / "quality.json").read_text())
    assert report["before"] == report["after"]


def test_quality_before_and_after(bundle: Bundle, like: Like, tmp_path: Path) -> None:
    """All new items resemble old ones, so they collide, and the report shows it."""
    made = append_items(bundle, tmp_path / "1", like([str(item) for item in range(1, 41)]))
    report = json.loads((tmp_path / "1" / "delta" / "quality.json").read_text())
    before, after = report["before"], report["after"]
    level = bundle.semantic_ids.disambiguation_level
    assert level == bundle.semantic_ids.id_length - 1
    for side, table in ((before, bundle.semantic_ids), (after, made.bundle.semantic_ids)):
        codes = table.codes[:, :level]
        _, counts = np.unique(codes, axis=0, return_counts=True)
        assert side["collision_rate"] == pytest.approx(counts[counts > 1].sum() / len(codes))
        for found, column, size in zip(side["levels"], codes.T, table.codebook_sizes, strict=False):
            assert found["codebook_usage"] == pytest.approx(len(np.unique(column)) / size)
            assert 0 <= found["neighbours_kept"] <= 1
    assert after["collision_rate"] > before["collision_rate"]
    line = made.delta.describe()
    assert f"shared IDs {before['collision_rate']:.1%} and {after['collision_rate']:.1%}" in line
    assert f"and {after['levels'][-1]['neighbours_kept']:.1%}" in line


def test_quality_of_few_items_is_json(bundle: Bundle, tmp_path: Path) -> None:
    append_items(bundle, tmp_path / "1", removed=[str(item) for item in range(5, 41)])
    report = json.loads((tmp_path / "1" / "delta" / "quality.json").read_text())
    assert report["after"]["levels"][0]["neighbours_kept"] is None


def test_a_changed_delta_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    append_items(bundle, tmp_path / "1", removed=["7"])
    path = tmp_path / "1" / "delta" / "items.parquet"
    changes(tmp_path / "1").with_columns(change=pl.lit("added")).write_parquet(path)
    with pytest.raises(ArtifactError, match=r"delta/items\.parquet changed since"):
        Bundle(tmp_path / "1")
