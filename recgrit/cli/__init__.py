"""The ``recgrit`` command: one subcommand per stage, `run` for all, and ways to look at a run.

Results go to standard output, progress and logs to standard error. A mistake the user can mend ends
with one message and exit code 2. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import errno
import sys
from typing import Any, NoReturn, cast

import typer
from rich.markup import escape
from rich.panel import Panel

from recgrit.cli.app import app
from recgrit.errors import RecgritError
from recgrit.progress import messages

# Each module adds its commands to the app when it is imported: their order is that of the help.
# isort: off
from recgrit.cli import init  # noqa: F401
from recgrit.cli import stages  # noqa: F401
from recgrit.cli import look  # noqa: F401
from recgrit.cli import report  # noqa: F401
from recgrit.cli import use  # noqa: F401
# isort: on

# What is wrong with what was typed; typer gives the base of it no public name.
UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])


def main() -> None:
    """Entry point: runs a command and turns errors a user can mend into exit code 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except RecgritError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _refuse(f"No file can be called {str(error.filename)[:80]}…: the name is too long.")
    except UsageError as error:
        _refuse_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _refuse_usage(error: Any) -> NoReturn:
    text = error.format_message()
    if not text:
        # A group without a command: its help was shown in place of a message.
        sys.exit(2)
    _refuse(f"{text}\n'{error.ctx.command_path} --help' shows what can be typed here.")


def _refuse(text: str) -> NoReturn:
    panel = Panel(escape(text), title="recgrit cannot go on", border_style="red")
    messages.print(panel, soft_wrap=False)
    sys.exit(2)
