from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.data.config import DataConfig
from recgrit.data.prepare import PreparedData, prepare
from recgrit.data.recommendations import NO_ITEM, Recommendations
from recgrit.errors import DataError
from recgrit.evaluation.foreign_lists import name_lists, read_lists
from recgrit.evaluation.report import EvaluationReport
from recgrit.runs import Run


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> PreparedData:
    return prepare(DataConfig(path=tiny_data))


def read(data: PreparedData, path: Path) -> Any:
    ids = data.interactions
    return read_lists(path, data.split, "test", ids.user_ids, ids.item_ids)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.tsv"])
@pytest.mark.parametrize("order", ["rank", "score"])
def test_lists_in_any_order_of_rows(
    data: PreparedData, tmp_path: Path, name: str, order: str
) -> None:
    users, items = data.interactions.user_ids, data.interactions.item_ids
    rows = pl.DataFrame(
        {
            "user_id": [users[3], users[0], users[3], users[3]],
            "item_id": [items[5], items[1], items[7], items[2]],
            "rank": [2, 1, 1, 3],
            "score": [0.5, 9.0, 0.7, -1.0],
        }
    ).drop("score" if order == "rank" else "rank")
    if name.endswith("parquet"):
        rows.write_parquet(tmp_path / name)
    else:
        rows.write_csv(tmp_path / name, separator="\t" if name.endswith("tsv") else ",")
    found = read(data, tmp_path / name)
    assert found.users.tolist() == [0, 3]
    assert found.items.tolist() == [[1, -1, -1], [7, 5, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id\n1,1\n", "lacks rank: expected user_id, item_id and rank or score"),
        ("user_id,item_id,rank\n1,1,first\n", "every rank must be a number"),
        ("user_id,item_id,rank\nnobody,1,1\n", r"1 values of user_id are not.*\['nobody'\]"),
        ("user_id,item_id,rank\n1,none,1\n", r"1 values of item_id are not.*\['none'\]"),
        ("user_id,item_id,rank\n1,1,1\n1,2,1\n", "two items with the same rank"),
        ("user_id,item_id,rank\n1,1,1\n1,1,2\n", "recommended twice"),
        ("user_id,item_id,rank\n", "holds no lists"),
        ("", "cannot be read as a table of lists"),
    ],
)
def test_invalid_lists_are_refused(
    data: PreparedData, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(data, tmp_path / "x.csv")


def test_imported_lists_score_as_in_the_report_of_the_run(
    tiny_run: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    run = Run(tiny_run.directory)
    targets = run.report("test").per_target
    # Each list has its target at the rank of the run's report, behind other items. If the run
    # missed the target, the list does not contain it.
    ids = run.data.interactions
    rows = []
    found = targets.select("user_idx", "item_idx", "rank")
    for user, target, rank in found.iter_rows():
        others = [item for item in range(len(ids.item_ids)) if item != target][:20]
        items = others if rank == 0 else [*others[: rank - 1], target, *others[rank - 1 : 19]]
        rows += [
            (ids.user_ids[user], ids.item_ids[item], place)
            for place, item in enumerate(items, start=1)
        ]
    path = tmp_path / "theirs.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row").write_csv(path)
    done = command("score", path, "--run", run.directory, "--json", "--out", tmp_path / "kept")
    assert done.code == 0
    assert "60 lists for 60 test targets" in done.out
    assert done.json()["metrics"] == pytest.approx(run.report("test").metrics())
    kept = EvaluationReport.load(tmp_path / "kept")
    assert kept.metrics() == done.json()["metrics"]
    # The file does not say by which search its lists were found.
    assert kept.protocol["search"] == "lists from theirs.csv"


def test_lists_of_a_split_with_several_targets_are_matched_by_row(
    tiny_data: Path, tmp_path: Path
) -> None:
    data = prepare(DataConfig(path=tiny_data, split="minionerec"))
    (tmp_path / "x.csv").write_text("user_id,item_id,rank\n1,1,1\n")
    with pytest.raises(DataError, match=r"lacks row.*line, from 0, in the exported \.test\.inter"):
        read(data, tmp_path / "x.csv")
    item = data.interactions.item_ids[0]
    (tmp_path / "x.csv").write_text(f"row,item_id,rank\n2,{item},1\n")
    assert read(data, tmp_path / "x.csv").users.tolist() == [data.split.target_users("test")[2]]
    assert np.all(read(data, tmp_path / "x.csv").items == 0)


@pytest.mark.parametrize("several_targets", [False, True])
def test_named_lists_are_read_back(
    data: PreparedData, tmp_path: Path, several_targets: bool
) -> None:
    split, ids = data.split, data.interactions
    if several_targets:  # Each sequence belongs to one target of its owner.
        split = replace(split, owners=np.arange(split.num_sequences) // 2)
    lists = Recommendations(
        users=split.target_users("test")[[1, 4]],
        items=np.array([[3, 5], [7, NO_ITEM]], dtype=np.int32),
        scores=np.array([[-1, -2], [-1, -np.inf]], dtype=np.float32),
    )
    named = name_lists(lists, split, "test", ids.user_ids, ids.item_ids)
    assert named.columns[0] == ("row" if several_targets else "user_id")
    named.write_parquet(tmp_path / "lists.parquet")
    found = read_lists(tmp_path / "lists.parquet", split, "test", ids.user_ids, ids.item_ids)
    assert np.array_equal(found.users, lists.users)
    assert np.array_equal(found.items, lists.items)
