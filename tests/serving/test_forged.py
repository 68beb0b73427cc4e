"""Bundles that somebody changed, with digests that fit: what they say makes sense or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.disk import MANIFEST_NAME
from recgrit.errors import ArtifactError, NewerSchemaError
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from tests.forging import forge, forge_run

Histories = dict[str, list[str]]


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.directory, tmp_path / "copy"))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"beam_width": 20', '"beam_width": 21'),
        ('"num_known_items": 40', '"num_known_items": 39'),
        ('"num_listed": 40', '"num_listed": 41'),
        ('"schema_version": 3', '"schema_version": -3'),
        ('"schema_version": 3', '"schema_version": true'),
        ('"stage": "bundle"', '"stage": "bundle" '),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, old: str, new: str) -> None:
    edit(copy, old, new)
    if new.endswith(" "):
        Bundle(copy)  # Only blanks.
        return
    with pytest.raises(ArtifactError, match=r"damaged|schema version"):
        Bundle(copy)


def test_a_fingerprint_of_zeros_is_refused(copy: Path, bundle: Bundle) -> None:
    edit(copy, bundle.fingerprint, "0" * 16)
    with pytest.raises(ArtifactError, match="not as it was written"):
        Bundle(copy)


def test_a_newer_schema_is_refused(copy: Path) -> None:
    edit(copy, '"schema_version": 3', '"schema_version": 999')
    with pytest.raises(NewerSchemaError, match="schema version 999"):
        Bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest["files"].pop("catalogue.parquet"),
    ],
)
def test_a_file_that_is_not_listed_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    forge(copy, change)
    with pytest.raises(ArtifactError, match=r"holds .*which its manifest does not list"):
        Bundle(copy)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "model//x"])
def test_a_file_outside_the_folder_is_refused(copy: Path, name: str) -> None:
    record = {"bytes": 0, "sha256": "", "sample": ""}
    forge(copy, lambda manifest: manifest["files"].update({name: record}))
    with pytest.raises(ArtifactError, match="does not lie in its folder"):
        Bundle(copy)


def test_what_a_file_manager_hides_there_is_no_part(copy: Path, histories: Histories) -> None:
    (copy / ".DS_Store").write_bytes(b"\0")
    (copy / "model" / ".directory").write_bytes(b"\0")
    assert Bundle(copy).recommend_after(histories).height


@pytest.mark.parametrize(
    ("name", "value"),
    [("beam_width", 1 - 2), ("beam_width", 0), ("num_known_items", -1), ("model", "none")],
)
def test_a_setting_without_sense_is_refused(copy: Path, name: str, value: object) -> None:
    forge(copy, lambda manifest: manifest["config"].update({name: value}))
    with pytest.raises(Exception, match=r"cannot be used|No model") as caught:
        Bundle(copy)
    assert type(caught.value).__module__ == "recgrit.errors"


def test_more_known_items_than_there_are_is_refused(copy: Path, histories: Histories) -> None:
    forge(copy, lambda manifest: manifest["config"].update(num_known_items=41))
    with pytest.raises(ArtifactError, match="has 40 items, and says that it knew 41"):
        Bundle(copy).recommend_after(histories)


@pytest.mark.parametrize(
    "change",
    [
        pl.col("item_id").reverse(),
        pl.col("added_in") - 1,
        pl.col("removed_in") - 1,
        pl.col("trained").cast(pl.Int32),
        pl.when(pl.col("item_id") == "5").then(None).otherwise(pl.col("trained")).alias("trained"),
    ],
)
def test_a_catalogue_of_other_items_is_refused(
    copy: Path, change: pl.Expr, histories: Histories
) -> None:
    path = copy / "catalogue.parquet"
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    forge(copy)
    with pytest.raises(ArtifactError, match=r"catalogue\.parquet"):
        Bundle(copy).recommend_after(histories)


def test_a_catalogue_without_a_column_is_refused(copy: Path, histories: Histories) -> None:
    path = copy / "catalogue.parquet"
    pl.read_parquet(path).drop("removed_in").write_parquet(path)
    forge(copy)
    with pytest.raises(ArtifactError, match=r"catalogue\.parquet needs"):
        Bundle(copy).recommend_after(histories)


@pytest.mark.parametrize("rows", [slice(0, 39), slice(0, 1), slice(0, 0)])
def test_features_of_fewer_items_are_refused(copy: Path, rows: slice, histories: Histories) -> None:
    path = copy / "features_vectors.npy"
    np.save(path, np.load(path)[rows])
    forge(copy)
    with pytest.raises(ArtifactError, match=r"of other items: features"):
        Bundle(copy).recommend_after(histories)


SPLITS: dict[str, Callable[[Any], Any]] = {
    "sequence_offsets.npy falling": lambda offsets: np.r_[
        offsets[:5], -offsets[5:10], offsets[10:]
    ],
    "sequence_offsets.npy too long": lambda offsets: offsets + 10**9,
    "sequence_offsets.npy of other numbers": lambda offsets: offsets.astype(np.float64),
    "sequence_offsets.npy of fewer users": lambda offsets: offsets[:-1],
    "sequence_items.npy negative": lambda items: -items - 1,
    "sequence_items.npy outside": lambda items: items + 40,
    "sequence_items.npy shorter": lambda items: items[:-1],
    "sequence_splits.npy behind": lambda splits: splits + 10**9,
    "sequence_splits.npy of two rows": lambda splits: splits[:2],
    "sequence_splits.npy before": lambda splits: splits - 10**9,
}


@pytest.mark.parametrize("damage", SPLITS)
def test_sequences_that_do_not_fit_are_refused(copied_run: Path, damage: str) -> None:
    path = copied_run / "data" / damage.partition(" ")[0]
    np.save(path, SPLITS[damage](np.load(path)))
    forge_run(copied_run)
    with pytest.raises(ArtifactError):
        Run(copied_run).recommend(["1"])


@pytest.mark.parametrize("stage", ["data", "embeddings", "semantic_ids", "model"])
def test_a_stage_of_another_run_is_refused(
    tiny_run: Any, copied_run: Path, command: Any, stage: str, tmp_path: Path
) -> None:
    other = tmp_path / "runs" / "other"
    shutil.copytree(copied_run, other)
    settings = [
        "seed=1",
        "features.text_dim=4",
        "data.min_item_interactions=1",
        "retriever.epochs=1",
    ]
    assert command("run", other, *settings, f"run.dir={other}").code == 0
    shutil.rmtree(copied_run / stage)
    shutil.copytree(other / stage, copied_run / stage)
    for arguments in (
        ("export", "bundle", "--run", copied_run, "--out", tmp_path / "out"),
        ("recommend", "--run", copied_run, "--user", "1"),
    ):
        assert "was built from" in command(*arguments).told()
