"""Test `--help`, shell completion, and the messages for mistyped commands."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from recgrit.cli import app

Command = Callable[..., Any]
# Completion looks the command up by its name, so the entry point is called under this name.
ENTRY = "import sys; sys.argv[0] = 'recgrit'; from recgrit.cli import main; main()"
COLOURS = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-7]|9[0-7]|38;\S*)m")


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_fits_80_columns(
    path: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = command(*path, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    # Each help text has an example of the command, and its mark-up is rendered.
    assert re.search(rf": recgrit {' '.join(path)} \S", done.out), done.out
    assert "`" not in done.out
    assert "[/]" not in done.out
    assert "…" not in done.out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_option_is_explained_and_results_can_be_read_by_machines(
    path: tuple[str, ...],
) -> None:
    parameters = COMMANDS[path].params
    assert all(parameter.help for parameter in parameters)
    assert "--json" in [name for parameter in parameters for name in parameter.opts]


def test_the_overview_is_grouped(command: Command) -> None:
    shown = command("--help").out
    places = [shown.index(f"─ {title} ─") for title in ("Run", "Look", "Use")]
    assert places == sorted(places)
    assert "Start: recgrit run configs/" in shown
    groups = [shown[a:b] for a, b in zip(places, [*places[1:], None], strict=True)]
    for group, name in zip(groups, ("train", "report", "recommend"), strict=True):
        assert re.search(rf"^│ {name} ", group, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("recomend",), "Did you mean 'recommend'"),
        (("inspect", "itm"), "Did you mean 'item'"),
        (("run", "x.yaml", "--jsn"), "--json"),
        (("run",), "Missing argument 'CONFIG'"),
        (("recommend", "--top-k", "few"), "'--top-k'"),
    ],
)
def test_a_usage_error_ends_in_one_panel_that_refers_to_the_help(
    arguments: tuple[str, ...], expected: str, command: Command
) -> None:
    done = command(*arguments)
    told = done.error_message()
    assert expected in told
    assert "--help' shows what can be typed here." in told
    assert done.out == ""
    assert done.err.lstrip().startswith("╭"), "nothing stands before the panel"


def test_a_group_without_a_command_shows_its_help(command: Command) -> None:
    done = command("inspect")
    assert done.code == 2
    assert re.search(r"^│ item ", done.out + done.err, re.MULTILINE)
    assert "cannot continue" not in done.err


def test_the_shell_completes_commands_and_options() -> None:
    def complete(typed: str) -> list[str]:
        asked = {
            "_RECGRIT_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", ENTRY],
            env=os.environ | asked,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    assert complete("recgrit exp") == ["export"]
    assert complete("recgrit inspect ") == ["item", "run"]
    assert "--include-seen" in complete("recgrit recommend --i")


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_turns_colours_off(no_color: str, coloured: bool) -> None:
    reader, terminal = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "recomend"],
        env=os.environ | {"NO_COLOR": no_color, "TERM": "xterm-256color", "COLUMNS": "80"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:
            # Linux raises this error when no process has the terminal open for writing.
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert started.wait() == 2
    assert b"Did you mean" in shown
    assert bool(COLOURS.search(shown.decode())) == coloured
