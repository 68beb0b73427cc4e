import io

import polars as pl
import pytest
from rich.console import Console

from recgrit.evaluation.report import EvaluationReport
from recgrit.evaluation.table import metrics_table


def report(ks: tuple[int, ...], mean: float = 0.0765) -> EvaluationReport:
    names = [f"{metric}_at_{k}" for metric in ("recall", "ndcg") for k in ks]
    return EvaluationReport(
        per_user=pl.DataFrame({"user_idx": [0], "item_idx": [1], "rank": [1]}),
        protocol={"ks": ks},
        means=dict.fromkeys(names, mean),
        bounds=dict.fromkeys(names, (mean - 0.0033, mean + 0.0033)),
    )


def render(rows: dict[str, EvaluationReport], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(metrics_table(rows))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_per_report_on_a_wide_terminal() -> None:
    rows = {"retriever · test": report((5, 10, 20)), "popularity · test": report((5, 10, 20), 1.0)}
    lines = render(rows, 120).splitlines()
    header = next(line for line in lines if "Recall" in line)
    assert header.split() == [f"{m}@{k}" for m in ("Recall", "NDCG") for k in (5, 10, 20)]
    assert next(line for line in lines if "retriever" in line).count(".0765 ±.0033") == 6
    assert next(line for line in lines if "popularity" in line).count("1.0000 ±.0033") == 6


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_on_a_narrow_terminal(width: int) -> None:
    text = render({"retriever, masked · test": report((5, 10, 20))}, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count(".0765") == 6
    assert text.count("±.0033") == 6
    assert "Recall@20" in text
    assert "retriever," in text


def test_reports_of_other_list_lengths_share_a_table() -> None:
    text = render({"a": report((5,)), "b": report((10,))}, 120)
    assert text.count("–") == 4
