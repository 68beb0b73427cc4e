"""Test comparisons of models: which runs make a row, and the row's name and numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recgrit.errors import ConfigError
from recgrit.evaluation.metrics import ndcg_at_k, recall_at_k
from recgrit.evaluation.paired import mean_over_seeds, paired_difference
from recgrit.reporting.comparison import ALL, MASKED, NEW_ITEMS, compare_runs
from recgrit.reporting.rows import find_baselines, group_runs
from recgrit.runs import Run
from tests.forging import forge_run
from tests.reporting.pages import places_without_figure

Command = Callable[..., Any]
MakeRun = Callable[..., Path]


def test_a_run_compared_with_itself_differs_in_nothing(
    tiny_run: Any, copied_run: Path, command: Command, tmp_path: Path
) -> None:
    done = command("compare", tiny_run.directory, copied_run, "-o", tmp_path / "c.html", "--json")
    assert done.code == 0, done.err
    differences = [d for d in done.json()["differences"] if d["row"] == "copy"]
    assert [d["metric"] for d in differences] == [
        f"{split}/{metric}_at_10"
        for split in ("test_new_items", "test", "test_masked")
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
    means = [Run(d).report("test").means["recall_at_10"] for d in (copied_run, tiny_run.directory)]
    first = next(d for d in done.json()["differences"] if d["metric"] == "test/recall_at_10")
    assert first["difference"] == pytest.approx(means[0] - means[1])
    assert first["high"] < 0
    assert "Recall@10" in done.out
    (tiny_run.directory / "compare.html").unlink()


def test_runs_on_different_data_are_not_compared(
    tiny_run: Any, copied_run: Path, command: Command
) -> None:
    assert command("run", copied_run, "data.split=temporal").code == 0
    told = command("compare", tiny_run.directory, copied_run).error_message()
    assert "measured on different data" in told
    assert 'data.split is "leave_one_out" and "temporal"' in told
    assert "at least two runs" in command("compare", tiny_run.directory).error_message()


def test_a_run_that_is_not_evaluated_cannot_be_compared(
    tiny_run: Any, copied_run: Path, command: Command
) -> None:
    shutil.rmtree(copied_run / "evaluation")
    told = command("compare", tiny_run.directory, copied_run).error_message()
    assert "is not evaluated yet" in told
    assert "recgrit evaluate" in told


@pytest.fixture(scope="session")
def grid(make_run: MakeRun) -> list[Path]:
    """Make runs of two settings with two seeds each, and a run of another model."""
    slow = "retriever.learning_rate=1e-6"
    return [
        make_run("base-seed-0", "seed=0"),
        make_run("base-seed-1", "seed=1", "evaluation.baselines=[popularity]"),
        make_run("slow/seed-0", "seed=0", slow),
        make_run("slow/seed-1", "seed=1", slow),
        make_run("knn", "model.kind=item_knn"),
    ]


def test_runs_that_differ_in_their_seed_are_one_row_and_baselines_are_rows_once(
    grid: list[Path],
) -> None:
    rows = group_runs([Run(directory) for directory in grid])
    assert [(row.name, row.kind, list(row.runs)) for row in rows] == [
        ("base", "trie", [0, 1]),
        ("slow", "trie", [0, 1]),
        ("knn", "item_knn", [0]),
    ]
    # The baseline item_knn of the runs equals the row of the item_knn run, so it gets no own row.
    assert [(row.name, list(row.runs)) for row in find_baselines(rows)] == [("popularity", [0, 1])]
    alone = find_baselines(rows[:2])
    assert {row.name: list(row.runs) for row in alone} == {"popularity": [0, 1], "item_knn": [0, 1]}


def test_the_same_seed_twice_is_two_rows(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("base-seed-0", "seed=0")
    for name in ("one", "two"):
        shutil.copytree(first, tmp_path / name)
    rows = group_runs([Run(tmp_path / "one"), Run(tmp_path / "two")])
    assert [row.name for row in rows] == ["one", "two"]
    shutil.copytree(first, tmp_path / "deep" / "one")
    rows = group_runs([Run(tmp_path / "one"), Run(tmp_path / "deep" / "one")])
    assert [row.name for row in rows] == [str(tmp_path / "one"), str(tmp_path / "deep" / "one")]


def test_numbers_are_means_over_seeds_with_intervals_over_users_and_seeds(
    grid: list[Path],
) -> None:
    runs = [Run(directory) for directory in grid]
    comparison = compare_runs(runs)
    base, slow = (
        np.stack([recall_at_k(run.report("test", masked=True).ranks, 10) for run in of])
        for of in (runs[:2], runs[2:4])
    )
    score = comparison.base.of_view(MASKED).scores["recall_at_10"]
    expected = mean_over_seeds(base)
    assert (score.mean, score.low, score.high) == (expected.mean, expected.low, expected.high)
    found = {(d.row, d.metric, d.view): d.value for d in comparison.differences}
    assert found["slow", "recall_at_10", MASKED] == paired_difference(slow, base)
    # The other model has one seed, so it is paired with that seed of the base.
    knn, first = (ndcg_at_k(runs[place].report("test").ranks, 10)[None] for place in (4, 0))
    assert found["knn", "ndcg_at_10", ALL] == paired_difference(knn, first)
    assert found["popularity", "ndcg_at_10", ALL].num_seeds == 2


def test_new_items_come_first_if_many_targets_are_repeats(
    grid: list[Path], command: Command, tmp_path: Path
) -> None:
    runs = [Run(directory) for directory in grid[:4]]
    comparison = compare_runs(runs)
    assert comparison.views == (NEW_ITEMS, ALL, MASKED)
    assert comparison.differences[0].view == NEW_ITEMS
    is_new = ~runs[0].repeats.is_repeat
    base, slow = (
        np.stack([recall_at_k(run.report("test", masked=True).ranks[is_new], 10) for run in of])
        for of in (runs[:2], runs[2:])
    )
    owners = runs[0].report("test").users[is_new]
    score = comparison.base.of_view(NEW_ITEMS).scores["recall_at_10"]
    assert score.mean == mean_over_seeds(base, owners=owners).mean
    assert comparison.differences[0].value == paired_difference(slow, base, owners=owners)
    page = tmp_path / "page.html"
    done = command("compare", *grid[:4], "--out", page, "--json")
    assert "test targets are already in the history before them" in " ".join(done.out.split())
    values = done.json()
    assert next(iter(values["rows"][0]["metrics"])) == "test_new_items/recall_at_5"
    assert values["differences"][0]["metric"] == "test_new_items/recall_at_10"
    text = page.read_text(encoding="utf-8")
    assert text.index("Recall@10, new items") < text.index("Recall@10, seen items filtered out")
    assert "are already in the history before them" in text
    assert places_without_figure(text) == set()


def test_new_items_are_not_reported_separately_if_repeats_are_few(make_run: MakeRun) -> None:
    run = Run(make_run("repeats-first", "data.repeats=first"))
    assert not run.repeats.are_many
    assert run.new_items == {}


def test_markdown_is_the_only_output_and_no_page_is_written(
    grid: list[Path], command: Command, tmp_path: Path
) -> None:
    done = command("compare", *grid, "--markdown")
    assert done.code == 0, done.err
    assert not (grid[0] / "compare.html").exists()
    lines = done.out.splitlines()
    assert lines[0] == (
        "| model | Recall@10 new items | NDCG@10 new items | Recall@10 | NDCG@10 "
        "| Recall@10 masked | NDCG@10 masked | parameters | search | seeds |"
    )
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    means, differences = rows[1:5], rows[6:]
    assert [row[0] for row in means] == ["base", "slow", "knn", "popularity"]
    size = sum(Run(grid[0]).manifest("train").summary["num_parameters"].values())
    assert [row[-3:] for row in means] == [
        [f"{size:,}", "beam of 40", "2"],
        [f"{size:,}", "beam of 40", "2"],
        ["–", "all items scored", "1"],
        ["–", "all items scored", "2"],
    ]
    scores = compare_runs([Run(directory) for directory in grid]).base.scores[0].scores
    recall = scores["recall_at_10"]
    half = f"{(recall.high - recall.low) / 2:.4f}"[1:]
    assert means[0][1] == f"{recall.mean:.4f}"[1:] + f" ±{half}"
    assert rows[5][0] == "against base"
    assert len(differences) == 3 * 6
    assert all(row[3].endswith("%") for row in differences)
    # With `--out`, the page is written too. Standard output does not name it.
    page = tmp_path / "page.html"
    again = command("compare", *grid, "--markdown", "--out", page)
    assert again.out == done.out
    text = page.read_text(encoding="utf-8")
    assert "4 models compared" in text
    assert places_without_figure(text) == set()
    for directory in grid:
        assert str(directory) in text


def test_json_names_rows_seeds_and_searches(grid: list[Path], command: Command) -> None:
    values = command("compare", *grid, "--markdown", "--json").json()
    assert values["out"] is None
    knn = values["rows"][2]
    assert (knn["row"], knn["model"], knn["is_baseline"]) == ("knn", "item_knn", False)
    assert knn["runs"] == {"0": str(grid[4])}
    assert knn["search"] == "all items scored"
    mean = Run(grid[4]).report("test").means["ndcg_at_10"]
    assert knn["metrics"]["test/ndcg_at_10"]["mean"] == pytest.approx(mean)


def test_targets_of_one_user_do_not_count_as_users(make_run: MakeRun) -> None:
    split = "data.split=minionerec"
    runs = [
        Run(make_run("minionerec", split)),
        Run(make_run("minionerec-slow", split, "retriever.learning_rate=1e-6")),
    ]
    comparison = compare_runs(runs)
    report = runs[0].report("test")
    num_users = len(np.unique(report.users))
    assert num_users < report.per_target.height
    assert (comparison.num_users, comparison.num_targets) == (num_users, report.per_target.height)
    for difference in comparison.differences:
        if not difference.view.new_items:
            assert difference.value.num_users == num_users


def test_reports_on_other_targets_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("base-seed-0", "seed=0")
    shutil.copytree(first, tmp_path / "fewer")
    report = Run(first).report("test")
    members = np.arange(len(report.ranks)) < 10
    report.of_targets(members).save(tmp_path / "fewer" / "evaluation" / "trie" / "test")
    forge_run(tmp_path / "fewer")
    with pytest.raises(ConfigError, match="evaluated on different targets"):
        compare_runs([Run(first), Run(tmp_path / "fewer")])
