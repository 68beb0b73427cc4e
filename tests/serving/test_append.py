"""New items can be recommended at once, removed ones never again, and all IDs stay."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from recgrit.config import load_config
from recgrit.data.config import TableConfig
from recgrit.data.items import ItemTable
from recgrit.embedding.embeddings import Embeddings
from recgrit.errors import ArtifactError, DataError, EncoderError
from recgrit.experiment import ExperimentConfig
from recgrit.models.trie import TrieModel
from recgrit.pipeline import run_experiment
from recgrit.retrieval.model import TrieRetriever
from recgrit.runs import Run
from recgrit.serving import append
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.files import read_histories
from recgrit.serving.writing import export_bundle

Like = Callable[..., ItemTable]
ALL = [str(item) for item in range(1, 41)]


def network_of(bundle: Bundle) -> TrieRetriever:
    assert isinstance(bundle.model, TrieModel)
    return bundle.model.network


def ids_of(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    table = bundle.semantic_ids
    return dict(zip(table.item_ids, map(tuple, table.codes.tolist()), strict=True))


def test_no_id_moves_night_after_night(bundle: Bundle, like: Like, tmp_path: Path) -> None:
    """New items collide with old ones, and those of the second night with those of the first."""
    first = append_items(bundle, tmp_path / "1", like(ALL, "a"), removed=["7", "8"])
    second = append_items(first.bundle, tmp_path / "2", like(ALL, "b"), removed=["a1", "9"])
    third = append_items(second.bundle, tmp_path / "3", removed=["b2"])
    assert (first.num_added, second.num_added, third.num_added) == (40, 40, 0)
    assert first.num_moved > 30
    assert second.num_moved == 40
    nights = [bundle, first.bundle, second.bundle, third.bundle]
    for before, after in itertools.pairwise(nights):
        old, new = ids_of(before), ids_of(after)
        assert list(new)[: len(old)] == list(old), "rows stay in place"
        assert {item: new[item] for item in old} == old
        assert len(set(new.values())) == len(new)
    new = ids_of(third.bundle)
    assert all(new[f"a{item}"][:2] == new[f"b{item}"][:2] for item in ALL), "one tokenizer"
    # Each bundle names all bundles from which it was made.
    lineage = [ancestor.fingerprint for ancestor in third.bundle.settings.ancestors]
    assert lineage == [night.fingerprint for night in nights[:3]]
    assert third.bundle.parent == second.bundle.fingerprint
    assert third.bundle.manifest.parents["bundle"] == second.bundle.fingerprint
    assert third.bundle.settings.run == bundle.settings.run
    assert [a.num_added for a in third.bundle.settings.ancestors] == [0, 40, 40]
    assert third.bundle.manifest.summary["num_listed"] == 40 + 80 - 5
    assert Bundle(tmp_path / "1").fingerprint == first.bundle.fingerprint, "left as it was"


def test_new_items_are_similar_to_those_whose_words_they_share(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    """New texts use the vocabulary of old ones, so an item's copy is its nearest neighbour."""
    after = append_items(bundle, tmp_path / "1", like(["3", "4", "12"])).bundle
    assert after.words is not None
    assert bundle.words is not None
    assert after.words.shape == (bundle.words.shape[0] + 3, bundle.words.shape[1])
    assert (after.words[:-3] != bundle.words).nnz == 0
    neighbours = network_of(after).neighbours
    assert neighbours is not None
    table = neighbours._table("alike").toarray()
    rows = {str(item): row for row, item in enumerate(after.semantic_ids.item_ids)}
    for old in ("3", "4", "12"):
        pair = rows[old], rows[f"new {old}"]
        assert table[pair] == pytest.approx(1, abs=1e-3), "the same text"
        assert table[pair[::-1]] == table[pair]


