"""Test item attributes in the sequence model, from the settings to a bundle with later items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recgrit.models.trie import TrieModel
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.files import read_items
from recgrit.serving.writing import export_bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, write_config: Any) -> Run:
    from tests.conftest import run_command

    folder = tmp_path_factory.mktemp("attributes")
    config = write_config(
        folder / "attributes.yaml",
        tiny_data,
        folder / "run",
        retriever={"item_attributes": ["genres", "year"], "neighbours": []},
    )
    done = run_command("run", config, "--json")
    assert done.code == 0, done.err
    return Run(folder / "run", device="cpu")


def network_of(model: Any) -> Any:
    assert isinstance(model, TrieModel)
    return model.network


def test_attributes_have_parameters_and_change_item_vectors(run: Run) -> None:
    network = network_of(run.model())
    table = network.attributes.table.weight
    assert run.manifest("train").summary["num_parameters"]["item attributes"] == table.numel()
    assert table[0].abs().max() == 0
    with torch.inference_mode():
        items = torch.arange(network.num_items)
        nodes = network.nodes.table()
        there = network.item_vectors(items, nodes)
        kept, network.attributes = network.attributes, None
        without = network.item_vectors(items, nodes)
        network.attributes = kept
    assert (there - without).abs().amax(dim=1).min() > 0


def test_a_bundle_ranks_as_its_run_and_reads_later_items(run: Run, tmp_path: Path) -> None:
    bundle = export_bundle(run, tmp_path / "first")
    history = {"anyone": run.data.items.item_ids.head(3).to_list()}
    from_run = run.recommender().recommend_after(history, top_k=10)
    assert bundle.recommend_after(history, top_k=10).equals(from_run)
    file = tmp_path / "new.csv"
    file.write_text(
        'item_id,title,genres,year\nn1,Galaxy Robot,"Sci-Fi",1970\nn2,Odd Thing,Unheard,\n'
    )
    after = append_items(bundle, tmp_path / "second", read_items(file)).bundle
    network = network_of(after.model)
    num_old = network_of(bundle.model).num_items
    assert torch.equal(
        network.attributes.codes[:num_old, : network_of(bundle.model).attributes.codes.shape[1]],
        network_of(bundle.model).attributes.codes,
    )
    attributes = after.attributes
    assert attributes is not None
    known, odd = attributes.codes[-2], attributes.codes[-1]
    assert odd[odd > 0].tolist() == attributes.unknown_rows
    assert not set(known[known > 0].tolist()) & set(attributes.unknown_rows)
    listed = after.recommend_after({"anyone": ["n1"]}, top_k=3)
    assert len(listed) == 3
    assert len(after.similar_items("n1", 3, by="retriever")) == 3
    # The bundle is opened again without the run.
    again = Bundle(tmp_path / "second", device="cpu")
    assert again.recommend_after({"anyone": ["n1"]}, top_k=3).equals(listed)


def test_training_and_ranking_compute_equal_history_vectors(run: Run) -> None:
    """A training step and ranking compute equal history vectors, with attributes."""
    from recgrit.ranking import Batch

    network = network_of(run.model()).eval()
    histories = torch.tensor([[0, 1, 2], [3, 4, 5]])
    batch = Batch(histories, torch.tensor([2, 5]), torch.tensor([6, 7]))
    seen: list[torch.Tensor] = []
    handle = network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network.loss(network.plan(batch))
        handle.remove()
        expected = network.item_vectors(histories, network.nodes.table())
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("retriever.item_attributes=[brand]", "which the table lacks; it has"),
        ("retriever.item_attributes=[genres,genres]", "names a column twice"),
    ],
)
def test_invalid_attribute_columns_are_refused_before_anything_is_embedded(
    new_config: Callable[..., Path],
    command: Callable[..., Any],
    tmp_path: Path,
    override: str,
    said: str,
) -> None:
    assert said in command("run", new_config(), override).error_message()
    assert not (tmp_path / "runs" / "new" / "embeddings").exists()


def test_unset_attributes_leave_a_run_as_it_was(tiny_run: Any) -> None:
    run = Run(tiny_run.directory)
    assert "item_attributes" not in run.manifest("train").config["settings"]
    frame = pl.read_parquet(run.directory / "evaluation" / "trie" / "test" / "per_target.parquet")
    assert np.isfinite(frame["rank"].to_numpy()).all()
