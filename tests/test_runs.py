"""Test a finished run as notebooks and services use it."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from recgrit.errors import ArtifactError, ConfigError, DataError
from recgrit.evaluation.report import ReportKey
from recgrit.experiment import ExperimentConfig
from recgrit.layout import FOLDERS, stage_directory
from recgrit.models.trie import TrieModel
from recgrit.ranking import recommend_shards
from recgrit.retrieval.neighbours import ItemNeighbours, Strengths
from recgrit.runs import Run
from recgrit.semantic_ids.table import parse_semantic_id
from tests.forging import forge, forge_run

if TYPE_CHECKING:
    FinishedRun = Any

MIXED = Strengths(mixture=0.3, near=0.0, next=0.0, alike=0.0)


@pytest.fixture(scope="module")
def run(tiny_run: FinishedRun) -> Run:
    """Open the run, with neighbours that are mixed into probabilities and add no bonus.

    Scores are therefore log P.
    """
    run = Run(tiny_run.directory)
    neighbours_of(run).strengths = MIXED
    return run


def neighbours_of(run: Run) -> ItemNeighbours:
    model = run.model()
    assert isinstance(model, TrieModel)
    assert model.network.neighbours is not None
    return model.network.neighbours


def test_recommendations_have_titles_and_falling_scores(run: Run) -> None:
    found = run.recommend(["3", "1"], top_k=5)
    assert found.columns == [
        "user_id",
        "rank",
        "item_id",
        "title",
        "semantic_id",
        "score",
        "source",
    ]
    assert found["user_id"].to_list() == ["3"] * 5 + ["1"] * 5, "in the order asked for"
    assert found["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    titles = dict(run.data.items.frame.select("item_id", "title").iter_rows())
    for row in found.iter_rows(named=True):
        assert row["title"] == titles[row["item_id"]]
        assert parse_semantic_id(row["semantic_id"]) == run.semantic_ids.codes_of(row["item_id"])
    for _, rows in found.group_by("user_id"):
        assert rows["score"].is_sorted(descending=True)
        assert rows["score"].max() < 0, "a log-probability"


def test_items_of_the_history_are_excluded(run: Run) -> None:
    for user in ("1", "17", "60"):
        seen = set(run.history(user)["item_id"])
        new = run.recommend([user], top_k=40)
        assert not seen & set(new["item_id"])
        assert len(seen) + new.height == 40
        repeated = run.recommend([user], top_k=40, exclude_seen=False)
        assert seen <= set(repeated["item_id"])


def test_only_allowed_items_come_and_blocked_ones_never(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    everything = run.recommend("1", top_k=40)
    wanted = everything["item_id"].to_list()
    # Fewer items than top_k are allowed, so all of them are listed, in their order among all items.
    allowed = run.recommend("1", top_k=5, allowed_items=[wanted[-1], wanted[3], "no such item"])
    assert allowed["item_id"].to_list() == [wanted[3], wanted[-1]]
    assert "1 of 3 allowed items are not in the catalogue" in caplog.text
    scores = dict(everything.select("item_id", "score").iter_rows())
    for item_id, score in allowed.select("item_id", "score").iter_rows():
        assert score == pytest.approx(scores[item_id], abs=1e-4), "never renormalised"
    blocked = run.recommend("1", top_k=5, blocked_items=wanted[:2])
    assert blocked["item_id"].to_list() == wanted[2:7]
    both = run.recommend("1", top_k=5, allowed_items=wanted[:4], blocked_items=wanted[:2])
    assert both["item_id"].to_list() == wanted[2:4]
    with pytest.raises(DataError, match="all are filtered out"):
        run.recommend("1", allowed_items=wanted[:2], blocked_items=wanted[:2])
    with pytest.raises(DataError, match="all are filtered out"):
        run.recommend("1", allowed_items=[])


def test_recommendations_come_in_shards_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.recommend(top_k=3)
    monkeypatch.setitem(recommend_shards.__kwdefaults__, "shard_users", 7)
    assert len(list(run.iterate_recommendations(top_k=3))) == -(-whole["user_id"].n_unique() // 7)
    assert_frame_equal(pl.concat(run.iterate_recommendations(top_k=3)), whole, rel_tol=1e-4)


@pytest.fixture(scope="module")
def exact(run: Run) -> dict[str, float]:
    """Return P of every item after all items of user 5, by scores of the whole catalogue."""
    users = np.flatnonzero(run.data.interactions.user_ids == "5")
    found = next(
        recommend_shards(
            run.ranker(beam_width="exact"), run.data.split, users, top_k=40, masked=False
        )
    )
    ids = run.semantic_ids.item_ids.gather(found.items[0])
    return dict(zip(ids, np.exp(found.scores[0].astype(float)), strict=True))


@pytest.mark.parametrize("item_id", ["1", "17", "40"])
def test_an_explanation_multiplies_to_the_exact_probability(
    run: Run, exact: dict[str, float], item_id: str
) -> None:
    steps = run.explain("5", item_id, num_siblings=100)
    chosen = steps.filter("chosen")
    assert chosen["level"].to_list() == list(range(run.semantic_ids.id_length))
    assert "".join(chosen["code"]) == run.semantic_ids.text_of(item_id)
    assert chosen["probability"].product() == pytest.approx(exact[item_id], rel=1e-4)
    # The probability of a code is the probability of the items below it, divided by that of the
    # prefix.
    table = run.semantic_ids
    for row in steps.iter_rows(named=True):
        prefix = table.codes_of(item_id)[: row["level"]]
        code = parse_semantic_id(f"<a_{row['code'].strip('<>').split('_')[1]}>")
        below = table.item_ids.gather(table.items_with_prefix((*prefix, *code)))
        around = table.item_ids.gather(table.items_with_prefix(prefix))
        expected = sum(map(exact.get, below)) / sum(map(exact.get, around))
        assert row["probability"] == pytest.approx(expected, rel=1e-3)
        assert row["num_items"] == len(below)
        assert set(row["titles"]) <= set(run.data.items.titles)
    for _, rows in steps.group_by("level"):
        assert rows["probability"].sum() == pytest.approx(1, abs=1e-5)
        assert rows["rank"].to_list() == list(range(1, rows["num_codes"][0] + 1))
        assert rows["probability"].is_sorted(descending=True)


def test_an_explanation_says_what_the_neighbours_add(run: Run, exact: dict[str, float]) -> None:
    neighbours = neighbours_of(run)
    users = np.flatnonzero(run.data.interactions.user_ids == "5")
    neighbours.strengths = replace(MIXED, mixture=0.0)
    try:
        ranker = run.ranker(beam_width="exact")
        found = next(recommend_shards(ranker, run.data.split, users, top_k=40, masked=False))
    finally:
        neighbours.strengths = MIXED
    ids = run.semantic_ids.item_ids.gather(found.items[0])
    alone = dict(zip(ids, np.exp(found.scores[0].astype(float)), strict=True))
    shares = []
    for item_id, probability in exact.items():
        last = run.explain("5", item_id, num_siblings=0).row(-1, named=True)
        left = (1 - MIXED.mixture) * alone[item_id] / probability
        assert last["neighbour_share"] == pytest.approx(1 - left, abs=1e-3)
        shares.append(last["neighbour_share"])
    assert min(shares) == 0, "items of the history, or far from it"
    assert max(shares) > 0.3


def test_an_explained_score_is_log_p_and_what_neighbours_boost_it_by(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths = Strengths(mixture=0.3, near=0.4, next=0.2, alike=4.0)
    monkeypatch.setattr(neighbours_of(run), "strengths", strengths)
    boosts = []
    listed = run.recommend(["5"], top_k=5, exclude_seen=False)
    for item_id, score in listed.select("item_id", "score").iter_rows():
        chosen = run.explain("5", item_id).filter("chosen")
        boosts.append(chosen["boost"][-1])
        log_p = np.log(chosen["probability"].product())
        assert score == pytest.approx(log_p + boosts[-1], abs=1e-3)
        # A prefix has the largest boost of the items below it, so the boost shrinks along a path.
        assert chosen["boost"].is_sorted(descending=True)
    assert max(boosts) > 0


def test_explained_ranks_are_by_score(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With boosts, items of one parent have the same order in an explanation as in a list."""
    monkeypatch.setattr(neighbours_of(run), "strengths", replace(MIXED, near=1.0))
    swapped = 0
    for user in ("3", "5", "7"):
        listed = run.recommend([user], top_k=40, beam_width=64, exclude_seen=False)
        of_parents: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for item_id in listed["item_id"]:
            last = run.explain(user, item_id).filter("chosen").row(-1, named=True)
            parent = tuple(run.semantic_ids.codes_of(item_id)[:-1])
            of_parents.setdefault(parent, []).append(last)
        for rows in of_parents.values():
            assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
            swapped += sum(
                first["probability"] < second["probability"]
                for first, second in itertools.pairwise(rows)
            )
    assert swapped, "somewhere the order by probability is another"


