"""What the pages say, and what the commands make of runs that lack parts or do not fit together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.reporting.contents import gather_contents
from recgrit.reporting.scores import OURS, break_down
from recgrit.reporting.tags import read_tags, typical_tags
from recgrit.reporting.tree import build_tree
from recgrit.runs import Run
from recgrit.semantic_ids.table import SemanticIdTable

Command = Callable[..., Any]


def test_groups_hold_all_users_once_and_their_mean_is_the_reported_one(tiny_run: Any) -> None:
    run = Run(tiny_run.directory)
    expected = run.reports["test"].means["recall_at_10"]
    for breakdown in break_down(run.reports, run.data.split):
        sizes = [group.num_users for group in breakdown.groups]
        means = [group.scores[OURS].mean for group in breakdown.groups]
        assert sum(sizes) == run.reports["test"].per_user.height
        assert np.average(means, weights=sizes) == pytest.approx(expected)
        for group in breakdown.groups:
            score = group.scores[OURS]
            assert score.low <= score.mean <= score.high


def test_example_users_are_shown_as_they_were_evaluated(tiny_run: Any) -> None:
    run = Run(tiny_run.directory)
    evaluation = gather_contents(run).evaluation
    assert evaluation is not None
    report = run.reports["test_masked"]
    names = run.data.interactions.user_ids.gather(report.per_user["user_idx"]).to_list()
    rank_of = dict(zip(names, report.ranks.tolist(), strict=True))
    for user in evaluation.users:
        assert user.rank == (rank_of[user.user_id] if rank_of[user.user_id] <= 10 else 0)
        if user.rank:
            assert user.recommended[user.rank - 1] == user.target


def build_catalogue() -> tuple[ItemTable, SemanticIdTable]:
    """Two first codes: films of war, and all sorts; one pair of codes has two items."""
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=np.int32)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(5)],
            "title": [f"Film {n}" for n in range(5)],
            "genres": [["Film", "War"], ["Film", "War"], ["Film"], ["Film", "Love"], ["Film"]],
        }
    )
    items = ItemTable(frame)
    return items, SemanticIdTable(codes, (2, 2, 2), None, items.item_ids, items.titles)


def test_what_everything_has_is_typical_of_nothing() -> None:
    items, table = build_catalogue()
    groups = pl.DataFrame({"item_idx": np.arange(5, dtype=np.int32), "group": table.codes[:, 0]})
    found = typical_tags(read_tags(items), groups)
    assert found.select("group", "tag").rows() == [(0, "War"), (1, "Love")]
    assert found["share"].to_list() == pytest.approx([2 / 3, 1 / 2])
    assert found["lift"].to_list() == pytest.approx([5 / 3, 5 / 2])


def test_a_tree_accounts_for_every_item_however_few_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items, table = build_catalogue()
    counts = np.array([1, 9, 1, 1, 1])
    for prefixes, shown in ((100, 100), (1, 100), (100, 1)):
        for limit in ("MAX_PREFIXES", "LARGEST_PREFIXES"):
            monkeypatch.setattr(f"recgrit.reporting.tree.{limit}", prefixes)
        monkeypatch.setattr("recgrit.reporting.tree.MAX_ITEMS", shown)
        tree = build_tree(table, read_tags(items), counts)
        below: dict[int, int] = {}
        for node in tree.nodes[1:]:
            below[node.parent] = below.get(node.parent, 0) + node.num_items
        assert all(tree.nodes[place].num_items == total for place, total in below.items())
        assert tree.nodes[0].num_items == 5
        labels = {node.prefix: node.label for node in tree.nodes if node.prefix}
        assert labels["<a_0>"] == "War"
    # The one item drawn is the one taken most.
    assert "Film 1" in labels.values()
    assert "Film 0" not in labels.values()
    assert "1 more items" in [node.label for node in tree.nodes]


def test_items_without_categories_are_described_by_words() -> None:
    frame = pl.DataFrame({"item_id": ["1", "2"], "title": ["Red lip gloss", "42"]})
    tags = read_tags(ItemTable(frame))
    assert tags.field == "words of the title"
    assert sorted(tags.pairs["tag"]) == ["gloss", "lip", "red"]


@pytest.mark.parametrize("until", ["prepare", "tokenize", "train"])
def test_a_run_that_is_not_finished_has_a_page_that_names_what_is_missing(
    copied_run: Path, command: Command, until: str
) -> None:
    folders = ["embeddings", "semantic_ids", "retriever", "evaluation", "recommendations"]
    start = {"prepare": 0, "tokenize": 2, "train": 3}[until]
    for folder in folders[start:]:
        shutil.rmtree(copied_run / folder)
    done = command("report", copied_run, "--json")
    assert done.code == 0, done.err
    values = done.json()
    stages = ["embed", "tokenize", "train", "evaluate", "recommend"]
    assert list(values["missing"]) == stages[start:]
    page = Path(values["out"])
    assert page == copied_run / "report.html"
    assert values["bytes"] == page.stat().st_size
    text = page.read_text(encoding="utf-8")
    assert f"recgrit evaluate {copied_run}" in text
    assert ('id="search"' in text) == (until != "prepare")


def test_a_stage_built_from_another_parent_is_named_and_left_out(
    copied_run: Path, command: Command
) -> None:
    assert command("tokenize", copied_run, "tokenizer.epochs=1").code == 0
    values = command("report", copied_run, "--json").json()
    assert list(values["missing"]) == ["train", "evaluate", "recommend"]
    assert "was built from tokenize artifact" in values["missing"]["train"]


def test_a_page_needs_a_run_and_a_place(tiny_run: Any, command: Command, tmp_path: Path) -> None:
    assert "No run at" in command("report", tmp_path / "nothing").told()
    assert "is a folder" in command("report", tiny_run.directory, "--out", tmp_path).told()
    assert "Cannot write" in command("report", tiny_run.directory, "--out", "/proc/x.html").told()


def test_a_run_compared_with_itself_differs_in_nothing(
    tiny_run: Any, copied_run: Path, command: Command, tmp_path: Path
) -> None:
    done = command("compare", tiny_run.directory, copied_run, "-o", tmp_path / "c.html", "--json")
    assert done.code == 0, done.err
    differences = done.json()["differences"]
    assert [d["metric"] for d in differences] == [
        f"{split}/{metric}_at_10"
        for split in ("test", "test_masked")
        for metric in ("recall", "ndcg")
    ]
    assert all(d["difference"] == d["low"] == d["high"] == 0 for d in differences)
    assert "None: the runs were made with the same settings" in (tmp_path / "c.html").read_text()


def test_a_worse_run_is_worse_by_the_difference_of_the_means(
    tiny_run: Any, copied_run: Path, command: Command
) -> None:
    assert (
        command("run", copied_run, "retriever.epochs=1", "retriever.learning_rate=1e-6").code == 0
    )
    done = command("compare", tiny_run.directory, copied_run, "--json")
    means = [Run(d).reports["test"].means["recall_at_10"] for d in (copied_run, tiny_run.directory)]
    first = done.json()["differences"][0]
    assert first["difference"] == pytest.approx(means[0] - means[1])
    assert first["high"] < 0
    assert "Recall@10" in done.out
    (tiny_run.directory / "compare.html").unlink()


def test_runs_on_different_data_are_not_compared(
    tiny_run: Any, copied_run: Path, command: Command
) -> None:
    assert command("run", copied_run, "data.split=temporal").code == 0
    told = command("compare", tiny_run.directory, copied_run).told()
    assert "measured on different data" in told
    assert 'data.split is "leave_one_out" and "temporal"' in told
    assert "at least two runs" in command("compare", tiny_run.directory).told()


def test_a_run_that_is_not_evaluated_cannot_be_compared(
    tiny_run: Any, copied_run: Path, command: Command
) -> None:
    shutil.rmtree(copied_run / "evaluation")
    told = command("compare", tiny_run.directory, copied_run).told()
    assert "is not evaluated yet" in told
    assert "recgrit evaluate" in told
