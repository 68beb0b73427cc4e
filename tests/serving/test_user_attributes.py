"""Test the token of user attributes before the history, from the settings to serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from recgrit.models.trie import TrieModel
from recgrit.ranking import Histories, recommend_items
from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.files import read_items
from recgrit.serving.writing import export_bundle
from tests.conftest import run_command

LIKES = ("tea", "bikes", "books", "lamps")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_config: Any) -> Run:
    """Make a run of a shop in which only a user's segment predicts the user's items."""
    folder = tmp_path_factory.mktemp("segments")
    draw = np.random.default_rng(0)
    events, users = [], []
    for user in range(80):
        segment = user % len(LIKES)
        users.append(f"u{user:03},{LIKES[segment]}\n")
        for time, item in enumerate(draw.permutation(10)[:8]):
            events.append(f"u{user:03},{LIKES[segment]}{item},{1000 + time}\n")
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + "".join(events))
    (folder / "users.csv").write_text("user_id,segment\n" + "".join(users))
    rows = [f"{kind}{item},{kind} number {item}\n" for kind in LIKES for item in range(10)]
    (folder / "items.csv").write_text("item_id,title\n" + "".join(rows))
    config = write_config(
        folder / "shop.yaml",
        folder / "events.csv",
        folder / "run",
        data={
            "source": "table",
            "min_item_interactions": 1,
            "table": {
                "items_path": str(folder / "items.csv"),
                "users_path": str(folder / "users.csv"),
            },
        },
        retriever={
            "user_attributes": ["segment"],
            "neighbours": [],
            "epochs": 4,
            "node_dropout": 0.2,
        },
        evaluation={"segments": ["segment"], "baselines": []},
    )
    done = run_command("run", config, "--json")
    assert done.code == 0, done.err
    groups = done.json()["groups"]["segment: segment"]
    assert sorted(groups) == sorted(LIKES)
    return Run(folder / "run", device="cpu")


def network_of(model: Any) -> Any:
    assert isinstance(model, TrieModel)
    return model.network


def test_known_users_have_their_segment_and_unknown_users_none(run: Run) -> None:
    data, network = run.data, network_of(run.model())
    assert "user token" in run.manifest("train").summary["num_parameters"]
    codes = network.user_token.vectors.codes
    assert len(codes) == data.interactions.num_users + 1
    assert data.users is not None
    segments = data.users["segment"].to_list()
    assert len({(segment, tuple(row)) for segment, row in zip(segments, codes.tolist())}) == 4  # noqa: B905
    history = torch.zeros((3, 1), dtype=torch.int64)
    lengths = torch.ones(3, dtype=torch.int64)
    ranker = run.recommender().ranker()
    unlike = [segments.index("tea"), segments.index("books"), -1]
    found = ranker.rank(
        Histories(history, lengths, torch.tensor(unlike)), top_k=5, excluded=None
    ).scores
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    nobody = ranker.rank(Histories(history, lengths), top_k=5, excluded=None).scores
    torch.testing.assert_close(nobody[0], found[2])
    # A user who joins later has no attributes yet.
    late = torch.full((3,), len(codes) + 5)
    assert torch.equal(
        ranker.rank(Histories(history, lengths, late), top_k=5, excluded=None).scores, nobody
    )


def test_a_bundle_with_users_gives_the_lists_of_its_run(run: Run, tmp_path: Path) -> None:
    data = run.data
    bundle = export_bundle(run, tmp_path / "with", with_users=True)
    users = np.arange(6)
    split = bundle.users.split
    ours, theirs = (
        recommend_items(ranker, of, "all", users, top_k=5, masked=False)
        for ranker, of in (
            (run.recommender().ranker(), data.split),
            (bundle.recommender().ranker(), split),
        )
    )
    assert np.array_equal(ours.items, theirs.items)
    after = append_items(bundle, tmp_path / "after", read_items(_new(tmp_path))).bundle
    found = recommend_items(
        after.recommender().ranker(), after.users.split, "all", users, top_k=5, masked=False
    )
    assert found.items.shape == ours.items.shape
    assert np.array_equal(after.user_attributes.codes, bundle.user_attributes.codes)  # type: ignore[union-attr]


def test_a_bundle_without_users_contains_no_user_attributes(run: Run, tmp_path: Path) -> None:
    bundle = export_bundle(run, tmp_path / "without")
    assert bundle.user_attributes is not None
    assert len(bundle.user_attributes.codes) == 1
    history = {"anyone": run.data.items.item_ids.head(2).to_list()}
    assert bundle.recommend_after(history).equals(run.recommender().recommend_after(history))


def test_the_served_model_reads_the_segment_of_a_named_user(run: Run, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    from recgrit.serving.pyfunc import save_pyfunc

    export_bundle(run, tmp_path / "bundle", with_users=True)
    bundle = Bundle(tmp_path / "bundle", device="cpu")
    save_pyfunc(bundle, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    name = run.data.interactions.user_ids[0]
    history = bundle.items.item_ids.gather(bundle.users.history(name)).to_list()
    named = model.predict(pd.DataFrame({"user_id": [name]}))["scores"][0]
    unnamed = model.predict(pd.DataFrame({"history": [history]}))["scores"][0]
    table = run.recommend(name).filter(pl.col("rank") <= len(named))
    assert named == pytest.approx(table["score"].to_list(), abs=1e-4)
    assert named != pytest.approx(unnamed, abs=1e-4)


def test_columns_that_the_users_lack_are_refused(run: Run, command: Any, tmp_path: Path) -> None:
    said = command("train", run.directory, "retriever.user_attributes=[age]").error_message()
    assert "retriever.user_attributes names age" in said
    assert "it has segment" in said


def _new(folder: Path) -> Path:
    path = folder / "new.csv"
    path.write_text("item_id,title\ntea10,tea number 10\n")
    return path
