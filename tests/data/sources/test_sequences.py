"""Test published sequences of item numbers in the formats of LC-Rec and MQL4GRec."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from recgrit.data.config import DataConfig
from recgrit.data.prepare import prepare
from recgrit.data.sources import RawData, load_source
from recgrit.errors import DataError
from recgrit.export import export_index
from recgrit.runs import Run
from recgrit.semantic_ids.published import read_published_ids

SEQUENCES = {"0": [2, 0, 1], "7": [1, 1, 2]}
ITEMS = {
    "0": {"title": "Strings &amp; bows", "brand": "Arc", "categories": ["Music", "Strings"]},
    "1": {"title": "", "brand": None},
    "2": {"title": "Reed", "price": 3},
}


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / f"Music.{name.replace('_', '.')}"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(path: Path) -> RawData:
    source = load_source("sequences")
    return source.read(source.find_files(path))


def test_the_order_of_a_sequence_is_its_time(tmp_path: Path) -> None:
    frame = read(write(tmp_path, inter_json=SEQUENCES)).interactions
    assert frame["user_id"].to_list() == ["0", "0", "0", "7", "7", "7"]
    assert frame["item_id"].to_list() == ["2", "0", "1", "1", "1", "2"]
    assert frame["timestamp"].to_list() == [0, 1, 2, 0, 1, 2]


def test_items_are_named_and_described_where_files_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = "B00\t0\nA b\t1\nC\t2\n"
    raw = read(write(tmp_path, inter_json=SEQUENCES, item2id=names, item_json=ITEMS))
    assert raw.interactions["item_id"].to_list() == ["C", "B00", "A b", "A b", "A b", "C"]
    fields = ["item_id", "title", "brand", "categories"]
    assert raw.items.columns == fields
    assert "the fields price are not read" in caplog.text
    assert raw.items.rows() == [
        ("B00", "Strings & bows", "Arc", "Music, Strings"),
        ("A b", None, None, None),
        ("C", "Reed", None, None),
    ]


def test_packed_sequences_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "Music.inter.json.gz").write_bytes(gzip.compress(json.dumps(SEQUENCES).encode()))
    assert read(tmp_path / "Music.inter.json.gz").counts["rows_read"] == 6


@pytest.mark.parametrize(
    ("sequences", "told"),
    [
        ({"0": [1, "x"]}, r"the entry '0' is \[1, 'x'\]"),
        ({"0": [1, -1]}, "the entry '0'"),
        ({"0": [True]}, "the entry '0'"),
        ({"0": 3}, "the entry '0' is 3"),
        ([[1, 2]], "holds a list"),
        ('{"0": [1], "0": [2]}', "the key '0' occurs twice"),
        ("{", "cannot be read"),
        ("<html>", "is an HTML page"),
        ({"0": []}, "holds no lines of data"),
    ],
)
def test_other_forms_are_refused(tmp_path: Path, sequences: Any, told: str) -> None:
    with pytest.raises(DataError, match=rf"Music\.inter\.json.*{told}"):
        read(write(tmp_path, inter_json=sequences))


def test_a_number_of_no_item_is_refused(tmp_path: Path) -> None:
    write(tmp_path, inter_json={"0": [0, 5]}, item2id="A\t0\nB\t1\n")
    with pytest.raises(DataError, match="has item number 5, which is not among the 2 items"):
        read(tmp_path)


def test_a_folder_of_two_data_sets_is_refused(tmp_path: Path) -> None:
    write(tmp_path, inter_json=SEQUENCES)
    (tmp_path / "Arts.inter.json").write_text("{}")
    with pytest.raises(DataError, match=r"found Arts\.inter\.json, Music\.inter\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    "asked", [{"split": "temporal"}, {"since": "2014-01-01"}, {"until": "2014-01-01"}]
)
def test_what_goes_by_times_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="has no times"):
        DataConfig(source="sequences", **asked)  # type: ignore[arg-type]


def test_what_is_exported_can_be_read(tiny_run: Any, tmp_path: Path) -> None:
    run = Run(tiny_run.directory) if not isinstance(tiny_run, Run) else tiny_run
    export_index(run.data, run.semantic_ids, tmp_path, "Mine")
    config = DataConfig(
        source="sequences", path=tmp_path, min_user_interactions=1, min_item_interactions=1
    )
    again = prepare(config)
    split, before = again.split, run.data.split
    names, old_names = again.items.item_ids, run.data.items.item_ids
    for user in range(before.num_users):
        found = [names[int(item)] for item in split.full_sequence(user)]
        assert found == [old_names[int(item)] for item in before.full_sequence(user)]
    ids = read_published_ids(tmp_path / "Mine.index.json", names)
    assert ids.num_unknown == 0


def test_published_ids_of_every_kind_of_content_are_read(tmp_path: Path) -> None:
    """MQL4GRec names an ID table after its kind of content, and writes image codes in capitals."""
    write(tmp_path, item2id="B00\t0\nC\t1\n")
    table = {"0": ["<A_1>", "<B_2>"], "1": ["<A_0>", "<B_5>"]}
    (tmp_path / "Music.index_vitemb.json").write_text(json.dumps(table))
    found = read_published_ids(tmp_path / "Music.index_vitemb.json", pl.Series(["C", "B00"]))
    assert found.codes.tolist() == [[0, 5], [1, 2]]
