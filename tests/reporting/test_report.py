"""Test the content of the pages, and the commands on runs that are incomplete or do not match."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.data.items import ItemTable
from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.reporting.contents import gather_contents
from recgrit.reporting.page import make_cards
from recgrit.reporting.scores import break_down, name_model
from recgrit.reporting.tags import read_tags, typical_tags
from recgrit.reporting.tree import build_tree
from recgrit.runs import Run
from recgrit.semantic_ids.table import SemanticIdTable
from tests.reporting.pages import places_without_figure

Command = Callable[..., Any]


def test_groups_hold_all_targets_once_and_their_mean_is_the_reported_one(tiny_run: Any) -> None:
    run = Run(tiny_run.directory)
    expected = run.report("test").means["recall_at_10"]
    own = name_model("trie", "trie")
    for breakdown in break_down(run.reports, run.data.split, "trie"):
        sizes = [group.num_targets for group in breakdown.groups]
        means = [group.scores[own].mean for group in breakdown.groups]
        assert sum(sizes) == run.report("test").per_target.height
        assert np.average(means, weights=sizes) == pytest.approx(expected)
        for group in breakdown.groups:
            score = group.scores[own]
            assert score.low <= score.mean <= score.high


def test_the_page_says_how_many_neighbours_each_level_keeps(
    tiny_run: Any, command: Command, tmp_path: Path
) -> None:
    levels = Run(tiny_run.directory).manifest("tokenize").summary["diagnostics"]["levels"]
    kept = [level["neighbours_kept"] for level in levels]
    assert all(0 < share <= 1 for share in kept)
    assert kept[-1] > kept[0]
    assert command("report", tiny_run.directory, "--out", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for share in kept:
        assert f'<td class="num">{share:.1%}</td></tr>' in text


@pytest.mark.parametrize("split", ["leave_one_out", "temporal", "minionerec"])
def test_a_run_on_any_split_has_a_whole_page(
    make_run: Callable[..., Path], command: Command, tmp_path: Path, split: str
) -> None:
    directory = make_run(split, f"data.split={split}")
    page = tmp_path / "page.html"
    done = command("report", directory, "--out", page, "--json")
    assert done.code == 0, done.err
    assert done.json()["missing"] == {}
    run, text = Run(directory), page.read_text(encoding="utf-8")
    report = run.report("test")
    for breakdown in break_down(run.reports, run.data.split, "trie"):
        assert sum(group.num_targets for group in breakdown.groups) == report.per_target.height
    contents = gather_contents(run)
    assert contents.evaluation is not None
    for user in contents.evaluation.users:
        known = run.data.interactions.user_ids.to_list().index(user.user_id)
        ranks = report.per_target.filter(user_idx=known)["rank"].to_list()
        assert ranks
        assert user.num_history > 0
    first = (contents.evaluation.new_items or contents.evaluation.scores)[0]
    targets, users = first.num_targets, first.num_users
    assert (f"{targets} targets of {users} users" in text) == (split == "minionerec")
    assert places_without_figure(text) == set()
    assert "beam of 40" in text
    assert "item_knn" in text
    assert "Interactions with equal timestamps: file order." in text


def test_several_targets_of_a_user_are_grouped_by_their_own_history(
    make_run: Callable[..., Path],
) -> None:
    run = Run(make_run("minionerec", "data.split=minionerec"))
    split, report = run.data.split, run.report("test")
    assert len(np.unique(report.users)) < len(report.users)
    lengths = [len(split.history(sequence, "test")) for sequence in report.sequences.tolist()]
    bins = {"1–4": (1, 4), "5–9": (5, 9), "10–19": (10, 19)}
    expected = {
        label: count
        for label, (low, high) in bins.items()
        if (count := sum(low <= length <= high for length in lengths))
    }
    history = break_down(run.reports, split, "trie")[0]
    assert {group.label: group.num_targets for group in history.groups} == expected


def test_intervals_of_a_group_draw_users_with_all_their_targets() -> None:
    """Two users have 40 equal targets each, so any resample of users has a mean of 0, 1/2 or 1."""
    ranks = np.repeat([1, 0], 40).astype(np.int32)
    split = SequenceSplit(
        items=np.zeros(160, dtype=np.int32),
        offsets=np.arange(0, 161, 2),
        train_ends=np.arange(0, 160, 2),
        valid_targets=np.full(80, -1),
        test_targets=np.arange(1, 161, 2),
        num_items=1,
        owners=np.repeat([0, 1], 40),
    )
    report = EvaluationReport(
        per_target=pl.DataFrame(
            {
                "user_idx": np.repeat([0, 1], 40),
                "sequence": np.arange(80),
                "item_idx": np.zeros(80, dtype=np.int32),
                "rank": ranks,
                "popularity_rank": np.ones(80, dtype=np.int32),
            }
        ),
        protocol={"ks": (10,), "num_bootstrap": 200, "seed": 0},
        means={},
        bounds={},
    )
    history = break_down({ReportKey("trie", "test", False): report}, split, "trie")[0]
    score = history.groups[0].scores[name_model("trie", "trie")]
    assert (score.low, score.mean, score.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("kind", ["popularity", "item_knn"])
def test_a_model_without_semantic_ids_has_a_page_without_them(
    make_run: Callable[..., Path], command: Command, tmp_path: Path, kind: str
) -> None:
    directory = make_run(kind, f"model.kind={kind}")
    page = tmp_path / "page.html"
    done = command("report", directory, "--out", page, "--json")
    assert done.code == 0, done.err
    assert done.json()["missing"] == {}
    text = page.read_text(encoding="utf-8")
    assert places_without_figure(text) == set()
    for part in ("tree-section", "items-section", "codebooks", "training"):
        assert f'id="{part}"' not in text
        assert f'href="#{part}"' not in text
    assert f"{kind} (this run)" in text
    assert "all items scored" in text
    baselines = {"popularity", "item_knn"} - {kind}
    contents = gather_contents(Run(directory))
    assert contents.evaluation is not None
    assert [s.name for s in contents.evaluation.scores][:2] == [f"{kind} (this run)", *baselines]
    assert contents.lists is not None
    assert contents.lists.rows[0].diversity is None


def test_a_model_trained_without_semantic_ids_shows_its_epochs(
    make_run: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    sizes = ("model_dim=16", "num_layers=1", "num_heads=2", "epochs=2", "device=cpu")
    directory = make_run("sasrec", "model.kind=sasrec", *(f"sasrec.{size}" for size in sizes))
    page = tmp_path / "page.html"
    done = command("report", directory, "--out", page, "--json")
    assert done.code == 0, done.err
    assert done.json()["missing"] == {}
    text = page.read_text(encoding="utf-8")
    assert places_without_figure(text) == set()
    assert "of 2 was best on validation" in text
    assert "Accuracy of each level" not in text
    assert 'id="tree-section"' not in text


def test_the_page_says_how_ties_were_ordered(
    make_run: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    directory = make_run("shuffled", "data.ties=shuffle", "data.tie_seed=7")
    assert Run(directory).report("test").protocol["ties"] == "shuffled with seed 7"
    assert command("report", directory, "--out", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Interactions with equal timestamps: shuffled with seed 7." in text


def test_example_users_are_shown_as_they_were_evaluated(tiny_run: Any) -> None:
    run = Run(tiny_run.directory)
    evaluation = gather_contents(run).evaluation
    assert evaluation is not None
    report = run.report("test", masked=True)
    names = run.data.interactions.user_ids.gather(report.users.tolist()).to_list()
    rank_of = dict(zip(names, report.ranks.tolist(), strict=True))
    for user in evaluation.users:
        assert user.rank == (rank_of[user.user_id] if rank_of[user.user_id] <= 10 else 0)
        if user.rank:
            assert user.recommended[user.rank - 1] == user.target


def build_catalogue() -> tuple[ItemTable, SemanticIdTable]:
    """Build a catalogue with two first codes: one for war films, one for various films.

    Two items share a pair of codes.
    """
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


def test_a_tag_of_all_items_is_typical_of_no_group() -> None:
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
    # Only the item with the most interactions is drawn.
    assert "Film 1" in labels.values()
    assert "Film 0" not in labels.values()
    assert "1 more item" in [node.label for node in tree.nodes]


def test_items_without_categories_are_described_by_words() -> None:
    frame = pl.DataFrame({"item_id": ["1", "2"], "title": ["Red lip gloss", "42"]})
    tags = read_tags(ItemTable(frame))
    assert tags.field == "words of the title"
    assert sorted(tags.pairs["tag"]) == ["gloss", "lip", "red"]


@pytest.mark.parametrize("until", ["prepare", "tokenize", "train"])
def test_a_run_that_is_not_finished_has_a_page_that_names_what_is_missing(
    copied_run: Path, command: Command, until: str
) -> None:
    folders = ["embeddings", "semantic_ids", "model", "evaluation", "recommendations"]
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
    assert "was built from the tokenize artifact" in values["missing"]["train"]


def test_a_page_needs_a_run_and_a_place(tiny_run: Any, command: Command, tmp_path: Path) -> None:
    assert "No run at" in command("report", tmp_path / "nothing").error_message()
    assert "is a folder" in command("report", tiny_run.directory, "--out", tmp_path).error_message()
    assert (
        "Cannot write"
        in command("report", tiny_run.directory, "--out", "/proc/x.html").error_message()
    )


@pytest.mark.parametrize("asked", ["report", "compare"])
def test_a_file_that_is_no_page_is_not_replaced(
    tiny_run: Any, copied_run: Path, command: Command, tmp_path: Path, asked: str
) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    runs = (copied_run,) if asked == "report" else (tiny_run.directory, copied_run)
    assert "is not a page" in command(asked, *runs, "--out", place).error_message()
    assert place.read_text() == "mine"


def test_new_items_come_first_if_many_targets_are_repeats(
    make_run: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    for repeats, are_many in (("keep", True), ("first", False)):
        directory = make_run(f"repeats-{repeats}", f"data.repeats={repeats}")
        page = tmp_path / f"{repeats}.html"
        shown = command("evaluate", directory / "config.yaml")
        assert shown.code == 0, shown.err
        assert command("report", directory, "--out", page).code == 0
        evaluation = gather_contents(Run(directory)).evaluation
        assert evaluation is not None
        text = page.read_text(encoding="utf-8")
        told = f"data.repeats={repeats}; first or last would keep"
        assert (evaluation.repeats is not None) == are_many
        assert (told in text) == (told in " ".join(shown.out.split())) == are_many
        assert ("test new items" in shown.out) == are_many
        cards = [card.note for card in make_cards(evaluation)]
        assert (cards[0] == "new items only") == are_many
        if are_many:
            assert shown.out.index("test new items") < shown.out.index("test masked")
            new = evaluation.new_items[0]
            assert new.is_own
            assert f"{new.num_targets} users where that item is new" in " ".join(
                text.replace("</b>", "").split()
            )


def test_the_page_is_dated_by_the_run_and_its_commands_repeat_it(
    tiny_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = gather_contents(Run(tiny_run.directory))
    assert contents.created == max(stage.created for stage in contents.origin.stages)
    # In another working folder, the command names the config by its full path and a new run folder.
    monkeypatch.chdir(tmp_path)
    _, _, config, folder = contents.origin.command.split()
    assert Path(config).is_file()
    assert folder != f"run.dir={tiny_run.directory}"
    assert "data.path=PATH" in contents.origin.command_elsewhere
    # The default text of films contains genres.
    assert contents.ids is not None
    assert contents.ids.labels_in_text is True
    assert "never saw" not in contents.ids.explain_labels()
