"""Markdown tables of studies: means over seeds, and paired differences from a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from recgrit.evaluation.metrics import METRICS, PerUser, Ranks
from recgrit.evaluation.paired import compare_ranks, paired_difference

K = 10
# Columns of ranks by what their lists are called.
LISTS = {"test": "unmasked", "test_masked": "masked"}
METRIC_COLUMNS = [f"{split}_{name.lower()}_at_{K}" for split in LISTS for name in METRICS]


def means_table(rows: pl.DataFrame, by: Sequence[str], values: Sequence[str]) -> str:
    """Mean ± standard deviation over seeds of each value."""
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


def intervals_table(rows: pl.DataFrame, by: str) -> str:
    """Mean of each metric ± half its 95% interval over users and seeds."""
    lines = ["| " + " | ".join([by, *METRIC_COLUMNS, "seeds"]) + " |"]
    lines.append("|" + "---|" * (len(METRIC_COLUMNS) + 2))
    for (model,), cells in rows.group_by([by], maintain_order=True):
        found = [
            _interval(list(_ranks(cells, split).values()), metric)
            for split in LISTS
            for metric in METRICS.values()
        ]
        lines.append("| " + " | ".join([str(model), *found, str(cells.height)]) + " |")
    return "\n".join(lines) + "\n"


def _interval(ranks: Sequence[Ranks], metric: Callable[[Ranks, int], PerUser]) -> str:
    if not ranks:
        return ""
    values = np.stack([metric(of_seed, K) for of_seed in ranks])
    # Less nothing: the interval of the mean itself.
    found = paired_difference(values, np.zeros_like(values))
    return f"{found.mean:.4f} ±{(found.high - found.low) / 2:.4f}"


def differences_table(rows: pl.DataFrame, by: str, baseline: str) -> str:
    """Each model less the baseline on the seeds both have, with intervals over users and seeds.

    Models that were measured on other users than the baseline are left out.
    """
    lines = [
        f"| against {baseline} | list | metric | difference | relative | 95% interval | "
        "detectable | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in rows[by].unique(maintain_order=True):
        if model == baseline:
            continue
        for split, label in LISTS.items():
            first, second = (_ranks(rows.filter(pl.col(by) == m), split) for m in (model, baseline))
            if {len(r) for r in first.values()} != {len(r) for r in second.values()}:
                continue
            for name, metric in METRICS.items():
                found = compare_ranks(first, second, metric, K)
                if found is not None:
                    lines.append(
                        f"| {model} | {label} | {name}@{K} | {found.mean:+.4f} | "
                        f"{found.mean / found.baseline:+.1%} | {found.low:+.4f} to "
                        f"{found.high:+.4f} | {found.detectable:.4f} "
                        f"({found.detectable / found.baseline:.1%}) | {found.num_seeds} |"
                    )
    return "\n".join(lines) + "\n"


def _ranks(rows: pl.DataFrame, split: str) -> dict[int, Ranks]:
    """Ranks of the targets by seed; none where these lists were not made."""
    found = rows.select("seed", f"{split}_ranks").drop_nulls(f"{split}_ranks")
    return {seed: np.asarray(ranks, dtype=np.int32) for seed, ranks in found.iter_rows()}


def _cell(values: pl.Series) -> str:
    if values.null_count() == len(values):
        return ""
    mean, spread = float(values.mean()), values.std()  # type: ignore[arg-type]
    text = f"{mean:.1f}" if abs(mean) >= 10 else f"{mean:.4f}"
    if spread is None or spread == 0:
        return text
    return f"{text} ±{float(spread):.1f}" if abs(mean) >= 10 else f"{text} ±{float(spread):.4f}"


def _word(value: object) -> str:
    return "none" if value is None else str(value)
