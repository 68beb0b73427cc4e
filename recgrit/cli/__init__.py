"""The ``recgrit`` command, with one subcommand per stage, `run` for all stages, and others.

Results go to standard output; progress and logs go to standard error. An error that the user can
correct ends with one message and exit code 2. Large libraries are imported inside the commands, so
that `recgrit --help` is fast.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, NoReturn, cast

import typer
from rich.markup import escape
from rich.panel import Panel

from recgrit.cli.app import app
from recgrit.disk import explain_write_failure
from recgrit.errors import ConfigError, RecgritError
from recgrit.progress import life, messages
from recgrit.text import is_text

# Each module adds its commands to the app when it is imported. The help lists them in this order.
# isort: off
from recgrit.cli import init  # noqa: F401
from recgrit.cli import stages  # noqa: F401
from recgrit.cli import tune  # noqa: F401
from recgrit.cli import look  # noqa: F401
from recgrit.cli import report  # noqa: F401
from recgrit.cli import use  # noqa: F401
from recgrit.cli import score  # noqa: F401
from recgrit.cli import similar  # noqa: F401
# isort: on

# The error for a wrong command line. Typer has no public name for this base class.
UsageError = cast("type[Exception]", typer.BadParameter.__bases__[0])


def main() -> None:
    """Run a command, and end with exit code 2 for errors that the user can correct."""
    try:
        _require_text()
        with life.shown():
            code = app(standalone_mode=False) or 0
        sys.exit(code)
    except RecgritError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _refuse(f"No file can be called {str(error.filename)[:80]}…: the name is too long.")
        reason = explain_write_failure(error)
        if reason is None or error.filename is None:
            raise
        _refuse(
            f"The system refuses access to {error.filename}: {reason}. Fix its permissions, free "
            "some space, or name another place."
        )
    except UsageError as error:
        _refuse_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _require_text() -> None:
    """Check that arguments and the working folder are valid text.

    Tables, pages and manifests cannot hold names that are not UTF-8.

    Raises:
        ConfigError: An argument or the working folder has bytes that are not UTF-8.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109 (paths are compared as they are)
    except OSError as error:
        raise ConfigError(f"The working folder cannot be used: {error.strerror}.") from None
    for what, text in (("argument", word) for word in sys.argv[1:]):
        _require_utf8(what, text)
    _require_utf8("working folder", folder)


def _require_utf8(what: str, text: str) -> None:
    if not is_text(text):
        raise ConfigError(
            f"The {what} {text[:200]} has bytes that are not UTF-8. Rename the file or folder; "
            "recgrit reads names as UTF-8, whatever the locale of the terminal."
        )


def _refuse_usage(error: Any) -> NoReturn:
    text = error.format_message()
    if not text:
        # For a group without a command, the help was shown, and there is no message.
        sys.exit(2)
    _refuse(f"{text}\n'{error.ctx.command_path} --help' shows what can be typed here.")


def _refuse(text: str) -> NoReturn:
    panel = Panel(escape(text), title="recgrit cannot continue", border_style="red")
    messages.print(panel, soft_wrap=False)
    sys.exit(2)
