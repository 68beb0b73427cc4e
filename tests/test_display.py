import io
import logging
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from recgrit.cli.app import _build_log_handler, _LogFormatter
from recgrit.display import build_table, metrics_tables, recommendation_table, relatives_table
from recgrit.evaluation.report import EvaluationReport
from recgrit.progress import SafeConsole, build_console, show_control


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
    for table in metrics_tables(rows, width):
        console.print(table)
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


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("num_ks", [1, 3, 6, 100])
def test_any_list_of_lengths_fits_without_a_cut_digit(width: int, num_ks: int) -> None:
    ks = tuple(range(1, num_ks * 10, 10))
    means = {"valid": 0.1, "test": 0.2, "test masked": 0.3, "test new items": 1.0}
    text = render({label: report(ks, mean) for label, mean in means.items()}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for mean in (".1000", ".2000", ".3000", "1.0000"):
        assert text.count(mean) == 2 * num_ks
    assert text.count("±.0033") == 2 * 4 * num_ks
    words = text.split()
    for k in ks:
        assert f"Recall@{k}" in words or str(k) in words


def test_no_part_of_a_line_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    console = build_console(stderr=True)
    file = io.StringIO()
    monkeypatch.setattr(console, "file", file)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_color_system", ColorSystem.TRUECOLOR)
    monkeypatch.setattr(sys.modules["recgrit.cli.app"], "messages", console)
    console.print("user u00042 of 3,000 at /runs/shop-2 in 1.5 s")
    handler = _build_log_handler()
    record = logging.LogRecord("recgrit", logging.INFO, "", 1, "17850 items in 1.5 s", (), None)
    handler.emit(record)
    assert "u00042 of 3,000 at /runs/shop-2 in 1.5 s" in file.getvalue()
    assert "17850 items in 1.5 s" in file.getvalue()


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


# The text sets a window title, moves the cursor, clears, hides text and turns its direction.
HOSTILE = "Alien\x1b]0;owned\x07 \x1b[2J\x9b1A\rfree\x08\u202elive"


def on_a_terminal(*printed: object) -> str:
    console = SafeConsole(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    for renderable in printed:
        console.print(renderable, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def is_obeyed(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character != "\n"


def test_control_characters_of_titles_are_escaped_in_every_table() -> None:
    rows = {"rank": [1], "item_id": [HOSTILE], "title": [HOSTILE], "score": [1.0]}
    near = {"shared": [1], "item_id": [HOSTILE], "title": [HOSTILE], "semantic_id": ["<a_1>"]}
    table = build_table("stage")
    table.title = escape(HOSTILE)
    table.add_row(escape(HOSTILE))
    for printed in (
        recommendation_table(HOSTILE, pl.DataFrame(rows)),
        relatives_table(pl.DataFrame(near)),
        table,
        Panel(escape(HOSTILE)),
        escape(HOSTILE),
    ):
        shown = on_a_terminal(printed)
        assert not [character for character in shown if is_obeyed(character)]
        assert r"Alien\x1b]0;owned\x07 \x1b[2J\x9b1A\rfree\x08\u202elive" in shown


@given(st.text(st.characters(), max_size=30))
def test_no_text_reaches_a_terminal_as_a_command(text: str) -> None:
    shown = on_a_terminal(escape(text))
    assert not [character for character in shown if is_obeyed(character)]
    shown.encode()


def test_control_characters_of_log_lines_are_escaped() -> None:
    record = logging.LogRecord("recgrit", logging.WARNING, "", 1, "no item %s", (HOSTILE,), None)
    line = _LogFormatter("%(message)s").format(record)
    assert line == f"warning: no item {show_control(HOSTILE)}"
    assert "\x1b" not in line


def test_every_console_shows_control_characters() -> None:
    assert all(isinstance(build_console(stderr=stderr), SafeConsole) for stderr in (True, False))
