"""Test runs whose IDs are learned from sequences, and runs with control IDs without meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recgrit.config import load_config
from recgrit.data.items import ItemTable
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.reporting.contents import gather_contents
from recgrit.reporting.figures import build_figures
from recgrit.reporting.page import render_report
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.writing import export_bundle
from recgrit.stages import plan_stages

SMALL = [
    "tokenizer.objective=next_item",
    "item_vectors.model_dim=16",
    "item_vectors.num_layers=1",
    "item_vectors.epochs=2",
    "item_vectors.quantized_epochs=2",
    "retriever.epochs=1",
    "tracking.backend=none",
]


def make_run(new_config: Callable[..., Path], *overrides: str, until: str = "train") -> Run:
    config = load_config(ExperimentConfig, new_config(), [*SMALL, *overrides])
    run_experiment(config, until=until)
    return Run(config.run.dir)


def test_a_run_learns_its_ids_and_shows_how(new_config: Callable[..., Path]) -> None:
    run = make_run(new_config)
    folder = run.directory / "semantic_ids"
    epochs = pl.read_parquet(folder / "id_epochs.parquet")
    assert epochs["epoch"].to_list() == [0, 1, 2]
    summary = run.manifest("tokenize").summary
    assert summary["ids"]["epoch"] in (0, 1, 2)
    assert summary["vectors"]["best_epoch"] in (1, 2)
    # The IDs are those of the saved latents.
    latents = torch.from_numpy(np.load(folder / "latents.npy"))
    assert latents.shape == (len(run.semantic_ids), 16)
    codes = run.tokenizer.quantizer.encode(latents).numpy()
    assert np.array_equal(codes, run.semantic_ids.codes[:, : codes.shape[1]])
    assert not list(run.directory.glob("**/checkpoints/*.safetensors"))
    contents = gather_contents(run)
    assert contents.ids is not None
    assert build_figures(contents)["learning"]["data"][0]["x"] == [0, 1, 2]
    kept = f"Epoch {summary['ids']['epoch']} was best on validation"
    assert kept in render_report(contents)


def test_item_vector_settings_change_the_key_only_if_they_are_used(
    new_config: Callable[..., Path],
) -> None:
    def key(*overrides: str) -> dict[str, object]:
        config = load_config(ExperimentConfig, new_config(), list(overrides))
        stages = {stage.name: stage for stage in plan_stages(config, "train")}
        return stages["tokenize"].settings(config)

    assert key() == key("item_vectors.epochs=3")
    learned = "tokenizer.objective=item_vectors"
    assert key(learned) != key(learned, "item_vectors.epochs=3")
    assert key(learned) == key(learned, "item_vectors.device=cpu")


def test_a_bundle_gives_new_items_ids_by_their_features(
    new_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(new_config)
    bundle = export_bundle(run, tmp_path / "bundle")
    names = pl.Series("item_id", [f"new {row}" for row in range(5)])
    new = ItemTable(run.data.items.frame.head(5).with_columns(names))
    after = append_items(bundle, tmp_path / "next", new).bundle
    features = torch.from_numpy(np.array(after.features.vectors[-5:]))
    codes = run.tokenizer.quantizer.encode(run.tokenizer.encode_latent(features)).numpy()
    assert np.array_equal(after.semantic_ids.codes[-5:, : codes.shape[1]], codes)
    assert np.array_equal(after.semantic_ids.codes[:-5], run.semantic_ids.codes)


@pytest.mark.parametrize("control", ["permuted", "random"])
def test_a_control_gives_items_ids_that_mean_nothing(
    new_config: Callable[..., Path], control: str
) -> None:
    fitted = make_run(new_config, "tokenizer.objective=reconstruction", until="tokenize")
    before = fitted.semantic_ids.codes.copy()
    after = make_run(
        new_config,
        "tokenizer.objective=reconstruction",
        f"tokenizer.control={control}",
        until="tokenize",
    ).semantic_ids
    assert (before != after.codes[:, : before.shape[1]]).any(axis=1).mean() > 0.8
    same = {tuple(row) for row in before.tolist()} == {tuple(row) for row in after.codes.tolist()}
    assert same == (control == "permuted")


def test_random_ids_that_differ_anyway_need_no_further_level(
    new_config: Callable[..., Path],
) -> None:
    run = make_run(
        new_config,
        "tokenizer.objective=reconstruction",
        "tokenizer.control=random",
        "tokenizer.num_levels=8",
        until="tokenize",
    )
    sizes = run.config.tokenizer.codebook_sizes
    assert np.prod(sizes) > 100 * len(run.semantic_ids) ** 2, "hardly any can be equal"
    assert run.semantic_ids.disambiguation_level is None
    assert run.semantic_ids.codes.shape[1] == 8


def test_item_vectors_are_kept_for_other_codebooks(
    new_config: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    make_run(new_config, until="tokenize")
    assert "reusing the item vectors" not in caplog.text
    with caplog.at_level("INFO"):
        make_run(new_config, "tokenizer.num_levels=3", until="tokenize")
        assert "reusing the item vectors" in caplog.text
        caplog.clear()
        make_run(new_config, "item_vectors.epochs=1", until="tokenize")
    assert "reusing the item vectors" not in caplog.text
