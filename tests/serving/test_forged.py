"""A bundle that was changed, with matching digests, is valid or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from recgrit.data.items import ItemTable
from recgrit.disk import MANIFEST_NAME
from recgrit.errors import ArtifactError, DataError, NewerSchemaError
from recgrit.reporting.lists import load_recommendations
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
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
        Bundle(copy)  # The change adds only a blank.
        return
    with pytest.raises(ArtifactError, match=r"damaged|schema version"):
        Bundle(copy)


def test_a_fingerprint_of_zeros_is_refused(copy: Path, bundle: Bundle) -> None:
    edit(copy, bundle.fingerprint, "0" * 16)
    with pytest.raises(ArtifactError, match="changed since it was written"):
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
    with pytest.raises(ArtifactError, match="is outside its folder"):
        Bundle(copy)


def test_hidden_files_of_file_managers_are_ignored(copy: Path, histories: Histories) -> None:
    (copy / ".DS_Store").write_bytes(b"\0")
    (copy / "model" / ".directory").write_bytes(b"\0")
    (copy / "Thumbs.db").write_bytes(b"\0")
    (copy / "model" / "desktop.ini").write_bytes(b"\0")
    assert Bundle(copy).recommend_after(histories).height


@pytest.mark.parametrize(
    ("name", "value"),
    [("beam_width", 1 - 2), ("beam_width", 0), ("num_known_items", -1), ("model", "none")],
)
def test_an_invalid_setting_is_refused(copy: Path, name: str, value: object) -> None:
    forge(copy, lambda manifest: manifest["config"].update({name: value}))
    with pytest.raises(Exception, match=r"cannot be used|No model") as caught:
        Bundle(copy)
    assert type(caught.value).__module__ == "recgrit.errors"


def test_more_known_items_than_there_are_is_refused(copy: Path, histories: Histories) -> None:
    forge(copy, lambda manifest: manifest["config"].update(num_known_items=41))
    with pytest.raises(ArtifactError, match="has 40 items, but says that it knew 41"):
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
    with pytest.raises(ArtifactError, match=r"other numbers of items: features"):
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
        assert "was built from" in command(*arguments).error_message()


Array = npt.NDArray[Any]
# Arrays to change, by file, each with a function that changes it.
ARRAYS: dict[str, list[tuple[str, Callable[[Array], Array]]]] = {
    "feature_transform.safetensors": [
        ("text.scale", lambda scale: -scale),
        ("text.scale", lambda scale: scale * np.nan),
        ("text.mean", lambda mean: mean[:-1]),
        ("text.mean", lambda mean: np.full_like(mean, np.inf)),
        ("cooccurrence.mean", lambda mean: mean[None]),
        ("text.components", lambda components: components[:, :-1]),
    ],
    "lsa_directions.safetensors": [
        ("directions", lambda directions: directions[:, :-1]),
        ("directions", lambda directions: directions[:-1]),
        ("directions", lambda directions: directions * np.nan),
        ("directions", lambda directions: directions.astype(np.float64)),
        ("directions", lambda directions: directions[:0]),
    ],
    "item_words.safetensors": [
        ("data", lambda data: data * np.nan),
        ("data", lambda data: data.astype(np.float64)),
        ("indices", lambda indices: indices + 10**6),
        ("indptr", lambda offsets: offsets[::-1]),
        ("shape", lambda shape: np.array([shape[0], shape[1] + 1])),
    ],
    "tokenizer.safetensors": [
        ("quantizer.levels.0.embedding", lambda codebook: codebook * np.nan),
        ("quantizer.levels.0.embedding", lambda codebook: codebook[:-1]),
    ],
    "model/weights.safetensors": [
        ("encoder.norm.weight", lambda weight: weight * np.nan),
        ("encoder.norm.weight", lambda weight: weight * np.inf),
    ],
}


def add_one(folder: Path, out: Path) -> None:
    """Append an item, which reads all parts of a bundle."""
    items = ItemTable(pl.DataFrame({"item_id": ["new"], "title": ["Love in Paris"]}))
    append_items(Bundle(folder), out, items)


@pytest.mark.parametrize(
    ("name", "array", "change"),
    [(name, array, change) for name, cases in ARRAYS.items() for array, change in cases],
)
def test_arrays_that_do_not_fit_add_no_item(
    copy: Path, tmp_path: Path, name: str, array: str, change: Callable[[Array], Array]
) -> None:
    arrays = load_file(copy / name)
    array = next(key for key in arrays if key.startswith(array) or key.endswith(array))
    _save(arrays | {array: np.ascontiguousarray(change(arrays[array]))}, copy / name)
    forge(copy)
    with pytest.raises((ArtifactError, DataError)):
        add_one(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _save(arrays: dict[str, Array], path: Path) -> None:
    """Write arrays, and keep the metadata of the file."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file(arrays, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        pl.lit("same").alias("term"),
        pl.col("term").reverse().str.head(0),
        pl.col("inverse_frequency") * float("nan"),
        -pl.col("inverse_frequency"),
        pl.col("inverse_frequency") * 0,
        pl.col("inverse_frequency").cast(pl.Float64),
    ],
)
def test_invalid_terms_are_refused_when_items_are_added(
    copy: Path, tmp_path: Path, change: pl.Expr
) -> None:
    path = copy / "terms.parquet"
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    forge(copy)
    with pytest.raises(ArtifactError):
        add_one(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        pl.lit("1").alias("user_id"),
        pl.lit(None, pl.String).alias("user_id"),
        pl.col("item_idx").list.concat(pl.lit([40], pl.List(pl.Int32))),
        pl.col("item_idx").list.concat(pl.lit([-1], pl.List(pl.Int32))),
        pl.col("item_idx").list.concat(pl.lit([None], pl.List(pl.Int32))),
        pl.col("item_idx").cast(pl.List(pl.Float64)),
        pl.lit(None, pl.List(pl.Int32)).alias("item_idx"),
    ],
)
def test_invalid_users_are_refused(run: Run, tmp_path: Path, change: pl.Expr) -> None:
    bundle = export_bundle(run, tmp_path / "bundle", with_users=True)
    path = bundle.directory / "users.parquet"
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    forge(bundle.directory)
    with pytest.raises(ArtifactError, match=r"users\.parquet"):
        assert Bundle(bundle.directory).users


