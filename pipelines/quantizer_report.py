"""Write tables and plots of the quantizer study from its finished rows.

    python pipelines/quantizer_report.py docs/results/quantizer_study

The script writes `tables.md` and one PNG file per plot beside the Parquet files of the study. The
plots need `pip install -e ".[notebooks]"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import typer
from quantizer_study import read_rows

from recgrit.disk import write_atomic


def means_table(rows: pl.DataFrame, by: Sequence[str], values: Sequence[str]) -> str:
    """Return a Markdown table with mean ± standard deviation over seeds of each value.

    Args:
        rows: Finished cells of a part of the study.
        by: Names of the columns whose values define a row of the table.
        values: Names of the columns to average.
    """
    lines = [
        "| " + " | ".join([*by, *values, "seeds"]) + " |",
        "|" + "---|" * (len(by) + len(values) + 1),
    ]
    for key, cells in rows.group_by(by, maintain_order=True):
        names = ["none" if part is None else str(part) for part in key]
        found = [_show(cells[value]) for value in values]
        lines.append("| " + " | ".join([*names, *found, str(cells.height)]) + " |")
    return "\n".join(lines) + "\n"


def _show(values: pl.Series) -> str:
    found = values.to_numpy()
    digits = 1 if abs(found.mean()) >= 10 else 4
    spread = found.std(ddof=1) if len(found) > 1 else 0.0
    return f"{found.mean():.{digits}f}" + (f" ±{spread:.{digits}f}" if spread else "")


def _with_levels(rows: pl.DataFrame) -> pl.DataFrame:
    """Add usage and perplexity of the first and of the last level as columns."""
    return rows.with_columns(
        pl.col("codebook_usage").list.first().alias("usage, first level"),
        pl.col("codebook_usage").list.last().alias("usage, last level"),
        pl.col("perplexity").list.first().alias("perplexity, first level"),
        pl.col("perplexity").list.last().alias("perplexity, last level"),
    )


def plot_scaling(rows: pl.DataFrame, path: Path) -> None:
    """Plot usage of the first level, error and processor time against the codebook size."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    columns = {
        "usage, first level": "codes used, first level",
        "reconstruction_loss": "reconstruction error",
        "cpu_seconds": "processor seconds to fit",
    }
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        methods = _with_levels(rows).group_by("method", maintain_order=True)
        for number, ((method,), cells) in enumerate(methods):
            line = cells.group_by("codebook_size").agg(pl.col(column).mean()).sort("codebook_size")
            axis.plot(
                line["codebook_size"],
                line[column],
                # There are more methods than colours in the default cycle.
                color=mpl.colormaps["tab20"](number % 20),
                linestyle="--" if "random" in str(method) else "-",
                marker="o",
                ms=3,
                label=method,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("codebook size")
        axis.set_title(label, fontsize=10)
    axes[2].set_yscale("log")
    axes[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes[2].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    _finish(figure, path)


def plot_gaps(rows: pl.DataFrame, path: Path) -> None:
    """Plot the mean gap between latent and code by epoch, with one line per radius."""
    surrogates = rows["surrogate"].unique(maintain_order=True).to_list()
    figure, axes = plt.subplots(1, len(surrogates), figsize=(10, 3.8), sharey=True, squeeze=False)
    for axis, surrogate in zip(axes[0], surrogates, strict=True):
        chosen = rows.filter(surrogate=surrogate)
        for (radius,), cells in chosen.group_by("radius", maintain_order=True):
            axis.plot(np.mean(cells["mean_gaps"].to_list(), axis=0), label=radius)
        axis.set_title(f"{surrogate} surrogate", fontsize=10)
        axis.set_xlabel("epoch")
        axis.legend(fontsize=7, frameon=False)
    axes[0][0].set_ylabel("mean gap")
    _finish(figure, path)


def _finish(figure: plt.Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


# Part of the study -> (columns that define a row of its table, columns to show).
TABLES = {
    "ablation": (
        ["method", "codes_trained_by", "init", "revival"],
        ["reconstruction_loss", "usage, first level", "usage, last level", "collision_rate"],
    ),
    "scaling": (
        ["codebook_size", "method"],
        [
            "reconstruction_loss",
            "usage, first level",
            "usage, last level",
            "perplexity, first level",
            "collision_rate",
            "cpu_seconds",
        ],
    ),
    "radius": (
        ["radius", "surrogate"],
        ["reconstruction_loss", "perplexity, first level", "collision_rate"],
    ),
    "cache": (
        ["codebook_size", "batch_size", "cache_interval"],
        ["reconstruction_loss", "cpu_seconds"],
    ),
    "shape": (
        ["num_levels", "code_dim"],
        ["reconstruction_loss", "collision_rate", "perplexity, last level", "cpu_seconds"],
    ),
}
PLOTS = {"scaling": plot_scaling, "radius": plot_gaps}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with the study's Parquet files.")],
) -> None:
    """Write `tables.md` and the plots of all parts that have rows."""
    mpl.use("Agg")
    texts = ["# The quantizer study: all tables\n\nMean ± standard deviation over seeds.\n"]
    for part, (by, values) in TABLES.items():
        rows = read_rows(folder / f"{part}.parquet")
        if rows.is_empty():
            continue
        texts.append(f"## {part}\n\n" + means_table(_with_levels(rows), by, values))
        if part in PLOTS:
            PLOTS[part](rows, folder / f"{part}.png")
            texts.append(f"![{part}]({part}.png)\n")
    write_atomic(folder / "tables.md", "\n".join(texts))


if __name__ == "__main__":
    typer.run(main)
