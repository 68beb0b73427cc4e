"""What the site of these pages adds to them while it is built: an mkdocs hook.

* `cli.md` gets the help of every command, from the commands themselves.
* The pages are read in the repository, too, where they link to modules, pipelines and folders. The
  site has no such files, and this project no address of its own: there, such links become the names
  of the files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from recgrit.cli import app

COMMANDS = "<!-- commands -->"
ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    folder = Path(page.file.abs_src_path).parent
    markdown = LINK.sub(lambda link: _keep_or_name(link, folder), markdown)
    return markdown.replace(COMMANDS, describe_commands()) if COMMANDS in markdown else markdown


def describe_commands() -> str:
    """Usage, arguments, options and examples of all commands as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="recgrit")
    return text.partition("\n")[2]


def _keep_or_name(link: re.Match[str], folder: Path) -> str:
    """The link, or where it leads to no page, the name of the file."""
    target = (folder / link[2]).resolve()
    if target.is_file() and target.is_relative_to(ROOT / "docs"):
        return link[0]
    if not target.exists():
        return link[0]  # Left to the strict build, which names it.
    name = f"`{target.relative_to(ROOT)}`"
    return name if link[1].startswith("`") else f"{link[1]} ({name})"
