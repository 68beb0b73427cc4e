"""The ``recgrit`` command: one subcommand per stage, `run` for all, and ways to look at a run.

Results go to standard output, progress and logs to standard error. A mistake the user can mend ends
with one message and exit code 2. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import sys

from rich.markup import escape
from rich.panel import Panel

from recgrit.cli.app import app
from recgrit.errors import RecgritError
from recgrit.progress import messages

# Each module adds its commands to the app when it is imported: their order is that of the help.
# isort: off
from recgrit.cli import stages  # noqa: F401
from recgrit.cli import look  # noqa: F401
from recgrit.cli import use  # noqa: F401
# isort: on


def main() -> None:
    """Entry point: runs a command and turns errors a user can mend into exit code 2."""
    try:
        app(standalone_mode=True)
    except RecgritError as error:
        messages.print(
            Panel(escape(str(error)), title="recgrit cannot go on", border_style="red"),
            soft_wrap=False,
        )
        sys.exit(2)
