"""Evaluation reports side by side, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from recgrit.evaluation.metrics import METRICS
from recgrit.evaluation.report import EvaluationReport


def metrics_table(rows: Mapping[str, EvaluationReport]) -> Table:
    """One row per report, one column per metric and k; each cell is a mean ± half its interval.

    A line takes about 110 columns at three list lengths; on a narrower terminal the half interval
    moves below its mean, down to about 80 columns.

    Args:
        rows: Reports by what to call them, such as ``"retriever · test"``.
    """
    ks = sorted({k for report in rows.values() for k in report.ks})
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Numbers wrap between mean and interval; words of a label are never broken.
    longest_word = max((len(word) for label in rows for word in label.split()), default=0)
    table.add_column("", min_width=longest_word)
    for metric in METRICS:
        for k in ks:
            table.add_column(f"{metric}@{k}", justify="right", overflow="fold")
    for label, report in rows.items():
        keys = [f"{metric.lower()}_at_{k}" for metric in METRICS for k in ks]
        table.add_row(label, *(_cell(report, key) for key in keys))
    return table


def _cell(report: EvaluationReport, key: str) -> str:
    if key not in report.means:
        return "–"
    low, high = report.bounds[key]
    return f"{_short(report.means[key])} ±{_short((high - low) / 2)}"


def _short(value: float) -> str:
    """Four decimals without the leading zero, as papers print them: .0765."""
    return f"{value:.4f}".removeprefix("0")
