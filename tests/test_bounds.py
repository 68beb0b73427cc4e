"""Each limit on input files has an environment variable, which the error message names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recgrit.bounds import BOUNDS, LISTED_ITEMS, MANIFEST_BYTES, Bound
from recgrit.config import read_yaml
from recgrit.data.config import DataConfig
from recgrit.data.damage import read_parquet
from recgrit.data.sources.dialect import TextSettings
from recgrit.data.sources.reading import BLOCK_BYTES, Place, read_file, refuse_long_line
from recgrit.data.sources.table_files import open_table
from recgrit.errors import NewerSchemaError, RecgritError
from recgrit.manifests import read_manifest


def read_json(path: Path) -> Any:
    path.write_text("".join(json.dumps({"item_id": str(i)}) + "\n" for i in range(9)))
    return open_table(Place(path), ("item_id",), TextSettings())


def read_settings(path: Path, text: str) -> Any:
    path.write_text(text)
    return read_yaml(path)


def read_repeated(path: Path) -> Any:
    import polars as pl

    pl.DataFrame({"item_id": ["a"] * 9}).write_parquet(path)
    return read_parquet(path)


def read_packed(path: Path) -> Any:
    path.write_bytes(gzip.compress(b"a" * (BLOCK_BYTES + 9)))
    return read_file(Place(path))


def read_folder(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text('{"schema_version": 99}')
    return read_manifest(folder)


WEIGHTS: dict[str, Any] = {
    "table": {"event": "kind"},
    "source": "table",
    "event_weights": {"a": 1.0, "b": 2.0},
}
# Functions that read input of each kind, which has at least two units.
READERS = {
    "CONFIG_BYTES": lambda path: read_settings(path / "a.yaml", "seed: 1\n"),
    "CONFIG_VALUES": lambda path: read_settings(path / "a.yaml", "a: [1, 2, 3]\n"),
    "MANIFEST_BYTES": lambda path: read_folder(path / "folder"),
    "LINE_BYTES": lambda path: refuse_long_line("x.csv", 1, 7),
    "JSON_BYTES": lambda path: read_json(path / "a.jsonl"),
    "UNPACKED_BYTES": lambda path: read_packed(path / "a.gz"),
    "PARQUET_ROWS": lambda path: read_repeated(path / "a.parquet"),
    "EVENT_TYPES": lambda path: DataConfig.model_validate(WEIGHTS),
}


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_input_above_a_bound_is_refused_and_read_with_a_larger_bound(
    bound: Bound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bound is LISTED_ITEMS:
        pytest.skip("asked for over HTTP: tests/serving/test_pyfunc.py")
    read = READERS[bound.name]
    monkeypatch.setenv(bound.variable, "1")
    with pytest.raises((RecgritError, ValueError)) as caught:
        read(tmp_path)
    told = str(caught.value)
    assert bound.variable in told
    assert f"{bound.unit}, and 1 are allowed" in told
    monkeypatch.setenv(bound.variable, str(10**9))
    # The manifest is then within the limit, but its schema version is newer.
    if bound is MANIFEST_BYTES:
        with pytest.raises(NewerSchemaError):
            read(tmp_path)
    else:
        read(tmp_path)


@pytest.mark.parametrize("setting", ["", "many", "-1", "1e9", "٣", "9" * 19])
def test_a_bound_that_is_no_number_is_refused_by_name(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECGRIT_MAX_LINE_BYTES", setting)
    with pytest.raises(RecgritError, match="environment variable RECGRIT_MAX_LINE_BYTES is"):
        refuse_long_line("x.csv", 1, 7)


def test_the_documents_list_every_bound() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reference" / "settings.md").read_text()
    for bound in BOUNDS:
        assert f"| `{bound.variable}` | {bound.default:,}" in text
        assert bound.unit in text
