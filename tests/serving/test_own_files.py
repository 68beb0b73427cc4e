"""Test a run of a user's own files, its bundle, and later items in files of the same format."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from recgrit.cli.app import app
from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle

COLOURS, THINGS = ("red", "blue", "dark &amp; green"), ("lamp", "chair", "desk", "rug", "bowl")
ITEMS = [
    (f"{place:03}", f"{colour} {thing}", f"{place + 1}.5", thing.upper())
    for place, (colour, thing) in enumerate((c, t) for c in COLOURS for t in THINGS)
]


def write_items(path: Path, prefix: str, header: str, separator: str = ";") -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerows([header.split(";"), *([prefix + sku, *rest] for sku, *rest in ITEMS)])
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("shop")
    draw = random.Random(0)
    lines = ["customer;sku;day"]
    for user in range(30):
        for place, (sku, *_) in enumerate(draw.sample(ITEMS, 6)):
            lines.append(f"u{user};{sku};{place + 10}/9/2011 10:00")
    (folder / "log.csv").write_text("\n".join(lines))
    items = write_items(folder / "items.csv", "", "product_id;name;price;category")
    overrides = [
        "data.source=table",
        f"data.path={folder / 'log.csv'}",
        f"data.table.items_path={items}",
        "data.table.user_id=customer",
        "data.table.item_id=sku",
        "data.table.items_id=product_id",
        "data.table.timestamp=day",
        "data.table.title=name",
        "data.min_user_interactions=1",
        "data.min_item_interactions=1",
        f"run.dir={folder / 'run'}",
        "embedding.encoder=lsa",
        "embedding.dim=8",
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
    return export_bundle(Run(folder / "run"), folder / "bundle")


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("new.csv", "product_id;name;price;category", ";"),
        ("new.csv", "item_id;name;price;category", ","),
        ("new.tsv", "product_id;name;price;category", "\t"),
        ("new.parquet", "product_id;name;price;category", ","),
    ],
)
def test_equal_descriptions_get_equal_codes(
    shop: Bundle, tmp_path: Path, name: str, header: str, separator: str
) -> None:
    new = write_items(tmp_path / "new.csv", "new ", header, separator)
    if name.endswith("parquet"):
        frame = pl.read_csv(new).with_columns(pl.col("product_id").cast(pl.Categorical))
        new = tmp_path / name
        frame.write_parquet(new)
    out = tmp_path / "out"
    found = CliRunner().invoke(app, ["append", str(shop.directory), str(new), "--out", str(out)])
    assert found.exit_code == 0, found.output
    after = Bundle(out).semantic_ids
    first = dict(zip(after.item_ids, after.codes[:, :2].tolist(), strict=True))
    assert {sku: first[f"new {sku}"] for sku, *_ in ITEMS if sku in first} == {
        sku: first[sku] for sku, *_ in ITEMS if sku in first
    }
    title = dict(zip(after.item_ids, after.titles, strict=True))["new 010"]
    assert title == "dark & green lamp"


def test_the_bundle_keeps_names_and_the_columns_of_its_texts(shop: Bundle) -> None:
    table = shop.settings.table
    assert (table.item_id, table.items_id, table.title) == ("sku", "product_id", "name")
    assert shop.settings.table.items_path is None
    template = shop.require_ids().embedding.template
    assert template == "{title}. Price: {price}. Category: {category:300}."


def test_histories_with_two_columns_of_users_are_refused(
    shop: Bundle, tmp_path: Path, command: Callable[..., Any]
) -> None:
    histories = tmp_path / "h.csv"
    histories.write_text("customer;customer;sku;day\nx;y;001;13/9/2011 10:00\n")
    done = command(
        "recommend", "--bundle", shop.directory, "--histories", histories, "--out", tmp_path / "l"
    )
    assert done.code == 2
    assert "several columns called customer" in " ".join(done.err.replace("│", " ").split())


def test_histories_are_read_as_the_log_was(shop: Bundle, tmp_path: Path) -> None:
    histories, out = tmp_path / "h.csv", tmp_path / "lists.parquet"
    histories.write_text("customer;sku;day\nx;001;13/9/2011 10:00\nx;002;12/9/2011 10:00\n")
    command = ["recommend", "--bundle", str(shop.directory), "--histories", str(histories)]
    found = CliRunner().invoke(app, [*command, "--out", str(out), "--top-k", "3"])
    assert found.exit_code == 0, found.output
    assert pl.read_parquet(out)["user_id"].to_list() == ["x"] * 3
