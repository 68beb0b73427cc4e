"""Collect the commands that README, the docs and the `--help` texts show.

A code block counts if it is indented, or fenced with no language or with bash. Its commands are the
lines after the prompt ``$ ``. If no line has the prompt, they are the lines that begin with a
program of `PROGRAMS`. A backslash continues a line, ``&&`` joins two commands, and comments are
left out. In prose, a command is a text between backticks that begins with a program, has more words
than the program and has no ellipsis.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from recgrit.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = "recgrit|python3?|make|pip|torchrun|srun|ray|mlflow|pytest|pre-commit"

FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n)+")
PROMPT = re.compile(r"^\$ (.*)$", re.MULTILINE)
VARIABLES = r"(?:[A-Z_]+=\S+ )*"
COMMAND = re.compile(rf"^{VARIABLES}(?:{PROGRAMS}) .*$", re.MULTILINE)
INLINE = re.compile(rf"`({VARIABLES}(?:{PROGRAMS})\s[^`]+)`")


@dataclass(frozen=True)
class Documented:
    """A documented command without leading environment variables, and where it is documented."""

    text: str
    where: str

    @property
    def program(self) -> str:
        """Return the first word of the command."""
        return self.text.split()[0]


def list_commands() -> dict[str, Any]:
    """Return the commands of recgrit by name, such as `inspect item`, with their help texts."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))
            else:
                yield " ".join((*words, name)), command

    return dict(walk(typer.main.get_command(app), ()))


def collect() -> list[Documented]:
    """Return all commands of the pages and of the help texts, in order."""
    found = [
        Documented(text, str(page.relative_to(ROOT)))
        for page in PAGES
        for text in read_page(page.read_text(encoding="utf-8"))
    ]
    helps = {name: command.help or "" for name, command in list_commands().items()}
    helps[""] = typer.main.get_command(app).help or ""
    for name, text in helps.items():
        found += [Documented(c, f"recgrit {name} --help") for c in read_prose(text)]
    return found


def read_page(text: str) -> Iterator[str]:
    r"""Yield the commands of a page in Markdown.

    Example:
        >>> block = "$ recgrit \\\n    datasets  # all of them\n  movielens-100k\n"
        >>> list(read_page(f"Look, or `recgrit run A.yaml`:\n\n```\n{block}```\n"))
        ['recgrit datasets', 'recgrit run A.yaml']
    """
    for fence in FENCE.finditer(text):
        if fence[2] in ("", "bash", "console", "sh"):
            yield from read_block(textwrap.dedent(fence[3]))
    prose = FENCE.sub("", text)
    for block in INDENTED.finditer(prose):
        yield from read_block(textwrap.dedent(block[0]))
    yield from read_prose(prose)


def read_block(text: str) -> Iterator[str]:
    """Yield the commands of a code block."""
    lines = re.sub(r"\\\n\s*", "", text)
    for line in PROMPT.findall(lines) or COMMAND.findall(lines):
        for command in re.split(r" && ", line):
            yield _without_variables(shlex.join(shlex.split(command, comments=True)))


def read_prose(text: str) -> Iterator[str]:
    """Yield the complete commands between backticks."""
    names = {f"recgrit {name}" for name in list_commands()}
    for span in INLINE.findall(text):
        command = _without_variables(" ".join(span.split()))
        words = command.split()
        if not {"...", "…"} & set(words) and command not in names:
            yield command


def _without_variables(command: str) -> str:
    return re.sub(rf"^{VARIABLES}", "", command)