def test_an_explanation_shows_as_many_siblings_as_wanted(run: Run) -> None:
    steps = run.explain("5", "1", num_siblings=1, num_titles=2)
    assert all(rows.height <= 2 for _, rows in steps.group_by("level"))
    assert steps["titles"].list.len().max() == 2
    # The titles of a code are those of the most popular items below it.
    counts = run.data.split.train_item_counts()
    first = steps.filter("chosen", level=0).row(0, named=True)
    below = run.semantic_ids.items_with_prefix(run.semantic_ids.codes_of("1")[:1])
    by_title = {run.data.items.titles[int(item)]: counts[item] for item in below}
    assert [by_title[title] for title in first["titles"]] == sorted(by_title.values())[:-3:-1]
    with pytest.raises(DataError, match="No item 'x'"):
        run.explain("5", "x")
    with pytest.raises(DataError, match="Unknown user"):
        run.explain("x", "1")


def test_histories_from_elsewhere_are_recommended_for(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    history = run.history("3")["item_id"].to_list()
    expected = run.recommend("3", top_k=5)
    found = run.recommend_after({"like 3": history, "nobody": []}, top_k=5)
    assert found.columns == expected.columns
    assert found["user_id"].to_list() == ["like 3"] * 5
    assert found["item_id"].to_list() == expected["item_id"].to_list()
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
    assert "1 histories hold no known item" in caplog.text
    caplog.clear()
    spoilt = run.recommend_after({"x": ["never heard of", *history], "y": ["nor of this"]}, top_k=5)
    assert spoilt["item_id"].to_list() == expected["item_id"].to_list()
    assert "2 items of the histories are not in the catalogue" in caplog.text
    assert run.recommend_after({}).height == 0
    assert run.recommend_after({"x": ["nothing known"]}).height == 0


def test_of_a_long_history_the_end_is_read(run: Run) -> None:
    window = run.config.retriever.history_length
    recent = run.history("3")["item_id"].to_list()
    long = (recent[::-1] * 9)[: 3 * window] + (recent * 9)[:window]
    found = run.recommend_after({"x": long}, exclude_seen=False, top_k=5)
    short = run.recommend_after({"x": long[-window:]}, exclude_seen=False, top_k=5)
    assert found["item_id"].to_list() == short["item_id"].to_list()


@pytest.mark.parametrize("top_k", [0, -3])
def test_a_list_needs_a_length(run: Run, top_k: int) -> None:
    with pytest.raises(DataError, match="top_k must be at least 1"):
        run.recommend("1", top_k=top_k)


def test_one_user_may_be_named_without_a_list(run: Run) -> None:
    # Users "1" and "7" exist too, so the text "17" must not be read as a list of letters.
    assert run.recommend("17", top_k=3).equals(run.recommend(["17"], top_k=3))


def test_the_saved_tokenizer_gives_the_codes_of_the_table(run: Run) -> None:
    tokenizer = run.tokenizer
    features = torch.from_numpy(np.array(run.features.vectors))
    codes = tokenizer.quantizer.encode(tokenizer.encode_latent(features)).numpy()
    np.testing.assert_array_equal(codes, run.semantic_ids.codes[:, : codes.shape[1]])


def test_all_users_by_default(run: Run) -> None:
    found = run.recommend(top_k=2)
    assert found["user_id"].unique(maintain_order=True).equals(run.data.interactions.user_ids)
    assert found.height == 120


def test_probabilities_of_all_items_sum_to_one(run: Run) -> None:
    found = run.recommend(["5"], top_k=40, exclude_seen=False)
    assert np.exp(found["score"].to_numpy()).sum() == pytest.approx(1, abs=1e-4)


def test_history_is_in_time_order(run: Run, tiny_run: FinishedRun) -> None:
    raw = pl.read_csv(
        tiny_run.data / "u.data",
        separator="\t",
        has_header=False,
        new_columns=["user", "item", "rating", "time"],
    )
    expected = raw.filter(pl.col("user") == 42).sort("time")["item"].cast(pl.String).to_list()
    history = run.history("42")
    assert history.columns == ["item_id", "title", "semantic_id"]
    assert history["item_id"].to_list() == expected


def test_semantic_ids_both_ways(run: Run) -> None:
    table = run.semantic_ids
    assert len(table) == 40
    for item_id in ("1", "40"):
        assert table.item_of(table.codes_of(item_id)) == item_id
    assert table.item_of((7,) * table.id_length) in (None, *table.item_ids)


def test_every_part_as_a_pandas_frame(run: Run) -> None:
    frames = {
        "semantic ids": (run.semantic_ids.to_pandas(), 40),
        "interactions": (run.data.interactions.to_pandas(), len(run.data.interactions)),
        "items": (run.data.items.to_pandas(), 40),
        "report": (run.report("test").to_pandas(), 60),
        "recommendations": (run.recommend(["1"]).to_pandas(), 10),
    }
    for name, (frame, height) in frames.items():
        assert isinstance(frame, pd.DataFrame), name
        assert len(frame) == height, name


def test_every_table_can_be_read_by_pandas(tiny_run: FinishedRun) -> None:
    paths = list(tiny_run.directory.rglob("*.parquet"))
    assert len(paths) > 8
    for path in paths:
        assert len(pd.read_parquet(path)) > 0, path


def test_reports_match_what_was_printed(run: Run, tiny_run: FinishedRun) -> None:
    values = tiny_run.result.json()
    models, splits = ("trie", "popularity", "item_knn"), ("valid", "test")
    assert set(run.reports) == {
        ReportKey(*key) for key in itertools.product(models, splits, (False, True))
    }
    assert run.report("test", masked=True).metrics() == pytest.approx(values["test_masked"])
    counted = values["baselines"]["item_knn"]["valid"]
    assert run.report("valid", model="item_knn").metrics() == pytest.approx(counted)
    with pytest.raises(ArtifactError, match=r"no report sasrec/test; there are item_knn/test, "):
        run.report("test", model="sasrec")


def test_models_measured_beside_it_recommend_too(run: Run) -> None:
    assert run.model_kind == "trie"
    popular = next(
        run.recommender("popularity").list_users(
            run.data.split, run.data.interactions.user_ids, np.arange(3), top_k=5
        )
    )
    assert "semantic_id" not in popular.columns, "it knows of none"
    counts = dict(zip(run.data.items.item_ids, run.data.split.train_item_counts(), strict=True))
    for item_id, score in popular.select("item_id", "score").iter_rows():
        assert score == counts[item_id]
    with pytest.raises(ConfigError, match=r"no model sasrec. Add it with .*baselines=\[sasrec\]"):
        run.recommender("sasrec")


def test_a_moved_run_works(tiny_run: FinishedRun, tmp_path: Path) -> None:
    moved = Run(shutil.copytree(tiny_run.directory, tmp_path / "else where" / "moved"))
    assert moved.config.run.dir == moved.directory
    # The run has no reference to its original folder.
    stayed = Run(tiny_run.directory)
    assert moved.recommend(["8"]).drop("score").equals(stayed.recommend(["8"]).drop("score"))
    assert moved.report("valid").metrics() == stayed.report("valid").metrics()


def test_a_folder_named_like_a_date(
    tiny_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run.directory, tmp_path / "2024-01-01")
    monkeypatch.chdir(tmp_path)
    assert Run("2024-01-01").config.run.dir == Path("2024-01-01")


def test_it_takes_text_as_a_path(tiny_run: FinishedRun) -> None:
    assert Run(str(tiny_run.directory)).manifest("train").stage == "train"


def test_unknown_users_are_named(run: Run) -> None:
    with pytest.raises(DataError, match=r"Unknown user\(s\) 'x', 'y'.*60 users, such as '"):
        run.recommend(["1", "x", "y"])
    with pytest.raises(DataError, match="Unknown user"):
        run.history("x")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"No run at .*'recgrit run' wrote, with data, embed"):
        Run(tmp_path)
    with pytest.raises(ArtifactError, match="No run at nowhere"):
        Run("nowhere")