def test_the_same_night_again_is_the_same_bundle(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    items = like(["3", "4", "12"])
    first = append_items(bundle, tmp_path / "1", items, removed=["2"])
    again = append_items(bundle, tmp_path / "again", items, removed=["2"])
    assert again.bundle.fingerprint == first.bundle.fingerprint
    shuffled = append_items(bundle, tmp_path / "2", ItemTable(items.frame.reverse()))
    assert ids_of(shuffled.bundle) == ids_of(first.bundle), "rows may come in any order"


def test_a_removed_item_never_comes_back(
    bundle: Bundle, like: Like, tmp_path: Path, histories: dict[str, list[str]]
) -> None:
    offered = ItemTable(pl.concat([like(ALL, "").frame, like(["5", "6"], "new ").frame]))
    first = append_items(bundle, tmp_path / "1", offered, removed=["5", "6", "new 6", "nobody's"])
    assert (first.num_added, first.num_listed, first.num_refused) == (1, 38, 3)
    assert (first.num_removed, first.num_unknown) == (2, 2)
    second = append_items(first.bundle, tmp_path / "2", like(["5", "6"], ""), removed=["5"])
    assert (second.num_added, second.num_refused, second.num_removed) == (0, 2, 0)
    for made in (first, second):
        found = made.bundle.recommend_after(histories, top_k=50, exclude_seen=False)
        assert found["item_id"].n_unique() == 39
        assert not {"5", "6"} & set(found["item_id"])
    # Histories may still contain a removed item.
    assert second.bundle.recommend_after({"x": ["5"]}, top_k=3).height == 3
    # No later item gets the ID of a removed item.
    third = append_items(second.bundle, tmp_path / "3", like(["5"], "heir of "))
    assert ids_of(third.bundle)["5"] == ids_of(bundle)["5"] != ids_of(third.bundle)["heir of 5"]


def test_a_bare_string_removes_one_item(bundle: Bundle, tmp_path: Path) -> None:
    made = append_items(bundle, tmp_path / "1", removed="13")
    assert (made.num_removed, made.num_unknown) == (1, 0)
    assert not made.bundle.catalogue.listed[made.bundle.items.find_items("13")].any()


def test_removing_every_item_is_refused_before_anything_is_written(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    everything = bundle.items.item_ids.to_list()
    with pytest.raises(DataError, match="Removing 40 items would leave no item to recommend"):
        append_items(bundle, tmp_path / "1", removed=everything)
    assert not list(tmp_path.iterdir())
    made = append_items(bundle, tmp_path / "1", like(["5"]), removed=everything).bundle
    assert made.recommend_after({"x": ["7"]})["item_id"].to_list() == ["new 5"]
    made = append_items(bundle, tmp_path / "2", removed=everything[1:]).bundle
    assert made.recommend_after({"x": ["7"]})["item_id"].to_list() == everything[:1]


def percentiles(bundle: Bundle, histories: dict[str, list[str]], items: list[str]) -> np.ndarray:
    """Return each item's place in the exact ranking after each history: 0 is first, 1 is last."""
    recommender = bundle.recommender()
    lists = recommender.rank_histories(
        list(histories.values()),
        ranker=recommender.ranker(beam_width="exact"),
        top_k=len(bundle.semantic_ids),
        exclude_seen=False,
    )
    found = recommender.name_lists(lists, pl.Series(list(histories)))
    assert found.height == len(histories) * len(bundle.semantic_ids), "nobody is left out"
    ranks = found.filter(pl.col("item_id").is_in(items)).sort("user_id", "item_id")["rank"]
    return (ranks.to_numpy().reshape(len(histories), -1) - 1) / (len(bundle.semantic_ids) - 1)


def test_new_items_are_neither_always_first_nor_always_last(
    bundle: Bundle, run: Run, like: Like, tmp_path: Path, histories: dict[str, list[str]]
) -> None:
    """The positions come from a trained model's exact scores of all items after all histories."""
    new = [f"new {item}" for item in range(1, 13)]
    made = append_items(bundle, tmp_path / "1", like([str(item) for item in range(1, 13)])).bundle
    found = percentiles(made, histories, new)
    assert 0.35 < found.mean() < 0.85
    assert np.all((found.mean(axis=0) > 0.2) & (found.mean(axis=0) < 0.95)), "each of them"
    assert found.min() < 0.25
    assert found.std(axis=0).min() > 0.05, "they depend on the history"
    # Users stay in one group (item number modulo 4), so its new items rank before those of others.
    groups = np.array([int(item[-1]) % 4 for _, item in sorted(histories.items())])
    ranked = sorted(new)
    own = np.array([int(item.split()[1]) % 4 for item in ranked]) == groups[:, None]
    assert found[own].mean() < found[~own].mean() - 0.15
    beam = made.recommend_after(histories, top_k=20, beam_width=20)
    assert set(new) & set(beam["item_id"]), "the beam finds some"


def test_new_items_get_the_features_of_a_run_and_an_estimated_cooccurrence(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    made = append_items(bundle, tmp_path / "1", like(["3"])).bundle
    table = made.semantic_ids
    old, new = (made.features.vectors[table.item_idx(item)] for item in ("3", "new 3"))
    np.testing.assert_allclose(old[:8], new[:8], atol=1e-4)
    assert np.linalg.norm(new[8:]) > 0.1, "a place among the items most like it"
    assert made.features.vectors[:40].tobytes() == bundle.features.vectors.tobytes()


def test_greedy_ids_of_a_retriever_of_constant_size_can_be_appended(
    new_config: Callable[..., Path], like: Like, tmp_path: Path
) -> None:
    config = load_config(
        ExperimentConfig,
        new_config(),
        [
            "tokenizer.unique_ids=greedy",
            "tokenizer.num_levels=3",
            "retriever.size=constant",
            "retriever.epochs=1",
        ],
    )
    run_experiment(config, until="train")
    bundle = export_bundle(Run(config.run.dir), tmp_path / "0")
    assert bundle.semantic_ids.disambiguation_level is None
    histories = {"x": ["1", "5", "9"]}
    before = bundle.recommend_after(histories, top_k=40)
    made = append_items(bundle, tmp_path / "1", like([str(i) for i in range(1, 21)])).bundle
    old, new = ids_of(bundle), ids_of(made)
    assert {item: new[item] for item in old} == old
    assert made.recommend_after(histories, top_k=60, beam_width=60).height == 57
    # The vectors of trained nodes stay the same.
    networks = network_of(bundle), network_of(made)
    with torch.inference_mode():
        vectors = [network.nodes() for network in networks]
    for item in range(40):
        paths = [network.trie.paths[item] for network in networks]
        assert torch.equal(vectors[0][paths[0]], vectors[1][paths[1]])
    assert before.height == 37


def test_node_buckets_keep_their_nodes(
    new_config: Callable[..., Path], like: Like, tmp_path: Path
) -> None:
    """This also holds if an ID's added items need more numbers than the table has rows."""
    config = load_config(
        ExperimentConfig,
        new_config(),
        ["retriever.size=constant", "retriever.node_buckets=16", "retriever.epochs=1"],
    )
    run_experiment(config, until="train")
    bundle = export_bundle(Run(config.run.dir), tmp_path / "0")
    made = append_items(bundle, tmp_path / "1", like(ALL, "a")).bundle
    level = made.semantic_ids.disambiguation_level
    assert level is not None
    night = 2
    while made.semantic_ids.codebook_sizes[level] <= 16:
        made = append_items(made, tmp_path / str(night), like(ALL, f"{night} ")).bundle
        night += 1
    old, new = network_of(bundle), network_of(made)
    with torch.inference_mode():
        for item in range(40):
            assert torch.equal(
                old.nodes.of(old.trie.paths[item]), new.nodes.of(new.trie.paths[item])
            )
        # An added item does not use the embedding of an old item.
        leaves = new.trie.paths[40:, -1]
        expected = new.nodes.fallback.weight[-1] + new.nodes.code_embedding.weight[0]
        assert torch.equal(new.nodes.of(leaves), expected.expand(len(leaves), -1))
    histories = {"x": ["1", "5", "9"]}
    listed = len(made.semantic_ids) - 3
    assert made.recommend_after(histories, top_k=listed, beam_width=listed).height == listed


def test_items_of_a_bundle_with_own_vectors_need_vectors(
    new_config: Callable[..., Path], like: Like, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    path = tmp_path / "vectors.parquet"
    vectors = draw.normal(size=(40, 12)).astype(np.float32)
    pl.DataFrame({"item_id": ALL, "vector": vectors}).write_parquet(path)
    config = load_config(
        ExperimentConfig,
        new_config(),
        ["embedding.encoder=vectors", f"embedding.vectors_path={path}", "retriever.epochs=1"],
    )
    run_experiment(config, until="train")
    bundle = export_bundle(Run(config.run.dir), tmp_path / "0")
    items = like(["3"])
    with pytest.raises(DataError, match="--vectors FILE"):
        append_items(bundle, tmp_path / "1", items)
    same = Embeddings(vectors[ALL.index("3")][None], "mine", normalized=False)
    made = append_items(bundle, tmp_path / "1", items, vectors=same).bundle
    np.testing.assert_allclose(
        made.features.vectors[-1, :8],
        bundle.features.vectors[bundle.semantic_ids.item_idx("3"), :8],
        atol=1e-4,
    )
    short = Embeddings(np.ones((1, 5), np.float32), "mine", normalized=False)
    with pytest.raises(DataError, match="5 dimensions, those of the bundle's items 12"):
        append_items(bundle, tmp_path / "2", like(["4"]), vectors=short)


def test_vectors_are_refused_if_texts_are_encoded(
    bundle: Bundle, like: Like, tmp_path: Path
) -> None:
    vectors = Embeddings(np.ones((1, 5), np.float32), "mine", normalized=False)
    with pytest.raises(DataError, match="encoded from their texts"):
        append_items(bundle, tmp_path / "1", like(["4"]), vectors=vectors)
    assert not (tmp_path / "1").exists()


def test_another_encoder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from recgrit.embedding import encoders

    class Other:
        name = "other"
        fingerprint = "now"

    monkeypatch.setitem(encoders.ENCODERS, "minilm", lambda config, seed: Other())
    with pytest.raises(
        EncoderError, match=r"expected then, found now.*restore the expected weights"
    ):
        encoders.load_encoder(encoders.EmbeddingConfig(), 0, directory=tmp_path, space="then")


def test_a_bundle_is_not_appended_to_in_place(bundle: Bundle, like: Like) -> None:
    with pytest.raises(ArtifactError, match="which stays unchanged"):
        append_items(bundle, bundle.directory, like(["4"]))


def test_another_bundle_is_not_replaced(bundle: Bundle, like: Like, tmp_path: Path) -> None:
    first = append_items(bundle, tmp_path / "1", like(["4"]))
    written = (tmp_path / "1" / "manifest.json").read_bytes()
    again = append_items(bundle, tmp_path / "1", like(["4"]))
    assert (again.num_added, again.bundle.fingerprint) == (1, first.bundle.fingerprint)
    export_again = append_items(first.bundle, tmp_path / "2", like(["5"]))
    for before, items, removed in (
        (bundle, like(["4", "5"]), []),
        (bundle, like(["4"]), ["7"]),
        (export_again.bundle, like(["4"]), []),
    ):
        with pytest.raises(ArtifactError, match="holds another bundle, which may be in use"):
            append_items(before, tmp_path / "1", items, removed=removed)
    assert (tmp_path / "1" / "manifest.json").read_bytes() == written


def test_missing_columns_of_new_items_are_reported(
    bundle: Bundle, like: Like, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A bundle keeps the text template of its items, so it can report columns that are missing."""
    ids = bundle.require_ids()
    embedding = ids.embedding.model_copy(update={"template": "{title}. Colour: {colour}."})
    settings = {"ids": ids.model_copy(update={"embedding": embedding})}
    bundle = Bundle(bundle.directory)
    bundle.settings = bundle.settings.model_copy(update=settings)
    assert append_items(bundle, tmp_path / "1", like(["4"])).num_added == 1
    assert "The new items lack the columns colour" in caplog.text


def test_histories_with_the_names_and_times_of_the_run(bundle: Bundle, tmp_path: Path) -> None:
    path, table = tmp_path / "h.csv", bundle.semantic_ids

    def items_of(text: str, **names: Any) -> list[str]:
        path.write_text(text)
        split = read_histories(path, table, TableConfig(**names)).split
        return [table.item_ids[int(item)] for item in split.full_sequence(0)]

    us = "who;sku;at\nu;1;9/30/2011 10:00\nu;5;10/1/2011 9:00\nu;9;9/2/2011 8:00\n"
    names = {"user_id": "who", "item_id": "sku", "timestamp": "at"}
    assert items_of(us, **names) == ["9", "1", "5"]
    assert items_of(us.replace("who;sku;at", "user_id;item_id;timestamp"), **names)[0] == "9"
    exact = "user_id,item_id,timestamp\nu,5,1320105600.9\nu,1,1320105600.1\n"
    assert items_of(exact) == ["1", "5"]
    with pytest.raises(DataError, match=r"month or the day first.*data\.table\.time_format"):
        items_of(us.replace("30/2011", "3/2011"), **names)
    with pytest.raises(DataError, match=r"2 of 2 rows lack .* such as 'soon'"):
        items_of("user_id,item_id,timestamp\nu,5,soon\nu,1,soon\n")
    with pytest.raises(DataError, match="ids with decimals"):
        items_of("user_id,item_id\nu,5.0\n")


def test_histories_of_a_file(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("user_id,item_id,timestamp\n7,5,30\n07,9,10\n7,1,20\n7,zz,5\n08,zz,1\n")
    found = read_histories(path, bundle.semantic_ids)
    assert found.user_ids.to_list() == ["07", "7", "08"], "ids are text"
    assert found.split.full_sequence(2).tolist() == [], "none of its items is known"
    table = bundle.semantic_ids
    assert found.split.full_sequence(1).tolist() == [table.item_idx("1"), table.item_idx("5")]
    (tmp_path / "no.csv").write_text("user,item\n1,2\n")
    with pytest.raises(DataError, match=r"needs the column\(s\) user_id, item_id"):
        read_histories(tmp_path / "no.csv", table)
    path.write_text("user_id,item_id\n7,zz\n")
    with pytest.raises(DataError, match=r"No row of .* names an item of the bundle"):
        read_histories(path, table)


def test_settings_of_a_bundle_are_plain_yaml(bundle: Bundle) -> None:
    assert yaml.safe_load(yaml.safe_dump(bundle.manifest.config)) == bundle.manifest.config


def test_a_bundle_that_came_meanwhile_is_not_replaced(
    bundle: Bundle, like: Like, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = append_items(bundle, tmp_path / "1", like(["3"]))
    # The other bundle appears only after the check for existing bundles.
    monkeypatch.setattr(append, "_find_bundle_after", lambda *_: None)
    with pytest.raises(ArtifactError, match="holds another bundle"):
        append_items(bundle, tmp_path / "1", like(["4"]))
    assert Bundle(tmp_path / "1").fingerprint == first.bundle.fingerprint
