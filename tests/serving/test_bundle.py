"""A bundle needs no other files, its files are verified, and it records its origin."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recgrit.errors import ArtifactError, DataError, NewerSchemaError
from recgrit.manifests import read_manifest
from recgrit.runs import Run
from recgrit.semantic_ids.trie import Trie, build_trie
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from tests.forging import forge


def test_it_recommends_what_the_run_does(
    bundle: Bundle, run: Run, histories: dict[str, list[str]]
) -> None:
    assert_frame_equal(bundle.recommend_after(histories), run.recommend_after(histories))
    chosen = bundle.recommend_after(
        {"x": histories["3"]}, top_k=5, allowed_items=["1", "2", "3"], blocked_items=["2"]
    )
    assert set(chosen["item_id"]) <= {"1", "3"}
    with pytest.raises(DataError, match="top_k must be at least 1"):
        bundle.recommend_after(histories, top_k=0)


def test_it_needs_neither_the_run_nor_its_own_place(
    copied_run: Path, run: Run, tmp_path: Path, histories: dict[str, list[str]]
) -> None:
    made = export_bundle(Run(copied_run), tmp_path / "made")
    shutil.rmtree(copied_run)
    moved = Bundle(shutil.move(made.directory, tmp_path / "else where"))
    some = {"3": histories["3"]}
    assert_frame_equal(moved.recommend_after(some), run.recommend_after(some))
    assert moved.fingerprint == made.fingerprint


def test_it_has_only_open_file_formats_and_no_pickles(bundle: Bundle) -> None:
    files = [path for path in bundle.directory.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".safetensors", ".npy", ".json"}
    assert {path.name for path in (bundle.directory / "model").iterdir()} == {"weights.safetensors"}
    table = pl.read_parquet(bundle.directory / "semantic_ids.parquet")
    assert table["item_id"].equals(bundle.semantic_ids.item_ids)
    assert len({path.stat().st_mode for path in files}) == 1
    trie, expected = (
        Trie.load(bundle.directory / "trie.safetensors"),
        build_trie(bundle.semantic_ids.codes),
    )
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(trie, name), values)


def test_it_says_where_it_comes_from(bundle: Bundle, run: Run) -> None:
    assert bundle.settings.run == {
        name: run.manifest(name).fingerprint for name in ("prepare", "embed", "tokenize", "train")
    }
    assert bundle.parent is None
    assert bundle.manifest.summary["num_items"] == bundle.manifest.summary["num_listed"] == 40


@pytest.mark.parametrize("name", ["model/weights.safetensors", "semantic_ids.parquet"])
def test_a_changed_file_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(bundle.directory, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"is damaged: {name} changed since it was written"):
        Bundle(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=rf"is damaged.*lacks {name}"):
        Bundle(copy)


def test_a_newer_layout_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.directory, tmp_path / "copy"))
    forge(copy, lambda manifest: manifest["config"].update(version=9))
    with pytest.raises(NewerSchemaError, match=r"has layout 9.*Upgrade"):
        Bundle(copy)


def test_other_folders_are_no_bundles_and_stay_as_they_are(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No bundle at .*recgrit export bundle"):
        Bundle(run.directory)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="already exists and is not recgrit's bundle"):
        export_bundle(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("beam_width",), -3, "greater than or equal to 1"),
        (("beam_width",), 10**9, "less than or equal to 100000"),
        (("num_known_items",), -1, "greater than or equal to 0"),
        (("settings", "model_dim"), 10**7, "less than or equal to 16384"),
        (("settings", "num_layers"), 10**6, "less than or equal to 256"),
        (("settings", "history_length"), 10**12, "less than or equal to 100000"),
        (("settings", "nonsense"), 1, "unknown key"),
    ],
)
def test_absurd_settings_in_a_manifest_are_refused(
    bundle: Bundle, tmp_path: Path, keys: tuple[str, ...], value: int, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.directory, copy)

    def change(manifest: dict[str, Any]) -> None:
        place = manifest["config"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    forge(copy, change)
    with pytest.raises(ArtifactError, match=message):
        Bundle(copy).recommender()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"stage": "bundle", "schema_version": ' + "9" * 5000]
)
def test_a_manifest_that_cannot_be_parsed_is_no_bundle(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        Bundle(tmp_path)
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path)
