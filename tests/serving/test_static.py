"""Test a run with a static text encoder, and later items."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recgrit.config import load_config
from recgrit.data.items import ItemTable
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from tests.small_encoders import write_text_encoder

pytest.importorskip("model2vec.distill")

ITEMS = [f"i{place:02}" for place in range(30)]
TITLES = [
    f"{('red', 'blue', 'green')[n % 3]} {('lamp', 'desk')[n % 2]} {n // 6}" for n in range(30)
]


def test_a_bundle_encodes_new_items_without_the_sentence_encoder(tmp_path: Path) -> None:
    model = write_text_encoder(tmp_path / "model", TITLES)
    draw = random.Random(0)
    rows = [(f"u{u}", item, t) for u in range(40) for t, item in enumerate(draw.sample(ITEMS, 6))]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_parquet(tmp_path / "log.parquet")
    pl.DataFrame({"item_id": ITEMS, "title": TITLES}).write_parquet(tmp_path / "items.parquet")
    overrides = [
        "data.source=table",
        f"data.path={tmp_path / 'log.parquet'}",
        f"data.table.items_path={tmp_path / 'items.parquet'}",
        "data.min_user_interactions=1",
        "data.min_item_interactions=1",
        f"run.dir={tmp_path / 'run'}",
        "embedding.encoder=static",
        f"embedding.model={model}",
        "embedding.device=cpu",
        "features.text_dim=8",
        "features.cooccurrence_weight=0",
        "tokenizer.num_levels=2",
        "tokenizer.codebook_size=4",
        "tokenizer.epochs=2",
        "retriever.model_dim=16",
        "retriever.num_layers=1",
        "retriever.num_heads=2",
        "retriever.epochs=1",
        "tracking.backend=none",
    ]
    run_experiment(load_config(ExperimentConfig, None, overrides), until="train")
    export_bundle(Run(tmp_path / "run"), tmp_path / "monday")
    for gone in (model, tmp_path / "run", tmp_path / ".cache"):
        shutil.rmtree(gone)
    last = Bundle(tmp_path / "monday")
    # In the second night, items are added to the bundle of the first night.
    for night, prefix in (("tuesday", "new "), ("wednesday", "newer ")):
        new = pl.DataFrame({"item_id": [prefix + item for item in ITEMS], "title": TITLES})
        last = append_items(last, tmp_path / night, ItemTable(new)).bundle
    features, codes = last.features.vectors, last.semantic_ids.codes
    first = last.semantic_ids.find_items(ITEMS)
    for prefix in ("new ", "newer "):
        later = last.semantic_ids.find_items([prefix + item for item in ITEMS])
        np.testing.assert_allclose(features[later], features[first], atol=1e-5)
        assert np.array_equal(codes[later, :2], codes[first, :2])
