"""Commands that write HTML pages: `report` for one run, `compare` for several models."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recgrit.cli.app import JsonOption, app, open_run, print_json
from recgrit.display import build_table, output
from recgrit.errors import ArtifactError
from recgrit.progress import messages

if TYPE_CHECKING:
    from recgrit.reporting.comparison import Comparison

OpenOption = Annotated[
    bool, typer.Option("--open", metavar="", help="Open the page in the browser.")
]


@app.command(rich_help_panel="Look")
def report(
    run_directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Run folder. If not given, the newest run under runs/ is used."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file to write. If not given: RUN/report.html.",
        ),
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
    size = _write_page(path, render_report(contents), output)
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
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run folders. All other runs are compared with the first run.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file to write. If not given: FIRST_RUN/compare.html.",
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown",
            metavar="",
            help="Print Markdown tables. The page is written only with --out or --open.",
        ),
    ] = False,
    show: OpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare models on the same data, with paired differences, as tables and as an HTML page.

    Runs that differ only in their seed are one row: means over seeds, and differences paired by
    user and seed. Baselines of the runs are rows too.

    Example: `recgrit compare runs/base runs/wider`

    Example: `recgrit compare runs/base-seed-0 runs/base-seed-1 runs/wide-seed-0 runs/wide-seed-1
    --markdown`
    """
    opened = [open_run(directory) for directory in run_directories]
    from recgrit.reporting.compare_page import render_comparison
    from recgrit.reporting.comparison import compare_runs
    from recgrit.reporting.markdown import render_markdown

    path = out
    if path is None and (show or not markdown):
        path = opened[0].directory / "compare.html"
    if path is not None:
        _check_place(path)
    comparison = compare_runs(opened)
    if markdown:
        # Rich is not used, so that no line is wrapped. Nothing else goes to standard output.
        sys.stdout.write(render_markdown(comparison))
        sys.stdout.flush()
    else:
        if comparison.repeats is not None:
            output.print(comparison.repeats.explain())
        output.print(_scores_table(comparison))
        output.print(_differences_table(comparison))
        output.print(
            "masked: seen items are filtered out of the lists. Differences are paired by user "
            "and seed. The interval of a row with one seed does not include the variation "
            "between seeds."
        )
    size = None
    if path is not None:
        size = _write_page(path, render_comparison(comparison), messages if markdown else output)
        if show:
            webbrowser.open(path.absolute().as_uri())
    if as_json:
        page = {"out": None if path is None else str(path), "bytes": size}
        print_json(page | _comparison_values(comparison))


def _scores_table(comparison: Comparison) -> Table:
    from recgrit.reporting.markdown import show_score
    from recgrit.reporting.scores import metric_title

    titles = [metric_title(metric) for metric in comparison.headline]
    table = build_table("model", "lists", *titles, "seeds", numbers=(*titles, "seeds"))
    table.title = "Test, mean ± half the 95% interval over users and seeds"
    for view in comparison.views:
        for compared in comparison.rows:
            scores = compared.of_view(view).scores
            cells = [show_score(scores[metric]) for metric in comparison.headline]
            seeds = str(len(compared.row.runs))
            table.add_row(escape(compared.name), view.label or "all items", *cells, seeds)
        table.add_section()
    return table


def _differences_table(comparison: Comparison) -> Table:
    from recgrit.reporting.markdown import show_relative

    base = comparison.base
    numbers = ("base", "difference", "relative", "95% interval")
    table = build_table("model", "metric", *numbers, numbers=numbers)
    table.title = f"Differences from {escape(base.name)}"
    for found in comparison.differences:
        value = found.value
        sure = "[green]" if value.low > 0 else "[red]" if value.high < 0 else "[default]"
        table.add_row(
            escape(found.row),
            found.view.title(found.metric),
            f"{value.baseline:.4f}",
            f"{sure}{value.mean:+.4f}[/]",
            show_relative(value.mean, value.baseline),
            f"{value.low:+.4f} to {value.high:+.4f}",
        )
    return table


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return rows and differences as JSON values.

    A metric has a name such as ``test_masked/ndcg_at_10``.
    """
    rows = [
        {
            "row": compared.name,
            "model": compared.row.kind,
            "is_baseline": compared.row.is_baseline,
            "runs": {seed: str(run.directory) for seed, run in compared.row.runs.items()},
            "search": compared.scores[0].search,
            "metrics": {
                f"{found.view.key}/{metric}": asdict(score)
                for found in compared.scores
                for metric, score in found.scores.items()
            },
        }
        for compared in comparison.rows
    ]
    differences = [
        {
            "row": found.row,
            "base": comparison.base.name,
            "metric": f"{found.view.key}/{found.metric}",
            "difference": found.value.mean,
            "low": found.value.low,
            "high": found.value.high,
            "base_mean": found.value.baseline,
            "num_seeds": found.value.num_seeds,
        }
        for found in comparison.differences
    ]
    return {"rows": rows, "differences": differences}


def _check_place(path: Path) -> None:
    """Raise an error if the path is a folder, or an existing file that is no HTML page.

    The path is checked before the page is made, which may take minutes.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: name a file, such as {path / 'report.html'}.")
    if path.exists() and path.suffix not in (".html", ".htm"):
        raise ArtifactError(
            f"{path} already exists and is not a page: name a new file, or one that ends in .html."
        )


def _write_page(path: Path, page: str, console: Console) -> int:
    from recgrit.disk import write_atomic

    try:
        write_atomic(path, page)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror}. Choose another --out."
        ) from None
    size = path.stat().st_size
    console.print(f"{escape(str(path))} ({size / 2**20:.1f} MiB)", soft_wrap=True)
    return size
