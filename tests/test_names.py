"""Names and texts that are not UTF-8 end in one message, wherever they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recgrit.config import load_config
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.reading import Place
from recgrit.data.sources.table_files import open_table, read_table
from recgrit.errors import ConfigError, DataError
from recgrit.experiment import ExperimentConfig

Command = Callable[..., Any]
BROKEN = os.fsdecode(b"bad\xff")


def test_an_argument_that_is_no_text_is_refused(command: Command) -> None:
    for arguments in (("report", BROKEN), ("recommend", "--out", f"{BROKEN}.parquet")):
        told = command(*arguments).error_message()
        assert r"bad\udcff" in told
        assert "not UTF-8" in told


def test_a_working_folder_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    folder = tmp_path / BROKEN
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "working folder" in command("datasets").error_message()


def test_a_file_of_data_whose_name_is_no_text_is_refused(
    tmp_path: Path, new_config: Callable[..., Path], command: Command
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / f"{BROKEN}.csv").write_text("user_id,item_id\na,b\n")
    told = command(
        "prepare", new_config(), "data.source=table", f"data.path={folder}"
    ).error_message()
    assert "is not UTF-8" in told


@pytest.mark.parametrize("setting", [r'data.path="bad\udcff"', r'data.table.user_id="\ud800"'])
def test_a_setting_that_is_no_text_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="incomplete character"):
        load_config(ExperimentConfig, None, [setting])
    with pytest.raises(ValueError, match="UTF-8"):
        ExperimentConfig.model_validate({"run": {"dir": Path(BROKEN)}})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"\udcff": 1, "item_id": "a"}', "names a column"),
        (r'{"item_id": "a\udcff"}', "row 1: column item_id"),
        (r'{"item_id": "a", "tags": ["x\ud800"]}', "row 1: column tags"),
    ],
)
def test_json_with_half_a_character_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_table(open_table(Place(path), ("item_id",), TextSettings()))