@pytest.mark.parametrize("stage", ["tokenize", "train", "evaluate"])
def test_a_part_that_is_missing(copied_run: Path, stage: str) -> None:
    shutil.rmtree(copied_run / FOLDERS[stage])
    run = Run(copied_run)
    assert len(run.data.interactions) > 0
    with pytest.raises(ArtifactError, match=rf"No artifact at .*{FOLDERS[stage]}"):
        _ = run.reports if stage == "evaluate" else run.recommend(["1"])


def test_blocks_of_features_are_found_where_they_are_planned() -> None:
    """An embedding does not record the path of a block's file. The settings provide it."""
    features = {"blocks": {"image": {"dim": 4, "weight": 0.5, "missing": "mean"}}}
    planned = {"blocks": {"image": {"path": "images.npy", "dim": 8}, "sound": {"path": "s.npy"}}}
    recorded = ExperimentConfig.model_validate({"features": planned}).with_recorded(
        "embed", {"seed": 3, "features": features}
    )
    (found,) = recorded.features.blocks.values()
    assert (found.path, found.dim, found.missing) == (Path("images.npy"), 4, "mean")
    gone = ExperimentConfig().with_recorded("embed", {"features": features})
    assert gone.features.blocks["image"].dim == 4, "a block that is no longer planned is shown"


