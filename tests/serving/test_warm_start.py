"""Test runs that train on from another run: old IDs stay, and scores start where it ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recgrit.artifacts import open_artifact
from recgrit.config import load_config
from recgrit.data.items import ItemTable
from recgrit.errors import ArtifactError, ConfigError
from recgrit.experiment import ExperimentConfig
from recgrit.layout import stage_directory
from recgrit.models.trie import TrieModel, WarmStart
from recgrit.pipeline import run_experiment
from recgrit.ranking import recommend_items
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle, find_rows, open_source

Train = Callable[..., Run]
NEW = [str(item) for item in range(37, 41)]


@pytest.fixture(scope="module")
def old_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the log without the last 20 users and four items."""
    folder = tmp_path_factory.mktemp("old") / "ml-100k"
    shutil.copytree(tiny_data, folder)
    rows = [line.split("\t") for line in (tiny_data / "u.data").read_text().splitlines()]
    kept = [row for row in rows if int(row[0]) <= 40 and row[1] not in NEW]
    (folder / "u.data").write_text("\n".join("\t".join(row) for row in kept) + "\n")
    return folder


@pytest.fixture(scope="module")
def train(tiny_data: Path, write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Train:
    def run(name: str, *overrides: str, data: Path = tiny_data, until: str = "train") -> Run:
        folder = tmp_path_factory.mktemp("warm")
        path = write_config(folder / "config.yaml", data, folder / name)
        config = load_config(ExperimentConfig, path, list(overrides))
        run_experiment(config, until=until)
        return Run(config.run.dir)

    return run


@pytest.fixture(scope="module")
def old(train: Train, old_data: Path) -> Run:
    return train("old", data=old_data)


@pytest.fixture(scope="module")
def warm(train: Train, old: Run) -> Run:
    return train("warm", f"retriever.init_from={old.directory}", "retriever.epochs=1")


def ids_of(table: Any) -> dict[str, tuple[int, ...]]:
    return dict(zip(table.item_ids, map(tuple, table.codes.tolist()), strict=True))


def best_of(run: Run) -> float:
    return float(run.manifest("train").summary["best"]["valid_ndcg_at_10"])


def network_of(model: Any) -> Any:
    assert isinstance(model, TrieModel)
    return model.network


def test_old_ids_stay_and_new_items_get_theirs(old: Run, warm: Run) -> None:
    before, after = ids_of(old.semantic_ids), ids_of(warm.semantic_ids)
    assert not {*NEW} & {*before}
    assert {*NEW} <= {*after}
    assert {item: after[item] for item in before} == before
    assert len({*after.values()}) == len(after)
    assert warm.manifest("embed").summary["num_new"] == len(NEW)
    first, second = (run.manifest("tokenize").files["tokenizer.safetensors"] for run in (old, warm))
    assert first == second
    rows = [warm.data.items.index[item] for item in old.data.items.item_ids]
    assert np.array_equal(warm.features.vectors[rows], old.features.vectors)
    assert warm.recommend(top_k=40, exclude_seen=False)["item_id"].n_unique() == 40


def test_training_starts_with_the_scores_of_the_source(old: Run, warm: Run) -> None:
    """Before the first step, all items have the same scores as in the appended bundle."""
    source, items = open_source(warm), warm.catalogue_inputs(("embed", "tokenize"))
    network = TrieModel.build(items, warm.config.retriever)
    rows = find_rows(source, warm.data.items)
    TrieModel.start_from(network, WarmStart(network_of(source.model), rows))
    network.eval()
    with torch.inference_mode():
        ours, theirs = network.nodes(), network_of(source.model).nodes()
        paths = network_of(source.model).trie.paths[torch.from_numpy(rows)]
    torch.testing.assert_close(ours[network.trie.paths], theirs[paths])
    users = warm.data.split.target_users("valid")
    ranker = TrieModel(network, items, warm.config.retriever).valid_ranker(None)
    lists = recommend_items(ranker, warm.data.split, "valid", users, top_k=40, masked=False)
    targets = warm.data.split.targets("valid", users)
    ranks = np.argmax(lists.items == targets[:, None], axis=1)
    assert np.mean((ranks < 10) / np.log2(ranks + 2)) > 0.8 * best_of(old)


def test_one_epoch_is_about_as_good_as_the_source_and_better_than_from_scratch(
    old: Run, train: Train, old_data: Path
) -> None:
    """All three runs use the same data."""
    one = ("retriever.epochs=1",)
    again = train("again", f"retriever.init_from={old.directory}", *one, data=old_data)
    scratch = train("scratch", *one, data=old_data)
    assert ids_of(again.semantic_ids) == ids_of(old.semantic_ids)
    assert best_of(again) > best_of(old) - 0.05
    assert best_of(again) > best_of(scratch) + 0.05


def test_the_path_of_the_source_does_not_change_the_run(
    old: Run, warm: Run, train: Train, tmp_path: Path
) -> None:
    shutil.copytree(old.directory, tmp_path / "elsewhere")
    again = train("warm", f"retriever.init_from={tmp_path / 'elsewhere'}", "retriever.epochs=1")
    for stage in ("embed", "tokenize"):
        assert again.manifest(stage).fingerprint == warm.manifest(stage).fingerprint
    first, second = (run.manifest("train") for run in (warm, again))
    assert first.key == second.key
    assert first.files["weights.safetensors"] == second.files["weights.safetensors"]
    open_artifact(stage_directory(again.directory, "embed") / "source", whole=True)
    config = load_config(ExperimentConfig, again.directory / "config.yaml", [])
    result = run_experiment(config, until="train")
    assert result.up_to_date == ["prepare", "embed", "tokenize", "train"]
    # The stages depend on the content of the source, and not on its path.
    changed = append_items(export_bundle(old, tmp_path / "1"), tmp_path / "2", removed="1").bundle
    override = f"retriever.init_from={changed.directory}"
    config = load_config(ExperimentConfig, again.directory / "config.yaml", [override])
    assert run_experiment(config, until="train").up_to_date == ["prepare"]


def test_a_bundle_after_training_keeps_ids_removals_and_ancestors(
    old: Run, train: Train, like: Callable[..., ItemTable], tmp_path: Path
) -> None:
    """Removed items stay removed, added ones are listed, and no ancestor bundle is missing."""
    first = export_bundle(old, tmp_path / "1")
    second = append_items(first, tmp_path / "2", like(["3", "4"], "added "), removed=["5"]).bundle
    run = train("warm", f"retriever.init_from={second.directory}", "retriever.epochs=1")
    third = export_bundle(run, tmp_path / "3")
    before, after = ids_of(second.semantic_ids), ids_of(third.semantic_ids)
    assert {item: after[item] for item in before} == before
    assert {*after} == {*before, *NEW}
    assert list(after)[:40] == run.data.items.item_ids.to_list()
    fingerprints = [ancestor.fingerprint for ancestor in third.settings.ancestors]
    assert fingerprints == [first.fingerprint, second.fingerprint]
    assert third.settings.run["train"] == run.manifest("train").fingerprint
    assert third.manifest.summary["num_added"] == len(NEW)
    found = third.recommend_after({"x": ["3"]}, top_k=60, beam_width=60, exclude_seen=False)
    assert {*found["item_id"]} == {*after} - {"5"}
    ours, theirs = network_of(run.model()), network_of(third.model)
    with torch.inference_mode():
        mine, of_bundle = ours.nodes(), theirs.nodes()
    assert torch.equal(mine[ours.trie.paths], of_bundle[theirs.trie.paths[:40]])
    fourth = append_items(third, tmp_path / "4", like(["5", "6"], ""), removed=["6"])
    assert (fourth.num_added, fourth.num_refused, fourth.num_removed) == (0, 2, 1)


@pytest.mark.parametrize("size", ["prefixes", "constant"])
def test_models_of_other_sizes_can_be_trained_further(
    size: str, train: Train, old_data: Path
) -> None:
    size_setting = (f"retriever.size={size}", "retriever.epochs=2")
    buckets = ("retriever.node_buckets=16",) if size == "constant" else ()
    source = train("old", *size_setting, *buckets, data=old_data)
    run = train("warm", f"retriever.init_from={source.directory}", *size_setting, *buckets)
    assert run.recommend(["1"], top_k=5).height == 5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tokenizer.codebook_size=16", r"tokenizer\.codebook_size is 16, in the source 8"),
        ("retriever.model_dim=32", r"retriever\.model_dim is 32, in the source 16"),
        ("embedding.dim=12", r"embedding\.dim is 12, in the source 16"),
        (
            "features.cooccurrence_weight=0",
            "features are of text, in the source of text, cooccurrence",
        ),
    ],
)
def test_other_settings_are_refused(old: Run, train: Train, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train("warm", f"retriever.init_from={old.directory}", override)


def test_what_cannot_be_trained_on_is_refused(train: Train, old_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No bundle and no run at"):
        train("warm", f"retriever.init_from={tmp_path / 'nothing'}")
    other = train("other", "model=popularity", data=old_data)
    with pytest.raises(ArtifactError, match="has the model popularity"):
        train("warm", f"retriever.init_from={other.directory}")
    with pytest.raises(ConfigError, match=r"works only with model\.kind=trie"):
        train("warm", f"retriever.init_from={other.directory}", "model=sasrec")
    with pytest.raises(ConfigError, match="the run itself"):
        train("warm", f"retriever.init_from={tmp_path}", f"run.dir={tmp_path}")


def test_another_model_size_after_tokenization_is_refused(old: Run, train: Train) -> None:
    run = train("warm", f"retriever.init_from={old.directory}", until="tokenize")
    config = load_config(
        ExperimentConfig, run.directory / "config.yaml", ["retriever.model_dim=32"]
    )
    with pytest.raises(ConfigError, match=r"retriever\.model_dim is 32, in the source 16"):
        run_experiment(config, until="train")


def test_the_command_and_its_report(
    old: Run, new_config: Callable[..., Path], run_command: Any, tmp_path: Path
) -> None:
    path = new_config(retriever={"init_from": str(old.directory), "epochs": 1})
    done = run_command("run", path)
    assert done.code == 0, done.err
    assert "4 items added" in done.err + done.out
    assert "IDs before and after" in done.err + done.out
    page = run_command("report", tmp_path / "runs" / "new")
    assert page.code == 0, page.err
    shown = run_command("inspect", "run", "--run", tmp_path / "runs" / "new")
    assert shown.code == 0, shown.err
    assert Bundle(tmp_path / "runs" / "new" / "embeddings" / "source").settings.model == "trie"
