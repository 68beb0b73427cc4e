from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recgrit.cells import Cell, CellTable
from recgrit.errors import ArtifactError


def test_a_stopped_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    table = CellTable(tmp_path / "grid.parquet")
    ran: list[Cell] = []

    def run(cell: Cell) -> dict[str, object]:
        if cell["x"] == 3 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell)
        return {"values": [cell["x"]] * 2}

    cells = [{"x": x, "seed": None} for x in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        table.fill(cells, run)
    assert table.rows()["x"].to_list() == [1, 2]
    ran.append({})
    table.fill(cells, run)
    assert [cell.get("x") for cell in ran] == [1, 2, None, 3]
    assert table.rows()["values"].to_list() == [[1, 1], [2, 2], [3, 3]]


def test_settings_added_later_count_as_none_in_older_rows(tmp_path: Path) -> None:
    table = CellTable(tmp_path / "grid.parquet")
    table.fill([{"x": 1}], lambda cell: {"y": 1.0})
    assert table.has({"x": 1, "width": None})
    assert not table.has({"x": 1, "width": 2})
    table.fill([{"x": 1, "width": 2}], lambda cell: {"y": 2.0, "ranks": pl.Series([1, 0])})
    assert table.rows().select("x", "y", "width").rows() == [(1, 1.0, None), (1, 2.0, 2)]
    assert table.has({"x": 1, "width": None})


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "grid.parquet").write_text("no")
    with pytest.raises(ArtifactError, match="Move it away"):
        CellTable(tmp_path / "grid.parquet").rows()
