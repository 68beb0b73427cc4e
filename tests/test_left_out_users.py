"""Customers with too few interactions for training get lists that name their source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import recgrit
from recgrit.cli import lists as cli_lists
from recgrit.display import build_console
from recgrit.errors import DataError
from recgrit.reporting.contents import gather_contents
from recgrit.reporting.lists import load_recommendations
from recgrit.reporting.page import render_report
from recgrit.runs import Run
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow
from tests.data.test_user_histories import write_log

Command = Callable[..., Any]


def fit(log: Path, folder: Path, **settings: Any) -> Run:
    run: Run = recgrit.fit(
        pl.read_csv(log),
        run__dir=folder,
        model__kind="item_knn",
        data__min_user_interactions=3,
        data__min_item_interactions=3,
        recommendation__top_k=2,
        recommendation__exclude_seen=False,
        evaluation__num_bootstrap=10,
        tracking__backend="none",
        **settings,
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shop")
    return fit(write_log(folder), folder / "run")


@pytest.fixture(scope="module")
def bundle(run: Run) -> Bundle:
    return export_bundle(run, run.directory.parent / "bundle")


def sources(found: pl.DataFrame) -> dict[str, str]:
    return dict(found.select("user_id", "source").unique(maintain_order=True).rows())


EXPECTED = {f"u{user}": "model" for user in range(6)} | {
    "few": "history",
    "low": "history",
    "odd": "popular",
}


def test_the_table_of_a_run_has_lists_for_left_out_users(run: Run) -> None:
    table = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    assert sources(table) == EXPECTED
    assert table.group_by("user_id").len()["len"].to_list() == [2] * len(EXPECTED)
    assert run.recommend(top_k=2, exclude_seen=False).drop("score").equals(table.drop("score"))
    summary = run.manifest("recommend").summary
    assert (summary["num_users"], summary["num_left_out_users"]) == (9, 3)


def test_the_report_omits_lists_of_users_left_out_of_training(run: Run) -> None:
    users, lists = load_recommendations(run)
    assert run.data.interactions.user_ids[users].to_list() == [f"u{user}" for user in range(6)]
    assert lists.shape == (6, 2)
    assert "What is recommended" in render_report(gather_contents(run))


def test_the_size_of_shards_changes_no_list(run: Run, tmp_path: Path) -> None:
    other = fit(write_log(tmp_path), tmp_path / "run", engine__shard_users=4)
    name = "recommendations/recommendations.parquet"
    assert pl.read_parquet(other.directory / name).equals(pl.read_parquet(run.directory / name))


def test_left_out_users_can_be_omitted_from_the_table(tmp_path: Path) -> None:
    run = fit(write_log(tmp_path), tmp_path / "run", recommendation__left_out_users=False)
    table = pl.read_parquet(run.directory / "recommendations" / "recommendations.parquet")
    assert set(sources(table).values()) == {"model"}
    assert sources(run.recommend(["few"])) == {"few": "history"}


def test_left_out_users_get_lists_and_unknown_users_need_a_fallback(run: Run) -> None:
    few = run.recommend(["few"], top_k=2, exclude_seen=False)
    after = run.recommend_after({"few": run.history("few")["item_id"].to_list()}, top_k=2)
    assert run.history("few")["item_id"].to_list() == ["a", "c"]
    assert few["item_id"].to_list() != run.recommend(["odd"], top_k=2)["item_id"].to_list()
    assert run.recommend(["few"], top_k=2).equals(after)
    with pytest.raises(DataError, match=r"Unknown user\(s\) 'nobody'.* 3 with too few"):
        run.recommend(["u1", "nobody"])
    both = run.recommend(["nobody", "u1", "odd"], top_k=2, exclude_seen=False, fallback="popular")
    assert sources(both) == {"u1": "model", "odd": "popular", "nobody": "popular"}
    popular = both.filter(pl.col("source") == "popular")
    counts = run.data.split.train_target_counts()
    assert popular["score"].to_list()[:2] == sorted(counts, reverse=True)[:2]
    with pytest.raises(DataError, match="left out of training"):
        run.explain("few", "a")


def test_a_bundle_falls_back_on_popular_items_as_its_run_does(run: Run, bundle: Bundle) -> None:
    expected = run.recommend(["odd"], top_k=3).drop("user_id")
    found = bundle.recommend_after({"odd": ["rare"]}, top_k=3, fallback="popular")
    assert found.drop("user_id").equals(expected)


def test_the_command_prints_and_marks_lists_of_left_out_users(run: Run, command: Command) -> None:
    done = command("recommend", "--run", run.directory, "-u", "few", "-u", "odd", "-k", "2")
    assert done.code == 0
    few, odd = done.out.split("User ")[1:]
    assert "The model was not trained with this history." in few
    assert "History of 2 items" in few
    assert "Popular items: no known item is in the history." in odd
    assert (
        "--fallback popular"
        in command("recommend", "--run", run.directory, "-u", "x").error_message()
    )
    done = command("recommend", "--run", run.directory, "-u", "x", "--fallback", "popular")
    assert "Popular items" in done.out
    done = command("recommend", "--run", run.directory, "--after", "a", "-k", "2")
    assert "History of 1 item," in done.out


def test_a_bundle_prints_lists_without_a_file(
    bundle: Bundle, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_lists, "output", build_console(stderr=False))
    place = ("recommend", "--bundle", bundle.directory)
    rows = [f"p{user},a,{user}" for user in range(7)] + ["p7,unknown,1"]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    histories = ("--histories", tmp_path / "log.csv")
    done = command(*place, *histories)
    assert done.code == 0
    assert done.out.count("History of 1 item,") == 5
    assert "3 more users: --user ID shows one, --out FILE has all." in done.err
    assert "1 of 8 users had none of the bundle's items" in done.err
    done = command(*place, *histories, "--user", "p7", "--fallback", "popular", "--json")
    assert [row["source"] for row in done.json()["recommendations"]] == ["popular"] * 4
    done = command(*place, *histories, "--fallback", "popular", "--out", tmp_path / "all.parquet")
    assert sources(pl.read_parquet(tmp_path / "all.parquet"))["p7"] == "popular"
    done = command(*place, "--after", "a", "--after", "b", "--top-k", "1")
    assert "History of 2 items, latest first: b; a" in done.out
    for wrong, told in (
        ((), "This bundle holds a model and no users"),
        (("--user", "p1"), "This bundle holds a model and no users"),
        (("--after", "zzz"), "None of the items 'zzz' is in the catalogue"),
        ((*histories, "--user", "zzz"), "'zzz' are not in the histories"),
        ((*histories, "--after", "a"), "is a history by itself"),
    ):
        done = command(*place, *wrong)
        assert done.code == 2
        assert told in done.error_message()


def test_a_bundle_becomes_an_mlflow_model(bundle: Bundle, command: Command, tmp_path: Path) -> None:
    quieten_mlflow()
    import mlflow

    out = tmp_path / "model"
    done = command("export", "mlflow", "--bundle", bundle.directory, "--out", out, "--json")
    assert done.json() == {"bundle": str(bundle.directory), "files": [str(out)]}
    found = mlflow.pyfunc.load_model(str(out)).predict(
        [{"history": ["a"]}, {"history": []}], params={"top_k": 2, "fallback": "popular"}
    )
    assert found["source"].tolist() == ["history", "popular"]
    told = command("export", "recbole", "--bundle", bundle.directory, "--out", out).error_message()
    assert "recbole needs a run" in told
