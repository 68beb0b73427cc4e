"""The ``recgrit`` command, also available as ``python -m recgrit``.

If the packages that the command needs are not installed, it prints what to install.
"""

import sys
from typing import NoReturn

from rich.markup import escape
from rich.panel import Panel

from recgrit.errors import MissingExtraError
from recgrit.extras import INSTALL
from recgrit.progress import messages


def main() -> None:
    """Run `recgrit.cli.main`, or print what to install and exit with code 2."""
    try:
        from recgrit.cli import main as command

        command()
    except MissingExtraError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("recgrit"):
            raise
        _refuse(f"recgrit needs {error.name}, which is not installed. {INSTALL}")


def _refuse(text: str) -> NoReturn:
    messages.print(Panel(escape(text), title="recgrit cannot continue", border_style="red"))
    sys.exit(2)


if __name__ == "__main__":
    main()
