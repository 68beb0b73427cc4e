"""Compare each kind of similar items with another implementation, and test refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from recgrit import similar
from recgrit.data.items import ItemTable
from recgrit.data.recommendations import NO_ITEM
from recgrit.errors import ConfigError, DataError
from recgrit.models.popularity import Popularity
from recgrit.models.trie import TrieModel
from recgrit.runs import Run
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.similar import WAYS, SimilarItems, Ways, score_cosines, score_ids


@pytest.fixture(scope="module")
def run(tiny_run: Any) -> Run:
    return Run(tiny_run.directory)


def named(num_items: int) -> ItemTable:
    ids = [f"item {number}" for number in range(num_items)]
    return ItemTable(pl.DataFrame({"item_id": ids, "title": ids}))


@given(
    hnp.arrays(np.float32, (3, 9), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, -np.inf])),
    hnp.arrays(np.bool_, 9),
    st.integers(1, 12),
)
def test_lists_are_those_of_a_whole_sort(
    scores: np.ndarray, listed: np.ndarray, top_k: int
) -> None:
    rows = np.array([0, 4, 8])
    finder = SimilarItems(named(9), lambda some: scores[: len(some)], listed=listed)
    found, best = finder.find(rows, top_k=top_k)
    for row, item in enumerate(rows):
        may = [i for i in range(9) if listed[i] and i != item and scores[row, i] > -np.inf]
        expected = sorted(may, key=lambda i: (-scores[row, i], i))[:top_k]
        kept = found[row] != NO_ITEM
        assert found[row][kept].tolist() == expected
        assert best[row][kept].tolist() == scores[row, expected].tolist()


def test_similar_items_by_embedding_equal_those_of_scikit_learn(run: Run) -> None:
    vectors = run.features.vectors
    oracle = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    distances, places = oracle.kneighbors(vectors, n_neighbors=8)
    ids = run.data.items.item_ids
    for item in range(len(ids)):
        found = run.similar_items(ids[item], 7)
        others = places[item] != item
        assert found["score"].to_numpy() == pytest.approx(1 - distances[item][others][:7], abs=1e-5)
        assert found["item_id"][0] == ids[int(places[item][others][0])]
    assert found.columns == ["rank", "item_id", "title", "semantic_id", "score"]
    assert found["rank"].to_list() == [1, 2, 3, 4, 5, 6, 7]


def test_neighbours_are_those_that_were_counted(run: Run) -> None:
    model = run.model()
    assert isinstance(model, TrieModel)
    neighbours = model.network.neighbours
    assert neighbours is not None
    ids = run.data.items.item_ids
    for item in (0, 7, 39):
        found = run.similar_items(ids[item], 50, by="neighbours")
        items, values = neighbours.near_items[item], neighbours.near_values[item]
        counted = {ids[int(i)]: float(v) for i, v in zip(items, values, strict=True) if v > 0}
        assert dict(zip(found["item_id"], found["score"], strict=True)) == pytest.approx(counted)
        assert found["score"].is_sorted(descending=True)


def test_the_nearest_by_semantic_id_share_the_longest_prefix(run: Run) -> None:
    table, ids = run.semantic_ids, run.data.items.item_ids
    assert table.disambiguation_level == 2
    codes = table.codes[:, :2]
    with torch.inference_mode():
        vectors = run.tokenizer.quantizer.decode(torch.from_numpy(codes.astype(np.int64))).numpy()
    for item in range(len(ids)):
        found = run.similar_items(ids[item], len(ids), by="semantic_id")
        shared = np.logical_and.accumulate(codes == codes[item], axis=1).sum(axis=1)
        distance = np.linalg.norm(vectors - vectors[item], axis=1)
        order = sorted(
            (other for other in range(len(ids)) if other != item),
            key=lambda other: (-shared[other], round(float(distance[other]), 5), other),
        )
        assert found["item_id"].to_list() == [ids[other] for other in order]
        whole = shared[order] + 1 / (1 + distance[order])
        assert found["score"].to_numpy() == pytest.approx(whole, abs=1e-5)


def test_published_ids_are_compared_by_shared_codes_in_item_order() -> None:
    codes = np.array([[1, 1], [1, 2], [0, 1], [1, 3]], dtype=np.int32)
    ids = pl.Series(["a", "b", "c", "d"])
    table = SemanticIdTable(codes, (4, 4), None, ids, ids)
    found = SimilarItems(table, score_ids(table, None)).of("d", top_k=3)
    assert found["item_id"].to_list() == ["a", "b", "c"]
    assert found["score"].to_list() == [1, 1, 0]


def test_the_retrievers_vectors_are_the_sums_over_paths(run: Run) -> None:
    model = run.model()
    assert isinstance(model, TrieModel)
    network = model.network
    with torch.inference_mode():
        vectors = network.nodes()[network.trie.paths].sum(dim=1).numpy()
    ids = run.data.items.item_ids
    cosines = cosine_similarity(vectors)
    found = run.similar_items(ids[5], 39, by="retriever")
    by_id = dict(zip(found["item_id"], found["score"], strict=True))
    assert by_id == pytest.approx({ids[i]: cosines[5, i] for i in range(40) if i != 5}, abs=1e-5)


@pytest.mark.parametrize("by", WAYS)
def test_the_table_of_all_items_has_every_list(
    run: Run, by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "MAX_SCORES", 130)  # This computes three items at a time.
    parts = list(run.similar(by).list_all(top_k=5))
    assert len(parts) == 14
    whole = pl.concat(parts)
    assert whole.columns == ["item_id", "rank", "similar_item_id", "score"]
    for item_id in run.data.items.item_ids:
        rows, found = (
            whole.filter(pl.col("item_id") == item_id),
            run.similar_items(item_id, 5, by=by),
        )
        assert rows["similar_item_id"].to_list() == found["item_id"].to_list()
        assert rows["rank"].to_list() == found["rank"].to_list()
        assert rows["score"].to_numpy() == pytest.approx(found["score"].to_numpy(), abs=1e-6)


def test_an_item_without_a_vector_has_no_list_and_is_in_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vectors = np.array([[1, 0], [0, 0], [1, 1]], dtype=np.float32)
    finder = SimilarItems(named(3), score_cosines(vectors))
    whole = pl.concat(finder.list_all(top_k=2))
    assert whole["item_id"].to_list() == ["item 0", "item 2"]
    assert "1 of 3 items have no similar items" in caplog.text
    with pytest.raises(DataError, match="Item 'item 1' has no similar items of this kind"):
        finder.of("item 1")


def test_unavailable_kinds_and_unknown_items_are_refused_by_name(run: Run) -> None:
    counts = Popularity(np.zeros(3, dtype=np.int64))
    vectors = np.eye(3, dtype=np.float32)
    ways = Ways("The run x", model=lambda: counts, features=lambda: vectors, ids=None)
    for by in ("neighbours", "retriever", "semantic_id"):
        with pytest.raises(ConfigError, match=f"The run x cannot .* by {by}. There are embedding."):
            ways.make(by)
    with pytest.raises(ConfigError, match="Did you mean embedding"):
        run.similar_items("1", by="embeddings")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"No item '400' .* Did you mean '40'"):
        run.similar_items("400")
    with pytest.raises(DataError, match="top_k must be at least 1"):
        run.similar_items("1", 0)


def test_the_command(run: Run, tmp_path: Path, command: Callable[..., Any]) -> None:
    place, out = run.directory, tmp_path / "deep" / "similar.parquet"
    one = command("similar", place, "7", "--by", "retriever", "--top-k", 3, "--json")
    assert one.code == 0, one.err
    expected = run.similar_items("7", 3, by="retriever")
    assert one.json()["similar"] == expected.to_dicts()
    assert expected["title"][0] in one.out
    every = command("similar", place, "--all", "--top-k", 4, "--out", out, "--json")
    assert every.json()["num_rows"] == 160
    assert pl.read_parquet(out).equals(pl.concat(run.similar().list_all(top_k=4)))
    assert "got 1 name." in command("similar", place).error_message()
    assert "got 2 names" in command("similar", place, "7", "--all", "--out", out).error_message()
    assert "--out FILE needs --all" in command("similar", place, "--all").error_message()
    assert "--out FILE needs --all" in command("similar", place, "7", "--out", out).error_message()
    assert (
        "Did you mean neighbours"
        in command("similar", place, "7", "--by", "neighbors").error_message()
    )
    assert "Parquet file" in command("similar", place, "--all", "--out", tmp_path).error_message()