LISTS: dict[str, pl.Expr] = {
    "an item twice": pl.col("item_id").first().over("user_id"),
    "a rank twice": pl.col("rank") * 0 + 1,
    "no rank 1": pl.col("rank") + 1,
    "ranks from 0": pl.col("rank") - 1,
    "an unknown item": pl.lit("nothing").alias("item_id"),
    "an unknown user": pl.lit("nobody").alias("user_id"),
    "ranks of another type": pl.col("rank").cast(pl.Float64),
}


@pytest.mark.parametrize("damage", LISTS)
def test_invalid_lists_are_refused(copied_run: Path, damage: str) -> None:
    path = copied_run / "recommendations" / "recommendations.parquet"
    pl.read_parquet(path).with_columns(LISTS[damage]).write_parquet(path)
    forge_run(copied_run)
    with pytest.raises(ArtifactError, match="the lists hold"):
        load_recommendations(Run(copied_run))


REPORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a mean of NaN": lambda values: values["metrics"]["recall_at_10"].update(mean=float("nan")),
    "another mean": lambda values: values["metrics"]["recall_at_10"].update(mean=0.999),
    "an interval of nothing": lambda values: values["metrics"]["recall_at_10"].update(low=2.0),
    "an interval upside down": lambda values: values["metrics"]["recall_at_10"].update(
        low=0.9, high=0.1
    ),
    "half an interval": lambda values: values["metrics"]["recall_at_10"].update(high=float("nan")),
    "no metrics": lambda values: values.update(metrics={}),
    "other lengths": lambda values: values["protocol"].update(ks=[3]),
    "more targets": lambda values: values["protocol"].update(num_targets=10**6),
    "another split": lambda values: values["protocol"].update(split="valid"),
}


@pytest.mark.parametrize("damage", REPORTS)
def test_invalid_reports_are_refused(copied_run: Path, damage: str) -> None:
    path = copied_run / "evaluation" / "trie" / "test" / "evaluation.json"
    values = json.loads(path.read_text())
    REPORTS[damage](values)
    path.write_text(json.dumps(values))
    forge_run(copied_run)
    with pytest.raises(ArtifactError):
        assert Run(copied_run).reports


@pytest.mark.parametrize("change", [lambda ranks: ranks * 0 - 1, lambda ranks: ranks + 1])
def test_ranks_that_are_not_those_of_the_metrics_are_refused(
    copied_run: Path, change: Callable[[pl.Expr], pl.Expr]
) -> None:
    path = copied_run / "evaluation" / "trie" / "test" / "per_target.parquet"
    ranks = change(pl.col("rank")).cast(pl.Int32)
    pl.read_parquet(path).with_columns(ranks).write_parquet(path)
    forge_run(copied_run)
    with pytest.raises(ArtifactError, match="No readable evaluation"):
        assert Run(copied_run).reports


@pytest.mark.parametrize(
    "counts", [lambda c: c * 0 - 1, lambda c: c * np.nan, lambda c: c[:-1], lambda c: c[None]]
)
def test_invalid_counts_are_refused(copied_run: Path, counts: Callable[[Array], Array]) -> None:
    path = copied_run / "baselines" / "popularity" / "counts.npy"
    np.save(path, counts(np.load(path)))
    forge_run(copied_run)
    with pytest.raises(ArtifactError, match="Counts are"):
        Run(copied_run).recommender("popularity").recommend_after({"a": ["1"]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_similarities_that_are_not_finite_are_refused(copied_run: Path, value: float) -> None:
    from scipy import sparse

    path = copied_run / "baselines" / "item_knn" / "similarities.npz"
    table = sparse.load_npz(path)
    table.data[0] = value
    sparse.save_npz(path, table)
    forge_run(copied_run)
    with pytest.raises(ArtifactError, match="Similarities are"):
        Run(copied_run).recommender("item_knn").recommend_after({"a": ["1"]})


def test_weights_that_give_infinite_scores_are_refused(copy: Path, histories: Histories) -> None:
    recommender = Bundle(copy, device="cpu").recommender()
    network: Any = recommender.model
    bias = network.network.get_parameter("decoder.layers.2.1.bias")
    said = []
    for place in range(len(bias)):
        before = bias[place].item()
        bias.data[place] = 1e30
        try:
            recommender.recommend_after(histories, top_k=5)
        except DataError as error:
            said.append(str(error))
        bias.data[place] = before
    assert said
    assert all("not finite" in message for message in said)
