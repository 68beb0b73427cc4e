"""Commands that write pages to look at: report for one run, compare for several."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from recgrit.cli.app import JsonOption, app, open_run, print_json
from recgrit.display import build_table, output
from recgrit.errors import ArtifactError
from recgrit.progress import messages

if TYPE_CHECKING:
    from recgrit.reporting.comparison import Comparison

OpenOption = Annotated[bool, typer.Option("--open", metavar="", help="Show it in the browser.")]


@app.command(rich_help_panel="Look")
def report(
    run_directory: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder; the newest under runs/ if not given."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page; RUN/report.html if not given."),
    ] = None,
    show: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's results as one self-contained HTML page.

    Example: `recgrit report runs/movielens-100k --open`
    """
    opened = open_run(run_directory)
    from recgrit.reporting.contents import gather_contents
    from recgrit.reporting.page import render_report

    path = out if out is not None else opened.directory / "report.html"
    _check_place(path)
    contents = gather_contents(opened)
    size = _write_page(path, render_report(contents))
    for stage, reason in contents.missing.items():
        messages.print(f"Without {stage}: {escape(reason)}", soft_wrap=True)
    if show:
        webbrowser.open(path.absolute().as_uri())
    if as_json:
        values = {"run": str(opened.directory), "out": str(path), "bytes": size}
        print_json({**values, "missing": contents.missing})


@app.command(rich_help_panel="Look")
def compare(
    run_directories: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders; the first is the base.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The page; FIRST_RUN/compare.html if not given."
        ),
    ] = None,
    show: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs on the same data: paired differences, here and as an HTML page.

    Example: `recgrit compare runs/base runs/wider`
    """
    opened = [open_run(directory) for directory in run_directories]
    from recgrit.reporting.compare_page import render_comparison
    from recgrit.reporting.comparison import compare_runs

    path = out if out is not None else opened[0].directory / "compare.html"
    _check_place(path)
    comparison = compare_runs(opened)
    output.print(_differences_table(comparison))
    output.print("Paired by user, 95% intervals over users; the luck of a seed is not in them.")
    size = _write_page(path, render_comparison(comparison))
    if show:
        webbrowser.open(path.absolute().as_uri())
    if as_json:
        differences = [
            {
                "run": found.run,
                "base": comparison.runs[0].name,
                "metric": f"test_masked/{found.metric}" if found.masked else f"test/{found.metric}",
                "difference": found.value.mean,
                "low": found.value.low,
                "high": found.value.high,
            }
            for found in comparison.differences
        ]
        print_json({"out": str(path), "bytes": size, "differences": differences})


def _differences_table(comparison: Comparison) -> Table:
    from recgrit.reporting.scores import metric_title

    base = comparison.runs[0]
    numbers = ("base", "difference", "95% interval")
    table = build_table("run", "metric", *numbers, numbers=numbers)
    table.title = f"Differences from {escape(base.name)}"
    for found in comparison.differences:
        value = found.value
        sure = "[green]" if value.low > 0 else "[red]" if value.high < 0 else "[default]"
        table.add_row(
            escape(found.run),
            metric_title(found.metric) + (" masked" if found.masked else ""),
            f"{value.baseline:.4f}",
            f"{sure}{value.mean:+.4f}[/]",
            f"{value.low:+.4f} to {value.high:+.4f}",
        )
    return table


def _check_place(path: Path) -> None:
    """Refuse a place that cannot take a page, before minutes are spent on it."""
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: name a file, such as {path / 'report.html'}.")


def _write_page(path: Path, page: str) -> int:
    from recgrit.artifacts import write_atomic

    try:
        write_atomic(path, page)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror}. Choose another --out."
        ) from None
    size = path.stat().st_size
    output.print(f"{escape(str(path))} ({size / 2**20:.1f} MiB)", soft_wrap=True, highlight=False)
    return size
