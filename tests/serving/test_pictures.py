"""Test a run with a block of pictures, and later items with pictures."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from recgrit.cli.app import app
from recgrit.config import load_config
from recgrit.errors import DataError, EncoderError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from recgrit.stages.embed import EMBED
from tests.small_encoders import write_picture_encoder

ITEMS = [f"i{place:02}" for place in range(30)]
WITH_PICTURE = 24
TITLES = [
    f"{('red', 'blue', 'green')[n % 3]} {('lamp', 'desk')[n % 2]} {n // 6}" for n in range(30)
]


def write_items(path: Path, prefix: str = "") -> Path:
    pictures = [f"pictures/{item}.png" for item in ITEMS[:WITH_PICTURE]] + [None] * 6
    frame = {"item_id": [prefix + item for item in ITEMS], "title": TITLES, "image": pictures}
    pl.DataFrame(frame).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    draw = random.Random(0)
    rows = [(f"u{u}", item, t) for u in range(40) for t, item in enumerate(draw.sample(ITEMS, 6))]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(folder / "log.parquet")
    (folder / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (WITH_PICTURE, 32, 32, 3), dtype=np.uint8)
    for item, pixels in zip(ITEMS, noise, strict=False):
        Image.fromarray(pixels).save(folder / "pictures" / f"{item}.png")
    write_picture_encoder(folder / "tiny-clip")
    run_experiment(configure(folder), until="train")
    export_bundle(Run(folder / "run"), folder / "bundle")
    return folder


def configure(folder: Path, *more: str) -> ExperimentConfig:
    overrides = [
        "data.source=table",
        f"data.path={folder / 'log.parquet'}",
        f"data.table.items_path={write_items(folder / 'items.parquet')}",
        "data.min_user_interactions=1",
        "data.min_item_interactions=1",
        f"run.dir={folder / 'run'}",
        "embedding.encoder=lsa",
        "embedding.dim=8",
        "embedding.device=cpu",
        "features.text_dim=8",
        "features.cooccurrence_weight=0",
        "features.blocks.image.column=image",
        f"features.blocks.image.model={folder / 'tiny-clip'}",
        "features.blocks.image.dim=4",
        "tokenizer.num_levels=2",
        "tokenizer.codebook_size=4",
        "tokenizer.epochs=2",
        "retriever.model_dim=16",
        "retriever.num_layers=1",
        "retriever.num_heads=2",
        "retriever.epochs=1",
        "tracking.backend=none",
    ]
    return load_config(ExperimentConfig, None, [*overrides, *more])


def append(shop: Path, out: Path, items: Path, *options: str) -> Bundle:
    command = ["append", str(shop / "bundle"), str(items), "--out", str(out), *options]
    found = CliRunner().invoke(app, command)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Bundle(out)


def rows_of(bundle: Bundle, prefix: str = "") -> np.ndarray:
    return bundle.semantic_ids.find_items([prefix + item for item in ITEMS])


def test_a_run_takes_pictures_from_a_column(shop: Path) -> None:
    summary = Run(shop / "run").manifest("embed").summary
    assert summary["blocks"] == {"image": WITH_PICTURE}
    assert "image" not in summary["template"], "names of files are no text of an item"
    assert Run(shop / "run").features.embedding_dim == 12


def test_new_items_get_theirs_from_the_same_column(shop: Path, tmp_path: Path) -> None:
    # The pictures are beside the item file, or in another folder that is named.
    beside = append(shop, tmp_path / "a", write_items(shop / "new.parquet", "new "))
    elsewhere = append(
        shop, tmp_path / "b", write_items(tmp_path / "new.parquet", "new "), "--pictures", str(shop)
    )
    for after in (beside, elsewhere):
        old, new = rows_of(after), rows_of(after, "new ")
        np.testing.assert_allclose(
            after.features.vectors[new], after.features.vectors[old], atol=1e-4
        )
        assert after.given["image"][new].tolist() == [True] * WITH_PICTURE + [False] * 6


def test_new_items_without_pictures_are_filled(shop: Path, tmp_path: Path) -> None:
    new = write_items(tmp_path / "new.parquet", "new ")
    after = append(shop, tmp_path / "a", new)  # The pictures are not beside this item file.
    assert not after.given["image"][rows_of(after, "new ")].any()
    pl.read_parquet(new).drop("image").write_parquet(new)
    without = append(shop, tmp_path / "b", new)
    np.testing.assert_array_equal(without.features.vectors, after.features.vectors)


def test_another_model_of_pictures_is_refused(shop: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shop, tmp_path / "copy"))
    weights = next((shop / "tiny-clip").rglob("*.safetensors"))
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + b"\0\0\0\1")
        with pytest.raises(EncoderError, match="are not those that encoded the items' pictures"):
            append(shop, tmp_path / "a", write_items(copy / "new.parquet", "new "))
    finally:
        weights.write_bytes(kept)


def test_the_key_depends_on_the_column_of_pictures_and_not_on_paths(
    shop: Path, tmp_path: Path
) -> None:
    config = configure(shop)
    assert EMBED.is_current(config)
    moved = configure(
        shop,
        f"features.blocks.image.folder={shutil.copytree(shop, tmp_path / 'moved')}",
        f"features.blocks.image.model={tmp_path / 'moved' / 'tiny-clip'}",
    )
    assert EMBED.is_current(moved), "no path enters the key"
    assert not EMBED.is_current(configure(shop, "features.blocks.image.column=title"))


def test_where_no_picture_can_be_used_the_run_ends(shop: Path, tmp_path: Path) -> None:
    config = configure(
        shop, f"features.blocks.image.folder={tmp_path}", f"run.dir={tmp_path / 'run'}"
    )
    with pytest.raises(DataError, match=r"None of the 30 items.*features\.blocks\.image\.folder"):
        run_experiment(config, until="embed")
