"""Test the LensKit component in LensKit's own pipelines, with its splits, batches and metrics."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recgrit.errors import DataError
from recgrit.runs import Run

pytest.importorskip("lenskit", reason="needs the extra lenskit")

from lenskit.basic import PopScorer
from lenskit.batch import recommend
from lenskit.data import DatasetBuilder, ItemList, RecQuery, from_interactions_df
from lenskit.metrics import NDCG, Recall, RunAnalysis
from lenskit.pipeline import Pipeline, topn_pipeline
from lenskit.splitting import LastN, TTSplit, sample_users
from lenskit.training import TrainingOptions

from recgrit.adapters.lenskit import RecgritScorer

NUM_ITEMS, STEP = 30, 7
# Only the order of items can be learned, because there are no texts. Nothing is downloaded.
QUICK: dict[str, Any] = {"model": {"kind": "transitions"}}


def draw_events(num_users: int = 60) -> pd.DataFrame:
    """Draw shuffled events of users who interact with item i + `STEP` after item i."""
    rows = [
        {"user_id": user, "item_id": 100 + (user + STEP * turn) % NUM_ITEMS, "timestamp": turn}
        for user in range(num_users)
        for turn in range(9 + user % 3)
    ]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    start = pd.Timestamp("2024-01-01")
    return frame.assign(timestamp=start + pd.to_timedelta(frame["timestamp"], unit="h"))


@pytest.fixture(scope="module")
def split() -> TTSplit:
    data = from_interactions_df(draw_events())
    return sample_users(data, 20, LastN(1), rng=1)


@pytest.fixture(scope="module")
def pipeline(split: TTSplit, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    scorer = RecgritScorer(settings=QUICK, run_dir=tmp_path_factory.mktemp("lenskit"))
    made = topn_pipeline(scorer, n=5)
    made.train(split.train, TrainingOptions(rng=7))
    return made


def scorer_of(pipeline: Pipeline) -> RecgritScorer:
    scorer = pipeline.node("scorer").component
    assert isinstance(scorer, RecgritScorer)
    return scorer


def test_lenskit_evaluates_it_and_finds_what_follows(split: TTSplit, pipeline: Pipeline) -> None:
    popular = topn_pipeline(PopScorer(), n=5)
    popular.train(split.train)
    found = {}
    for name, made in (("recgrit", pipeline), ("popular", popular)):
        lists = recommend(made, list(split.test.keys()), n=5, n_jobs=1)
        measures = RunAnalysis(NDCG(5), Recall(5)).measure(lists, split.test)
        found[name] = measures.list_metrics().mean()
    assert found["recgrit"]["Recall@5"] == 1
    assert found["recgrit"]["NDCG@5"] > 0.9
    assert found["popular"]["Recall@5"] < 0.6


def test_a_query_is_read_by_time_and_in_its_order_without_times(pipeline: Pipeline) -> None:
    hours = pd.to_datetime(["2024-01-05", "2024-01-04"]).to_numpy()
    timed, in_order, reversed_order = (
        pipeline.run("scorer", query=RecQuery(history_items=history))
        for history in (
            ItemList(item_ids=[117, 103], timestamp=hours),
            ItemList(item_ids=[103, 117]),
            ItemList(item_ids=[117, 103]),
        )
    )
    np.testing.assert_array_equal(timed.scores(), in_order.scores())
    assert not np.allclose(timed.scores(), reversed_order.scores())


def test_all_candidates_are_scored_as_the_run_does(pipeline: Pipeline) -> None:
    scorer = scorer_of(pipeline)
    candidates = ItemList(item_ids=[120, 101, 999])
    scored = scorer(ItemList(item_ids=[113]), candidates)
    assert scored.ids().tolist() == [120, 101, 999], "in the order that they came in"
    recommender = Run(scorer.directory).recommender()
    expected = dict(
        recommender.recommend_after({"x": ["113"]}, top_k=NUM_ITEMS, exclude_seen=False)
        .select("item_id", "score")
        .iter_rows()
    )
    scores = scored.scores()
    assert scores is not None
    np.testing.assert_allclose(scores[:2], [expected["120"], expected["101"]], atol=1e-5)
    assert np.isnan(scores[2]), "an item that training does not know"


@pytest.mark.parametrize("history", [None, ItemList(item_ids=[]), ItemList(item_ids=[999])])
def test_histories_without_known_items_give_no_scores(
    pipeline: Pipeline, history: ItemList | None
) -> None:
    scored = scorer_of(pipeline)(RecQuery(history_items=history), ItemList(item_ids=[120, 101]))
    assert np.isnan(scored.scores()).all()


def test_a_trained_component_is_pickled_and_trained_once(
    split: TTSplit, pipeline: Pipeline
) -> None:
    scorer = scorer_of(pipeline)
    query, candidates = ItemList(item_ids=[113]), ItemList(item_ids=[120, 101])
    again = pickle.loads(pickle.dumps(scorer))
    np.testing.assert_array_equal(
        again(query, candidates).scores(), scorer(query, candidates).scores()
    )
    before = scorer.directory
    scorer.train(split.train, TrainingOptions(retrain=False))
    assert scorer.directory == before


def test_every_training_has_a_run_of_its_own_with_the_settings_of_both(tmp_path: Path) -> None:
    """Options override the settings file, and item attributes of a LensKit dataset are read."""
    file = tmp_path / "settings.yaml"
    file.write_text(
        "model: {kind: transitions}\n"
        "evaluation: {ks: [3]}\n"
        "data: {min_item_interactions: 4, repeats: last}\n"
    )
    builder = DatasetBuilder()
    item_ids = list(range(100, 100 + NUM_ITEMS))
    builder.add_entities("item", item_ids)
    names = [f"item number {item}" for item in range(NUM_ITEMS)]
    builder.add_scalar_attribute("item", "title", item_ids, names)
    builder.add_interactions(
        "rating", draw_events(40), entities=["user", "item"], missing="insert", default=True
    )
    scorer = RecgritScorer(
        settings={"data": {"min_item_interactions": 2}},
        config_file=file,
        run_dir=tmp_path / "runs",
    )
    folders = []
    for _ in range(2):
        scorer.train(builder.build(), TrainingOptions(rng=7))
        folders.append(scorer.directory)
    assert folders[0] != folders[1]
    assert {folder.parent for folder in folders} == {tmp_path / "runs"}
    config = Run(folders[0]).config
    assert config.evaluation.ks == (3,)
    data = config.data
    assert (data.repeats, data.min_item_interactions, data.min_user_interactions) == ("last", 2, 3)
    assert config.seed == Run(folders[1]).config.seed != 0
    items = Run(folders[0]).data.items
    titles = dict(zip(items.item_ids, items.titles, strict=True))
    assert titles["104"] == "item number 4"


def test_interactions_without_times_are_refused(tmp_path: Path) -> None:
    data = from_interactions_df(draw_events(10).drop(columns="timestamp"))
    with pytest.raises(DataError, match="no column 'timestamp', but user_id, item_id"):
        RecgritScorer(settings=QUICK, run_dir=tmp_path).train(data)
