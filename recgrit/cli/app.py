"""The typer application: options that all subcommands share, logging, and opening of a run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.markup import escape

import recgrit
from recgrit.display import output
from recgrit.errors import ArtifactError
from recgrit.progress import is_helper, life, messages, show_control

if TYPE_CHECKING:
    from recgrit.runs import Run

app = typer.Typer(
    name="recgrit",
    help="""Generative recommendation with GRIT-VQ semantic IDs.

    Start: `recgrit run configs/movielens-100k.yaml`

    Look at it: `recgrit report runs/movielens-100k --open`

    Use it: `recgrit recommend --run runs/movielens-100k --user 196`
    """,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
JsonOption = Annotated[
    bool,
    typer.Option("--json", metavar="", help="Print one JSON object as the last line of output."),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="RUN", help="Run folder. If not given, the newest run under runs/ is used."
    ),
]


def _show_version(asked: bool) -> None:
    if asked:
        output.print(f"recgrit {recgrit.__version__}")
        raise typer.Exit


@app.callback()
def _setup(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", metavar="", help="Print debug messages too.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", metavar="", help="Print only warnings and results.")
    ] = False,
    # The option is eager, so that it works without a command.
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Print the version and exit.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    root = logging.getLogger("recgrit")
    root.handlers = [_build_log_handler()]
    quiet = quiet or is_helper()
    life.is_quiet = quiet
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    root.propagate = False


class _LogFormatter(logging.Formatter):
    """A log formatter that puts "warning:" before warnings and errors."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (name in logging)
        life.note_output()
        if record.levelno >= logging.WARNING:
            record.message = f"warning: {record.message}"
        record.message = show_control(record.message)
        return super().formatMessage(record)


def _build_log_handler() -> logging.Handler:
    """Return a log handler, which wraps messages on a terminal and only there."""
    handler: logging.Handler
    if messages.is_terminal:
        handler = RichHandler(
            console=messages,
            show_path=False,
            show_level=False,
            log_time_format="%H:%M:%S",
            highlighter=NullHighlighter(),
        )
        handler.setFormatter(_LogFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


def open_run(directory: Path | None) -> Run:
    """Open the run in a folder.

    Args:
        directory: Folder of the run. None opens the newest run under ``runs/``.

    Raises:
        ArtifactError: There is no run.
    """
    from recgrit.experiment import CONFIG_NAME
    from recgrit.runs import Run

    if directory is None:
        found = sorted(Path("runs").glob(f"*/{CONFIG_NAME}"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ArtifactError(
                "No run under runs/: name one with --run DIR, or run a config first."
            )
        directory = found[-1].parent
        messages.print(f"Using the newest run, {escape(str(directory))}.", soft_wrap=True)
    return Run(directory)


def print_json(values: dict[str, Any]) -> None:
    """Print values as one JSON object on one line of standard output."""
    # Rich is not used, because it would wrap the line at the width of the terminal.
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
