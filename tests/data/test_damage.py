"""Refuse Parquet files that state more rows or values than their size can hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recgrit.bounds import PARQUET_ROWS
from recgrit.data import damage
from recgrit.data.damage import read_parquet
from recgrit.errors import ConfigError, DataError
from recgrit.serving.files import read_items


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    path = tmp_path / "repeated.parquet"
    pl.DataFrame({"item_id": ["the same value"] * 1_000_000}).write_parquet(path)
    return path


def test_values_that_repeat_are_refused_before_they_are_read(
    repeated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_parquet(repeated).height == 1_000_000, "few enough for any file"
    monkeypatch.setattr(damage, "PARQUET_ROWS", replace(PARQUET_ROWS, default=1000))
    for read in (read_parquet, read_items):
        with pytest.raises(DataError, match=r"of [0-9,]+ bytes has 1,000,000 rows .* [0-9,]+ are"):
            read(repeated)


def test_the_bound_is_a_setting(repeated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "PARQUET_ROWS", replace(PARQUET_ROWS, default=1000))
    monkeypatch.setenv("RECGRIT_MAX_PARQUET_ROWS", "999999")
    with pytest.raises(DataError, match=r"999,999 are allowed.*RECGRIT_MAX_PARQUET_ROWS"):
        read_parquet(repeated)
    monkeypatch.setenv("RECGRIT_MAX_PARQUET_ROWS", "1000000")
    assert read_parquet(repeated).height == 1_000_000
    monkeypatch.setenv("RECGRIT_MAX_PARQUET_ROWS", "many")
    with pytest.raises(ConfigError, match=r"RECGRIT_MAX_PARQUET_ROWS is 'many'"):
        read_parquet(repeated)


def test_ordinary_files_are_read_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "PARQUET_ROWS", replace(PARQUET_ROWS, default=0))
    pl.DataFrame({"item_id": [f"i{i}" for i in range(10_000)]}).write_parquet(
        tmp_path / "a.parquet"
    )
    assert read_parquet(tmp_path / "a.parquet").height == 10_000