def test_the_seed_is_that_of_the_model(copied_run: Path) -> None:
    path = copied_run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 7"))
    run = Run(copied_run)
    assert (run.plan.seed, run.config.seed, run.seed) == (7, 0, 0)
    shutil.rmtree(copied_run / FOLDERS["train"])
    assert Run(copied_run).seed == 0, "that of the stages before it"
    for stage in ("embed", "tokenize", "evaluate"):
        shutil.rmtree(copied_run / FOLDERS[stage])
    assert Run(copied_run).seed == 7, "nothing was made with a seed"


def test_settings_of_finished_stages_are_shown_apart_from_waiting_ones(
    copied_run: Path, command: Any
) -> None:
    """Settings of finished stages and settings that no stage used yet are shown separately."""
    made = Run(copied_run).config
    changed = ("seed=7", "embedding.dim=9", "retriever.dropout=0.37", "recommendation.top_k=15")
    assert command("prepare", copied_run, *changed).code == 0
    run = Run(copied_run)
    assert run.plan.seed == 7
    assert run.config == made
    assert run.waiting_settings() == {
        "seed": ("0", "7"),
        "embedding.dim": ("16", "9"),
        "retriever.dropout": ("0.1", "0.37"),
        "recommendation.top_k": ("10", "15"),
    }
    shown = command("inspect", "run", "--run", copied_run, "--json")
    assert "embedding.dim = 9 (made with 16)" in shown.out
    assert shown.json()["waiting_settings"]["seed"] == {"made": "0", "planned": "7"}
    assert command("report", copied_run).code == 0
    page = (copied_run / "report.html").read_text()
    assert "not used yet" in page
    assert "dropout: 0.37" not in page
    bundle = copied_run.parent / "bundle"
    assert command("export", "bundle", "--run", copied_run, "--out", bundle).code == 0
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["config"]["ids"]["embedding"]["dim"] == 16
    assert manifest["config"]["ids"]["seed"] == 0


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("prepare", lambda found: found["summary"].update(funnel=[{"step": 1}])),
        ("prepare", lambda found: found["summary"].pop("num_users")),
        ("prepare", lambda found: found["config"].update(table=None)),
        ("tokenize", lambda found: found["summary"].update(diagnostics={})),
        ("tokenize", lambda found: found["config"].update(seed="0")),
        ("train", lambda found: found["summary"].update(num_parameters={"all": -1})),
        ("train", lambda found: found["summary"].pop("num_epochs")),
        ("train", lambda found: found.update(stage="evaluate")),
        ("evaluate", lambda found: found["config"].update(evaluation={"beam_width": -3})),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    copied_run: Path, command: Any, stage: str, change: Any
) -> None:
    forge(stage_directory(copied_run, stage), change)
    forge_run(copied_run)
    for arguments in (("inspect", "run", "--run", copied_run), ("report", copied_run)):
        told = command(*arguments).error_message()
        assert "manifest" in told or "evaluation" in told
