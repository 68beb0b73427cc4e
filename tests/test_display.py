import io
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from recgrit.display import metrics_table
from recgrit.evaluation.report import EvaluationReport


def report(ks: tuple[int, ...], mean: float = 0.0765) -> EvaluationReport:
    names = [f"{metric}_at_{k}" for metric in ("recall", "ndcg") for k in ks]
    return EvaluationReport(
        per_target=pl.DataFrame({"user_idx": [0], "sequence": [0], "item_idx": [1], "rank": [1]}),
        protocol={"ks": ks},
        means=dict.fromkeys(names, mean),
        bounds=dict.fromkeys(names, (mean - 0.0033, mean + 0.0033)),
    )


def render(rows: dict[str, EvaluationReport], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(metrics_table(rows))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_per_report_on_a_wide_terminal() -> None:
    rows = {"trie · test": report((5, 10, 20)), "popularity · test": report((5, 10, 20), 1.0)}
    lines = render(rows, 120).splitlines()
    header = next(line for line in lines if "Recall" in line)
    assert header.split() == [f"{m}@{k}" for m in ("Recall", "NDCG") for k in (5, 10, 20)]
    assert next(line for line in lines if "trie" in line).count(".0765 ±.0033") == 6
    assert next(line for line in lines if "popularity" in line).count("1.0000 ±.0033") == 6


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_on_a_narrow_terminal(width: int) -> None:
    text = render({"trie, masked · test": report((5, 10, 20))}, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count(".0765") == 6
    assert text.count("±.0033") == 6
    assert "Recall@20" in text
    assert "trie," in text


def test_reports_of_other_list_lengths_share_a_table() -> None:
    text = render({"a": report((5,)), "b": report((10,))}, 120)
    assert text.count("–") == 4


def test_a_run_shows_its_own_model_first_and_how_its_lists_were_found(
    tiny_run: Any, command: Callable[..., Any]
) -> None:
    out = command("inspect", "run", "--run", tiny_run.directory).out
    metrics = out[out.index("all items ranked") :]
    places = [metrics.index(name) for name in ("trie (this run)", "item_knn", "popularity")]
    assert places == sorted(places)
    assert "60 users, all items ranked (trie: beam of 40)" in " ".join(out.split())
