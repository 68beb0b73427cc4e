from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recgrit.errors import ArtifactError, DataError
from recgrit.runs import Run
from recgrit.semantic_ids.published import MAX_CODE, read_published_ids

IDS = pl.Series(["b", "a"])
INDEX = {
    "0": ["<a_1>", "<b_2>"],
    "1": ["<a_0>", "<b_0>"],
    "2": ["<a_5>", "<b_1>"],
}


def write(folder: Path, index: object, **beside: str) -> Path:
    path = folder / "x.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    for kind, text in beside.items():
        (folder / f"x.{kind.replace('_', '.')}").write_text(text)
    return path


@pytest.mark.parametrize(
    "beside",
    [
        {"item2id": "a\t0\nb\t1\r\n\nc\t2\n"},
        {"item_json": '{"0": {"item_id": "a"}, "1": {"asin": "b"}, "2": {"parent_asin": "c"}}'},
    ],
)
def test_numbers_are_looked_up_in_files_next_to_the_index(
    tmp_path: Path, beside: dict[str, str]
) -> None:
    found = read_published_ids(write(tmp_path, INDEX, **beside), IDS)
    assert found.codes.tolist() == [[0, 0], [1, 2]]
    assert found.codebook_sizes == (6, 3)
    assert found.num_unknown == 1


def test_item_ids_as_keys(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": ["<a_3>"], "b": ["<a_3>"]})
    assert read_published_ids(path, IDS).codes.tolist() == [[3], [3]]


def test_a_number_without_an_item_is_an_unknown_item(tmp_path: Path) -> None:
    path = write(tmp_path, INDEX | {"a": ["<a_9>", "<b_9>"]}, item2id="a\t0\nb\t1\n")
    found = read_published_ids(path, IDS)
    assert found.codes.tolist() == [[0, 0], [1, 2]]
    assert found.num_unknown == 2


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"x\.index\.json cannot be read: .*Expected a JSON object"),
        ("[1]", "holds a list: expected"),
        ("{}", "holds no semantic IDs"),
        ('{"a": ["<a_1>"], "a": ["<a_2>"]}', "the key 'a' occurs twice"),
        ({"a": ["<a_1>"], "b": ["<b_1>"]}, r"the entry 'b' is .*levels a, b, c in order"),
        ({"a": ["<a_1>"], "b": ["<a_1"]}, "the entry 'b'"),
        ({"a": ["<a_1>"], "b": ["<a_-1>"]}, "the entry 'b'"),
        ({"a": ["<a_1>"], "b": []}, "the entry 'b'"),
        ({"a": ["<a_1>"], "b": "<a_1>"}, "the entry 'b'"),
        ({"a": ["<a_1>"], "b": ["<a_1><b_2>"]}, "the entry 'b'"),
        ({"a": ["<a_1>"], "b": [f"<a_{MAX_CODE}>"]}, r"the entry 'b'.*codes below 1,048,576"),
        ({"a": ["<a_1>"], "b": ["<a_1>", "<b_2>"]}, "'b' has 2 levels and that of 'a' 1"),
        ({"a": ["<a_1>"], "c": ["<a_1>"]}, r"no semantic ID for 1 of 2 items .*\['b'\]"),
        (INDEX, r"numbers 0 to 2, and no file maps.*x\.item2id"),
    ],
)
def test_invalid_indexes_are_refused(tmp_path: Path, index: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_published_ids(write(tmp_path, index), IDS)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("a 0\n", r"x\.item2id, line 1: expected an item id, a tab"),
        ("a\t0\nb\t0\n", r"line 2: the number 0 already belongs to another item"),
        ("a\t0\na\t1\nb\t2\n", "two entries belong to item 'a'"),
    ],
)
def test_invalid_numbers_are_refused(tmp_path: Path, numbers: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_published_ids(write(tmp_path, INDEX, item2id=numbers), IDS)


def test_exported_ids_are_read_back(
    copied_run: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    before = Run(copied_run).semantic_ids
    out = tmp_path / "ids"
    assert command("export", "index", "--run", copied_run, "--out", out, "--name", "x").code == 0
    path = out / "x.index.json"
    taken = command("tokenize", copied_run, f"tokenizer.semantic_ids_path={path}")
    assert taken.code == 0
    assert "Read from x.index.json; 0 of its items are not in the catalogue" in taken.out
    run = Run(copied_run)
    np.testing.assert_array_equal(run.semantic_ids.codes, before.codes)
    assert run.semantic_ids.item_ids.equals(before.item_ids)
    with pytest.raises(
        ArtifactError, match=r"has the published IDs of x\.index\.json, so there is no tokenizer"
    ):
        _ = run.tokenizer
    # Later stages use the published IDs, and no stage runs twice.
    assert command("run", copied_run, "retriever.epochs=1").code == 0
    assert command("inspect", "run", "--run", copied_run).code == 0
    again = command("tokenize", copied_run, "--json").json()
    assert again["up_to_date"] == ["prepare", "embed", "tokenize"]
    # The IDs are read again after the file changed, although its name is the same.
    index = json.loads(path.read_text())
    index["0"], index["1"] = index["1"], index["0"]
    path.write_text(json.dumps(index))
    assert command("tokenize", copied_run, "--json").json()["up_to_date"] == ["prepare", "embed"]


def test_shared_ids_become_unique(
    copied_run: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    ids = Run(copied_run).data.items.item_ids
    index = {item: [f"<a_{row % 3}>", f"<b_{row % 2}>"] for row, item in enumerate(ids)}
    (tmp_path / "mine.json").write_text(json.dumps(index | {"elsewhere": ["<a_7>", "<b_0>"]}))
    taken = command("tokenize", copied_run, f"tokenizer.semantic_ids_path={tmp_path / 'mine.json'}")
    assert "100.0% of 40 items shared an ID" in taken.out
    assert "1 of its items are not in the catalogue" in taken.out
    table = Run(copied_run).semantic_ids
    assert table.codebook_sizes == (8, 2, 7)
    assert table.disambiguation_level == 2
    assert table.codes[:, :2].tolist() == [[row % 3, row % 2] for row in range(40)]


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        (["tokenizer.semantic_ids_path=nowhere.json"], "No semantic IDs at nowhere.json"),
        (
            ["tokenizer.semantic_ids_path=x.json", "tokenizer.unique_ids=greedy"],
            "set tokenizer.unique_ids=disambiguation",
        ),
    ],
)
def test_settings_that_cannot_be_used(
    copied_run: Path, command: Callable[..., Any], settings: list[str], phrase: str
) -> None:
    assert phrase in command("run", copied_run, *settings).error_message()
