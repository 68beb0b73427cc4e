"""Write the generated pages of the reference: settings, commands and the Python API.

`python docs/generate.py` writes the pages. With `--check` it writes nothing, names the pages that
are not current, and exits with 1 if there are any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer
from api_pages import describe_api
from typer.cli import get_docs_for_click

from recgrit.bounds import BOUNDS
from recgrit.cli import app
from recgrit.settings import describe_settings

REFERENCE = Path(__file__).parent / "reference"
COMMANDS = """# Commands

<!-- Generated from the command line itself: python docs/generate.py -->

`recgrit --help` lists the commands in groups. Each command has a `--help` with an example.

- Results go to standard output. Progress and messages go to standard error.
- With `--json`, the last line of standard output is one JSON object.
- Options of `recgrit` itself stand before the command. `recgrit --quiet run ...` prints only
  warnings.
- Pipes get no colours. `NO_COLOR` switches colours off in a terminal, too.
- Exit codes: 0 for success, 2 for a mistake that you can correct, 130 for an interrupted command.
- `recgrit --install-completion` installs completion of commands and options for your shell.
"""


LIMITS = """
## Limits

Input beyond a limit is refused. An environment variable raises the limit. Files whose size explains
more have a higher limit: 100 times the packed bytes, or 50 Parquet rows a byte.

| variable | default | unit |
|---|---|---|
"""


def generate() -> dict[Path, str]:
    """Return the text of all generated pages, by path."""
    pages = {
        REFERENCE / "settings.md": describe_settings() + describe_bounds(),
        REFERENCE / "commands.md": COMMANDS + describe_commands(),
    }
    return pages | {REFERENCE / "api" / name: text for name, text in describe_api().items()}


def describe_bounds() -> str:
    """Return the limits of input files and requests, and the variables that raise them."""
    rows = (f"| `{one.variable}` | {one.default:,} | {one.unit} |" for one in BOUNDS)
    return LIMITS + "\n".join(rows) + "\n"


def describe_commands() -> str:
    """Return usage, arguments, options and examples of all commands as Markdown."""
    command = typer.main.get_command(app)
    _say_in_full(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="recgrit")
    text = text.partition("\n")[2]
    # A usage line cannot be run as it is, so its block is text. Names of commands are headings.
    text = re.sub(r"```console\n\$ (.*?)\n```", r"```text\n\1\n```", text)
    text = re.sub(r"^(#+) `(.*)`$", r"\1 \2", text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"


def _say_in_full(group: Any) -> None:
    """Set the summary of each command to its first paragraph, which click cuts at 45 characters."""
    for command in group.commands.values():
        paragraph = (command.help or "").partition("\n\n")[0]
        command.short_help = " ".join(paragraph.split())
        if hasattr(command, "commands"):
            _say_in_full(command)


def main() -> int:
    """Write the pages. With `--check`, compare them with the files instead.

    Returns:
        Exit code: 1 if `--check` finds a page that is not current, else 0.
    """
    pages = generate()
    stale = [path for path, text in pages.items() if not _holds(path, text)]
    stale += [path for path in (REFERENCE / "api").glob("*.md") if path not in pages]
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(
                f"{path.relative_to(REFERENCE.parents[1])} is not current: python docs/generate.py"
            )
        return 1 if stale else 0
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in set(stale) - set(pages):
        path.unlink()
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main())
