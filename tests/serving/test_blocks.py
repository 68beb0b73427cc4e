"""Test later items with and without vectors of their own beside the text."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from recgrit.cli.app import app
from recgrit.config import load_config
from recgrit.errors import ConfigError, DataError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle

ITEMS = [f"i{place:02}" for place in range(30)]
WITH_IMAGE = ITEMS[:24]
TITLES = [
    f"{('red', 'blue', 'green')[n % 3]} {('lamp', 'desk')[n % 2]} {n // 6}" for n in range(30)
]


def write_items(path: Path, prefix: str = "") -> Path:
    frame = pl.DataFrame({"item_id": [prefix + item for item in ITEMS], "title": TITLES})
    frame.write_parquet(path)
    return path


def write_images(path: Path, items: list[str], prefix: str = "") -> Path:
    draw = np.random.default_rng(0).normal(size=(len(ITEMS), 6)).astype(np.float32)
    vectors = [draw[ITEMS.index(item)] for item in items]
    pl.DataFrame({"item_id": [prefix + i for i in items], "vector": vectors}).write_parquet(path)
    return path


@pytest.fixture(scope="module", params=["alike", "mean"])
def shop(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    folder = tmp_path_factory.mktemp("shop")
    draw = random.Random(0)
    rows = [(f"u{u}", item, t) for u in range(40) for t, item in enumerate(draw.sample(ITEMS, 6))]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(folder / "log.parquet")
    overrides = [
        "data.source=table",
        f"data.path={folder / 'log.parquet'}",
        f"data.table.items_path={write_items(folder / 'items.parquet')}",
        "data.min_user_interactions=1",
        "data.min_item_interactions=1",
        f"run.dir={folder / 'run'}",
        "embedding.encoder=lsa",
        "embedding.dim=8",
        "features.text_dim=8",
        "features.cooccurrence_weight=0",
        f"features.blocks.image.path={write_images(folder / 'images.parquet', WITH_IMAGE)}",
        "features.blocks.image.dim=4",
        f"features.blocks.image.missing={request.param}",
        "tokenizer.num_levels=2",
        "tokenizer.level_blocks=[image]",
        "tokenizer.codebook_size=4",
        "tokenizer.epochs=2",
        "retriever.model_dim=16",
        "retriever.num_layers=1",
        "retriever.num_heads=2",
        "retriever.epochs=1",
        "tracking.backend=none",
    ]
    config = load_config(ExperimentConfig, None, overrides)
    run_experiment(config, until="train")
    run = Run(folder / "run")
    assert run.manifest("embed").summary["blocks"] == {"image": 24}
    assert run.features.embedding_dim == 12
    return export_bundle(run, folder / "bundle")


def append(shop: Bundle, tmp_path: Path, *options: str) -> Bundle:
    new = write_items(tmp_path / "new.parquet", "new ")
    command = ["append", str(shop.directory), str(new), "--out", str(tmp_path / "out"), *options]
    found = CliRunner().invoke(app, command)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Bundle(tmp_path / "out")


def rows_of(bundle: Bundle, items: list[str], prefix: str = "") -> np.ndarray:
    return bundle.semantic_ids.find_items([prefix + item for item in items])


def test_equal_text_and_equal_image_get_equal_features_and_codes(
    shop: Bundle, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images.parquet", WITH_IMAGE, "new ")
    after = append(shop, tmp_path, "--block", f"image={images}")
    features, codes = after.features.vectors, after.semantic_ids.codes
    old, new = rows_of(after, ITEMS), rows_of(after, ITEMS, "new ")
    np.testing.assert_allclose(features[new], features[old], atol=1e-4)
    assert np.array_equal(codes[new, :2], codes[old, :2])
    for rows in (old, new):
        assert after.given["image"][rows].tolist() == [True] * 24 + [False] * 6
    # In the next night, missing vectors are estimated from old items and items of the first night.
    again = write_items(tmp_path / "third.parquet", "third ")
    done = CliRunner().invoke(
        app, ["append", str(after.directory), str(again), "--out", str(tmp_path / "third")]
    )
    assert done.exit_code == 0, done.output
    assert len(Bundle(tmp_path / "third").features.vectors) == 90


def test_items_that_come_without_an_image_are_filled(shop: Bundle, tmp_path: Path) -> None:
    after = append(shop, tmp_path)
    features = after.features.vectors
    old, new = rows_of(after, ITEMS), rows_of(after, ITEMS, "new ")
    np.testing.assert_allclose(features[new[24:]], features[old[24:]], atol=1e-4)
    np.testing.assert_allclose(features[new, :8], features[old, :8], atol=1e-4)
    assert not np.allclose(features[new[:24], 8:], features[old[:24], 8:], atol=1e-2)
    assert not after.given["image"][new].any()


def test_blocks_that_do_not_fit_are_refused(shop: Bundle, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images.parquet", WITH_IMAGE, "new ")
    with pytest.raises(DataError, match=r"no block 'sound'; they have image"):
        append(shop, tmp_path, "--block", f"sound={images}")
    with pytest.raises(ConfigError, match="expected NAME=FILE"):
        append(shop, tmp_path, "--block", str(images))
    wide = tmp_path / "wide.parquet"
    pl.DataFrame({"item_id": ["new i00"], "vector": [[1.0] * 7]}).write_parquet(wide)
    with pytest.raises(DataError, match="have 7 dimensions, those of the bundle's items 6"):
        append(shop, tmp_path, "--block", f"image={wide}")


def test_another_file_or_weight_makes_other_features(shop: Bundle, tmp_path: Path) -> None:
    from recgrit.stages.embed import EMBED

    config = ExperimentConfig.load(shop.directory.parent / "run")
    block = config.features.blocks["image"]
    moved = write_images(tmp_path / "moved.parquet", WITH_IMAGE)
    other = write_images(tmp_path / "other.parquet", WITH_IMAGE[:20])

    def settings(**changes: object) -> tuple[object, list[bytes]]:
        blocks = {"image": block.model_copy(update=changes)}
        features = config.features.model_copy(update={"blocks": blocks})
        changed = config.model_copy(update={"features": features})
        return EMBED.settings(changed), [path.read_bytes() for path in EMBED.inputs(changed)]

    assert settings() == settings(path=moved), "a file counts by its content"
    assert settings() != settings(path=other)
    assert settings() != settings(weight=2.0)
    assert settings(weight=0.0)[1] == [], "a block that is left out needs no file"
    with pytest.raises(DataError, match=r"Check features\.blocks\.image\.path"):
        settings(path=tmp_path / "none.parquet")


def test_a_run_knows_the_blocks_it_was_made_with(shop: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(shop.directory.parent / "run", folder)
    run = Run(folder)
    assert run.waiting_settings() == {}
    run.plan.model_copy(
        update={"features": run.plan.features.model_copy(update={"blocks": {}})}
    ).save()
    changed = Run(folder)
    assert changed.config.features.blocks["image"].dim == 4
    assert changed.waiting_settings()["features.blocks.image.dim"] == ("4", None)


@pytest.mark.parametrize("name", ["text", "cooccurrence", "Image", "a.b", "1a", ""])
def test_reserved_and_invalid_names_of_blocks_are_refused(name: str) -> None:
    values = {"features": {"blocks": {name: {"path": "x.npy"}}}}
    with pytest.raises(ValueError, match="the name of a block"):
        ExperimentConfig.model_validate(values)
