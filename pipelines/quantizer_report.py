"""Tables and plots of the quantizer study, from the rows that are finished.

    python pipelines/quantizer_report.py docs/results/quantizer_study

Writes `tables.md` and one PNG per plot beside the Parquet files. Needs
`pip install -e ".[notebooks]"` for the plots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import typer

from recgrit.artifacts import write_atomic
from recgrit.cells import CellTable
from recgrit.evaluation.metrics import METRICS, PerUser, Ranks
from recgrit.evaluation.paired import PairedDifference, compare_ranks

K = 10
# What the others are compared with: the tuned baseline that is known to be hard to beat.
BASELINE = "ema"
LISTS = {"test": "unmasked", "test_masked": "masked"}


def recommendation_tables(rows: pl.DataFrame) -> list[str]:
    """Means over seeds, then paired differences from the baseline, for each data set."""
    texts = []
    for (data,), cells in rows.group_by("data", maintain_order=True):
        metrics = [f"{split}_{name.lower()}_at_{K}" for split in LISTS for name in METRICS]
        texts.append(f"### {data}\n\n" + _means(cells, ["tokenizer"], metrics))
        lines = [
            f"| against {BASELINE} | list | metric | difference | relative | 95% interval | "
            "detectable | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for tokenizer in cells["tokenizer"].unique(maintain_order=True):
            if tokenizer == BASELINE:
                continue
            for split, label in LISTS.items():
                for name, metric in METRICS.items():
                    found = compare(cells, str(tokenizer), split, metric)
                    if found is not None:
                        lines.append(
                            f"| {tokenizer} | {label} | {name}@{K} | {found.mean:+.4f} | "
                            f"{found.mean / found.baseline:+.1%} | {found.low:+.4f} to "
                            f"{found.high:+.4f} | {found.detectable:.4f} "
                            f"({found.detectable / found.baseline:.1%}) | {found.num_seeds} |"
                        )
        texts.append("\n".join(lines) + "\n")
    return texts


def compare(
    cells: pl.DataFrame,
    tokenizer: str,
    split: str,
    metric: Callable[[Ranks, int], PerUser],
) -> PairedDifference | None:
    """A tokenizer less the baseline on the seeds both have; None if there are none."""
    first, second = (
        {
            seed: np.asarray(ranks, dtype=np.int32)
            for seed, ranks in cells.filter(tokenizer=name)
            .select("seed", f"{split}_ranks")
            .iter_rows()
        }
        for name in (tokenizer, BASELINE)
    )
    return compare_ranks(first, second, metric, K)


def _means(rows: pl.DataFrame, by: Sequence[str], values: Sequence[str]) -> str:
    """A Markdown table: mean ± standard deviation over seeds of each value."""
    lines = [
        "| " + " | ".join([*by, *values, "seeds"]) + " |",
        "|" + "---|" * (len(by) + len(values) + 1),
    ]
    for key, cells in rows.group_by(by, maintain_order=True):
        found = [_cell(cells[value]) for value in values]
        lines.append(
            "| " + " | ".join([*(_word(part) for part in key), *found, str(cells.height)]) + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(values: pl.Series) -> str:
    mean, spread = float(values.mean()), values.std()  # type: ignore[arg-type]
    text = f"{mean:.1f}" if abs(mean) >= 10 else f"{mean:.4f}"
    if spread is None or spread == 0:
        return text
    return f"{text} ±{float(spread):.1f}" if abs(mean) >= 10 else f"{text} ±{float(spread):.4f}"


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def _with_levels(rows: pl.DataFrame) -> pl.DataFrame:
    """Use and perplexity of the first and the last level as columns."""
    return rows.with_columns(
        pl.col("codebook_usage").list.first().alias("usage, first level"),
        pl.col("codebook_usage").list.last().alias("usage, last level"),
        pl.col("perplexity").list.first().alias("perplexity, first level"),
        pl.col("perplexity").list.last().alias("perplexity, last level"),
    )


def plot_scaling(rows: pl.DataFrame, path: Path) -> None:
    """Use of the first level, error and processor time against the codebook size."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    columns = {
        "usage, first level": "codes used, first level",
        "reconstruction_loss": "reconstruction error",
        "cpu_seconds": "processor seconds to fit",
    }
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        for (method,), cells in _with_levels(rows).group_by("method", maintain_order=True):
            line = cells.group_by("codebook_size").agg(pl.col(column).mean()).sort("codebook_size")
            axis.plot(line["codebook_size"], line[column], marker="o", ms=3, label=method)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("codebook size")
        axis.set_title(label, fontsize=10)
    axes[2].set_yscale("log")
    axes[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes[2].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    _finish(figure, path)


def plot_gaps(rows: pl.DataFrame, path: Path) -> None:
    """Mean gap between latent and code over training, for each radius."""
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


# Part -> (what makes a row of its table, what is shown).
TABLES = {
    "choice": (["tokenizer"], ["valid_recall_at_10", "valid_ndcg_at_10", "reconstruction_loss"]),
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
    folder: Annotated[Path, typer.Argument(help="Where the study wrote its Parquet files.")],
) -> None:
    """Write `tables.md` and the plots of all parts that have rows."""
    mpl.use("Agg")
    texts = ["# The quantizer study: all tables\n\nMean ± standard deviation over seeds.\n"]
    rows = CellTable(folder / "recommendation.parquet").rows()
    if not rows.is_empty():
        texts += ["## recommendation\n", *recommendation_tables(rows)]
    for part, (by, values) in TABLES.items():
        rows = CellTable(folder / f"{part}.parquet").rows()
        if rows.is_empty():
            continue
        shown = _with_levels(rows) if "codebook_usage" in rows.columns else rows
        texts.append(f"## {part}\n\n" + _means(shown, by, values))
        if part in PLOTS:
            PLOTS[part](rows, folder / f"{part}.png")
            texts.append(f"![{part}]({part}.png)\n")
    write_atomic(folder / "tables.md", "\n".join(texts))


if __name__ == "__main__":
    typer.run(main)
