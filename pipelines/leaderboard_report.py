"""Tables of the leaderboard, from the rows that are finished.

    python pipelines/leaderboard_report.py docs/results/leaderboard

Writes `tables.md` beside the Parquet files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from markdown import METRIC_COLUMNS, differences_table, intervals_table, means_table

from recgrit.artifacts import write_atomic
from recgrit.cells import CellTable

BASELINES = ("SASRec", "SASRec with neighbours")
COST_COLUMNS = ["parameters", "epochs", "fit_seconds", "num_users"]
COLD_COLUMNS = [
    "cold_recall_at_10",
    "warm_recall_at_10",
    "cold_share_of_lists",
    "cold_share_of_targets",
]


def board_tables(rows: pl.DataFrame) -> list[str]:
    """Means, costs and differences for each data set."""
    texts = []
    for (data,), cells in rows.group_by("data", maintain_order=True):
        texts.append(f"### {data}\n\n" + means_table(cells, ["model"], METRIC_COLUMNS))
        known = [column for column in COST_COLUMNS if column in cells.columns]
        trained = cells.drop_nulls("parameters") if "parameters" in known else cells.clear()
        texts.append(means_table(trained, ["model"], known))
        texts.append("Mean ± half the 95% interval over users and seeds:\n")
        texts.append(intervals_table(cells, "model"))
        for baseline in BASELINES:
            if baseline in cells["model"]:
                texts.append(differences_table(cells, "model", baseline))
        if "parts" in cells.columns:
            texts.append(
                parts_table(cells.drop_nulls("parts").unique("model", maintain_order=True))
            )
    return texts


def parts_table(cells: pl.DataFrame) -> str:
    """Parameters by part of the retriever and its ablations."""
    parts = [field.name for field in cells.schema["parts"].fields] if cells.height else []
    lines = ["| model | " + " | ".join(parts) + " |", "|---|" + "---|" * len(parts)]
    for model, values in cells.select("model", "parts").iter_rows():
        counts = [f"{values[part] or 0:,}" for part in parts]
        lines.append(f"| {model} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def main(
    folder: Annotated[Path, typer.Argument(help="Where the rows are.")],
) -> None:
    """Write the tables."""
    texts = ["# The leaderboard: all tables\n\nMean ± standard deviation over seeds.\n"]
    for name in ("board", "choice", "cold"):
        rows = CellTable(folder / f"{name}.parquet").rows()
        if rows.is_empty():
            continue
        texts.append(f"## {name}\n")
        if name == "board":
            texts += board_tables(rows)
        else:
            values = (
                ["valid_recall_at_10", "valid_ndcg_at_10", "valid_masked_ndcg_at_10"]
                if name == "choice"
                else COLD_COLUMNS
            )
            texts.append(means_table(rows, ["data", "model"], values))
    write_atomic(folder / "tables.md", "\n".join(texts))


if __name__ == "__main__":
    typer.run(main)
