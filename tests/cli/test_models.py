"""Test the commands run, inspect, recommend and export with every built-in model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recgrit.errors import ConfigError
from recgrit.models.registry import MODELS, find_model
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle

Command = Callable[..., Any]

TRAINING = {
    "epochs": 2,
    "batch_targets": 128,
    "learning_rate": 0.01,
    "warmup_steps": 5,
    "device": "cpu",
    "precision": "float32",
}
SIZES = {"model_dim": 16, "num_layers": 1, "num_heads": 2, "history_length": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": TRAINING | SIZES,
    "tiger": TRAINING | SIZES | {"head_dim": 8, "hidden_dim": 32},
    "decoder": TRAINING | SIZES,
    "item_knn": {"num_neighbours": 20},
}
# All other tests use the trie model.
KINDS = [kind for kind in MODELS if kind != "trie"]


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest,
    tiny_data: Path,
    write_config: Callable[..., Path],
    run_command: Command,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, Any]:
    """Return a finished run of one model, and the result of the command that made it."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    sections = {"model": {"kind": kind}}
    if kind in SETTINGS:
        sections[kind] = SETTINGS[kind]
    config = write_config(folder / "x.yaml", tiny_data, folder / "runs" / kind, **sections)
    done = run_command("run", config, "--json")
    assert done.code == 0, done.err
    return Run(folder / "runs" / kind), done


def test_stages_that_a_model_does_not_need_are_not_run(made: tuple[Run, Any]) -> None:
    run, done = made
    values, needs = done.json(), find_model(run.model_kind).needs
    others = [kind for kind in ("popularity", "item_knn") if kind != run.model_kind]
    before = ["embed", "tokenize"] if "tokenize" in needs else list(needs)
    assert list(values["artifacts"]) == [
        "prepare",
        *before,
        "train",
        *(f"baseline-{kind}" for kind in others),
        "evaluate",
        "recommend",
    ]
    assert (run.directory / "semantic_ids").is_dir() == ("tokenize" in needs)
    assert values["model"] == run.directory.name == run.model_kind
    assert set(values["baselines"]) == set(others), "a model is not measured beside itself"
    assert 0 < values["test"]["recall_at_10"] <= 1
    assert ("inspect item" in done.out) == ("tokenize" in needs), "the next steps fit the model"
    trained = "best_epoch" in run.manifest("train").summary
    assert (run.directory / "model" / "epochs.parquet").is_file() == trained
    searches = find_model(run.model_kind).searches
    search = run.report("test").protocol["search"]
    assert search == ("beam of 40" if searches else "all items scored")


def test_it_recommends_by_the_command(made: tuple[Run, Any], command: Command) -> None:
    run, _ = made
    done = command("recommend", "--run", run.directory, "--user", "5", "-k", "4", "--json")
    assert done.code == 0, done.err
    rows = done.json()["recommendations"]
    assert len(rows) == 4
    assert ("semantic_id" in rows[0]) == ("tokenize" in find_model(run.model_kind).needs)
    assert all(row["title"] in done.out for row in rows)
    assert not {row["item_id"] for row in rows} & set(run.history("5")["item_id"])
    written = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    assert written.filter(user_id="5")["item_id"].head(4).to_list() == [r["item_id"] for r in rows]


def test_it_can_be_inspected(made: tuple[Run, Any], command: Command) -> None:
    run, _ = made
    done = command("inspect", "run", "--run", run.directory, "--json")
    assert done.code == 0, done.err
    assert set(done.json()["stages"]) == set(run.stages())
    assert f"Model {run.model_kind}: " in done.out


def test_nothing_is_redone(made: tuple[Run, Any], command: Command) -> None:
    run, _ = made
    done = command("run", run.directory, "--json")
    assert done.json()["up_to_date"] == list(done.json()["artifacts"])


def test_its_bundle_recommends_the_same_lists(
    made: tuple[Run, Any], command: Command, tmp_path: Path
) -> None:
    run, folder = made[0], tmp_path / "bundle"
    assert command("export", "bundle", "--run", run.directory, "--out", folder).code == 0
    users = ["3", "5", "8"]
    histories = {user: run.history(user)["item_id"].to_list() for user in users}
    bundle = Bundle(folder)
    # The source is "history" because a bundle does not know the users that its model was trained
    # on.
    found, expected = bundle.recommend_after(histories), run.recommend(users)
    assert set(found["source"]) == {"history"}
    assert set(expected["source"]) == {"model"}
    assert_frame_equal(found.drop("source"), expected.drop("source"), rel_tol=1e-4)
    assert bundle.settings.model == run.model_kind
    # The command recommends for a user who is not in the run.
    rows = [{"user_id": "me", "item_id": item, "timestamp": 1} for item in ("7", "11")]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lists = tmp_path / "lists.parquet"
    asked = ("--histories", tmp_path / "h.jsonl", "--out", lists)
    assert command("recommend", "--bundle", folder, *asked).code == 0
    expected = bundle.recommend_after({"me": ["7", "11"]})
    assert pl.read_parquet(lists)["item_id"].equals(expected["item_id"])


def test_items_are_not_appended_if_the_model_cannot_rank_them(
    made: tuple[Run, Any], command: Command, tmp_path: Path
) -> None:
    run, folder = made[0], tmp_path / "bundle"
    assert not find_model(run.model_kind).can_append
    assert command("export", "bundle", "--run", run.directory, "--out", folder).code == 0
    (tmp_path / "new.csv").write_text("item_id,title\nn1,Star\n")
    told = command(
        "append", folder, tmp_path / "new.csv", "--out", tmp_path / "next"
    ).error_message()
    assert f"has the model {run.model_kind}, which cannot rank items" in told
    assert "model.kind=trie" in told
    assert not (tmp_path / "next").exists()


def test_an_mlflow_model_answers_as_the_run_does(
    made: tuple[Run, Any], command: Command, tmp_path: Path
) -> None:
    run, folder = made[0], tmp_path / "model"
    done = command("export", "mlflow", "--run", run.directory, "--out", folder)
    assert done.code == 0, done.err
    import mlflow.pyfunc
    import pandas as pd

    history = run.history("3")["item_id"].to_list()
    found = mlflow.pyfunc.load_model(str(folder)).predict(pd.DataFrame({"history": [history]}))
    assert found["item_ids"][0] == run.recommend("3")["item_id"].to_list()


def test_features_of_the_trie_model_are_refused_with_the_reason(
    made: tuple[Run, Any], command: Command, tmp_path: Path
) -> None:
    run, _ = made
    with pytest.raises(ConfigError, match="Only the trie model explains its lists"):
        run.explain("5", "1")
    if "tokenize" in find_model(run.model_kind).needs:
        return
    for arguments in (
        ("inspect", "item", "1", "--run", run.directory),
        ("export", "table", "--run", run.directory, "--out", tmp_path / "out"),
    ):
        told = command(*arguments).error_message()
        assert f"has the model {run.model_kind}, which needs no semantic IDs" in told
        assert f"recgrit tokenize {run.directory}" in told
