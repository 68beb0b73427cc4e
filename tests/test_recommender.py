"""Test the recommender, which returns lists with names for every model."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.data.splits import SequenceSplit
from recgrit.errors import ConfigError, DataError
from recgrit.models.popularity import Popularity
from recgrit.models.trie import TrieModel
from recgrit.ranking import recommend_shards
from recgrit.recommender import Recommender, listed_items
from tests.small_models import build_inputs

NUM_ITEMS = 8
IDS = [f"i{item}" for item in range(NUM_ITEMS)]
# Item 7 is the most popular item, and item 0 has no interactions.
COUNTS = np.arange(NUM_ITEMS)


@pytest.fixture
def items() -> ItemTable:
    return ItemTable(pl.DataFrame({"item_id": IDS, "title": [f"Film {i}" for i in IDS]}))


@pytest.fixture
def recommender(items: ItemTable) -> Recommender:
    return Recommender(Popularity(COUNTS), items, beam_width=20)


def ids(found: pl.DataFrame) -> list[str]:
    return found["item_id"].to_list()


def test_lists_are_named(recommender: Recommender) -> None:
    found = recommender.recommend_after({"me": ["i7", "i5"], "you": ["i0"]}, top_k=3)
    assert found.columns == ["user_id", "rank", "item_id", "title", "score", "source"]
    assert ids(found) == ["i6", "i4", "i3", "i7", "i6", "i5"]
    assert found["user_id"].to_list() == ["me"] * 3 + ["you"] * 3
    assert found["title"][0] == "Film i6"
    assert found["score"].to_list() == [6, 4, 3, 7, 6, 5]


def test_seen_items_are_listed_on_request(recommender: Recommender) -> None:
    found = recommender.recommend_after({"me": ["i7"]}, top_k=2, exclude_seen=False)
    assert ids(found) == ["i7", "i6"]


def test_filters_narrow_the_lists(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    history = {"me": ["i0"]}
    found = recommender.recommend_after(
        history, allowed_items=["i1", "i2", "i3", "nothing"], blocked_items=["i3", "no", "such"]
    )
    assert ids(found) == ["i2", "i1"]
    assert "1 of 4 allowed items are not in the catalogue" in caplog.text
    assert "2 of 3 blocked items are not in the catalogue" in caplog.text
    with pytest.raises(DataError, match="all are filtered out"):
        recommender.recommend_after(history, allowed_items=[])
    with pytest.raises(DataError, match="top_k must be at least 1, got 0"):
        recommender.recommend_after(history, top_k=0)


@pytest.mark.parametrize("top_k", [0, -1, None, True, 2.5, "5"])
def test_lists_without_a_length_are_refused(recommender: Recommender, top_k: Any) -> None:
    with pytest.raises(DataError, match="top_k must be at least 1"):
        recommender.recommend_after({"me": ["i0"]}, top_k=top_k)


def test_a_bare_string_is_one_id_wherever_ids_are_listed(items: ItemTable) -> None:
    digits = items.frame.with_columns(pl.col("item_id").str.replace("i", "1"))
    recommender = Recommender(Popularity(COUNTS), ItemTable(digits), beam_width=20)
    found = recommender.recommend_after({"me": "17"}, top_k=2)
    assert found.equals(recommender.recommend_after({"me": ["17"]}, top_k=2))
    assert ids(recommender.recommend_after({"me": ["10"]}, allowed_items="13")) == ["13"]
    found = recommender.recommend_after({"me": ["10"]}, top_k=1, blocked_items="17")
    assert ids(found) == ["16"]
    with pytest.raises(DataError, match="Expected a list of histories"):
        recommender.rank_histories("17")
    with pytest.raises(DataError, match="Expected a dict of names and their histories"):
        recommender.recommend_after(["17"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="entry 0 of history 0 is 17"):
        recommender.recommend_after({"me": [17]})  # type: ignore[list-item]


def test_nulls_of_a_history_are_ignored_and_counted(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    found = recommender.recommend_after({"me": ["i7", None, "i5"], "you": [None]}, top_k=3)
    assert found.equals(recommender.recommend_after({"me": ["i7", "i5"]}, top_k=3))
    assert "2 nulls in the histories are ignored" in caplog.text
    assert "1 histories hold no known item" in caplog.text
    found = recommender.recommend_after({"me": ["i0"]}, top_k=1, blocked_items=[None, "i7"])
    assert ids(found) == ["i6"]


def test_items_that_left_the_catalogue_are_never_recommended(items: ItemTable) -> None:
    listed = np.ones(NUM_ITEMS, dtype=bool)
    listed[7] = False
    recommender = Recommender(Popularity(COUNTS), items, beam_width=20, listed=listed)
    assert ids(recommender.recommend_after({"me": ["i7"]}, top_k=2)) == ["i6", "i5"]
    found = recommender.recommend_after({"me": ["i0"]}, allowed_items=["i7", "i1"])
    assert ids(found) == ["i1"], "not even where they are allowed"
    with pytest.raises(DataError, match="all are filtered out"):
        recommender.ranker(allowed_items=["i7"])


def test_unknown_items_are_ignored_and_logged(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    histories = {"me": ["i7", "x"], "nobody": [], "stranger": ["y"]}
    found = recommender.recommend_after(histories, top_k=1)
    assert found["user_id"].to_list() == ["me"]
    assert "2 items of the histories are not in the catalogue" in caplog.text
    assert "2 histories hold no known item" in caplog.text
    caplog.clear()
    recommender.recommend_after({"me": ["i7", "x"]}, top_k=1)
    assert "1 item of the histories is not in the catalogue" in caplog.text
    lists = recommender.rank_histories(list(histories.values()), top_k=1)
    assert lists.users.tolist() == [0], "places in the sequence"


def test_users_of_a_split_are_listed_in_shards(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = SequenceSplit.of_histories(
        np.array([7, 6, 5, 0], np.int32), np.array([0, 1, 2, 4]), NUM_ITEMS
    )
    users = pl.Series(["a", "b", "c"])
    monkeypatch.setitem(recommend_shards.__kwdefaults__, "shard_users", 2)
    shards = list(recommender.list_users(split, users, top_k=2))
    assert [shard["user_id"].to_list() for shard in shards] == [["a", "a", "b", "b"], ["c", "c"]]
    assert ids(pl.concat(shards)) == ["i6", "i5", "i7", "i5", "i7", "i6"]
    (some,) = recommender.list_users(split, users, np.array([2]), top_k=1)
    assert some["user_id"].to_list() == ["c"]
    ranker = recommender.ranker(blocked_items=["i7"])
    (some,) = recommender.list_users(split, users, np.array([2]), ranker=ranker, top_k=1)
    assert ids(some) == ["i6"]


def test_an_unfiltered_ranker_is_built_once(recommender: Recommender) -> None:
    assert recommender.ranker() is recommender.ranker()
    assert recommender.ranker(blocked_items=["i1"]) is not recommender.ranker()


def test_only_the_trie_model_explains(recommender: Recommender) -> None:
    split = SequenceSplit.of_histories(np.array([7], np.int32), np.array([0, 1]), NUM_ITEMS)
    with pytest.raises(ConfigError, match="Only the trie model explains"):
        recommender.explain(split, 0, "i1")


def test_the_filling_of_a_list_is_no_item() -> None:
    assert listed_items(np.array([3, 1, -1, -1], np.int32)).tolist() == [3, 1]


@pytest.fixture
def trie(make_model, make_table, random_codes, make_split):  # type: ignore[no-untyped-def]
    """Build a trie model of 40 items, its ID table, and sequences."""
    codes = random_codes(40)
    split = make_split(np.random.default_rng(0).integers(0, 40, (6, 8)), 40)
    table = make_table(codes)
    return TrieModel(make_model(codes), build_inputs(split, table), None), table, split


def test_a_beam_has_the_requested_width_or_every_item_is_scored(trie) -> None:  # type: ignore[no-untyped-def]
    model, table, _ = trie
    recommender = Recommender(model, table, beam_width=5)
    assert recommender.ranker().beam_width == 5
    assert recommender.ranker(beam_width=7).beam_width == 7
    assert recommender.ranker(beam_width="exact").beam_width is None
    history = [table.item_ids.head(3).to_list()]
    ranker = recommender.ranker(beam_width="exact")
    found = recommender.rank_histories(history, ranker=ranker, top_k=40, exclude_seen=False)
    assert sorted(found.items[0].tolist()) == list(range(40))
    assert np.exp(found.scores[0]).sum() == pytest.approx(1, abs=1e-4)
    named = recommender.recommend_after({"x": history[0]}, top_k=4, beam_width=40)
    assert named["semantic_id"].to_list() == [table.text_of(item) for item in named["item_id"]]


def test_an_explanation_may_stop_before_a_target(trie) -> None:  # type: ignore[no-untyped-def]
    """The history ends before the validation target, before the test target, or not at all."""
    model, table, split = trie
    recommender = Recommender(model, table, beam_width=5)

    def log_p(history: np.ndarray, item: int) -> float:  # type: ignore[type-arg]
        found = recommender.rank_histories(
            [table.item_ids.gather(history.tolist()).to_list()],
            ranker=recommender.ranker(beam_width="exact"),
            top_k=40,
            exclude_seen=False,
        )
        return float(found.scores[0][found.items[0] == item][0])

    histories = {
        "valid": split.history(1, "valid"),
        "test": split.history(1, "test"),
        "all": split.full_sequence(1),
    }
    for name, history in histories.items():
        steps = recommender.explain(split, 1, "item 9", history=name, num_siblings=0)
        explained = np.log(steps.filter("chosen")["probability"].product())
        assert explained == pytest.approx(log_p(np.asarray(history), 9), abs=1e-3), name


def test_histories_without_known_items_get_popular_items_on_request(
    items: ItemTable, caplog: pytest.LogCaptureFixture
) -> None:
    class Backwards(Popularity):
        """A model with the least popular items first, so its lists differ from popularity."""

    listed = np.array([True] * 6 + [False, True])
    recommender = Recommender(
        Backwards(-COUNTS), items, beam_width=20, listed=listed, counts=COUNTS
    )
    histories = {"new": ["never heard of"], "me": ["i7"], "none": []}
    found = recommender.recommend_after(histories, top_k=2, fallback="popular")
    assert found["user_id"].to_list() == ["me", "me", "new", "new", "none", "none"]
    assert found["source"].to_list() == ["history"] * 2 + ["popular"] * 4
    assert ids(found) == ["i0", "i1", "i7", "i5", "i7", "i5"], "i6 is not listed"
    assert found["score"].to_list()[2:4] == [7, 5]
    found = recommender.recommend_after(
        {"none": []}, top_k=9, fallback="popular", blocked_items=["i7"], allowed_items=["i7", "i2"]
    )
    assert ids(found) == ["i2"]
    without = recommender.recommend_after(histories, top_k=2)
    assert without["user_id"].unique().to_list() == ["me"]
    assert "2 histories hold no known item and get no list; fallback='popular'" in caplog.text
    with pytest.raises(ConfigError, match="fallback must be 'popular'"):
        recommender.recommend_after(histories, fallback="newest")  # type: ignore[arg-type]


def test_popular_items_without_counts_are_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match="no popular items to fall back on"):
        recommender.recommend_after({"me": []}, fallback="popular")
