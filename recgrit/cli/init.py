"""The `init` command, which writes a first configuration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.prompt import Prompt

from recgrit.cli.app import JsonOption, app, print_json
from recgrit.display import output
from recgrit.errors import ConfigError
from recgrit.progress import life, messages
from recgrit.proposal.questions import Ask, Question, refuse, take_default


@app.command(rich_help_panel="Run")
def init(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME] [KEY=VALUE]",
            help="Name of a published data set, or settings that you know for your files, such as "
            "data.table.user_id=customer.",
        ),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your interactions: a file, a folder or a pattern."),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your item table, if you have one."),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Your table of users, such as their plan and country, if any."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file to write. If not given: shop.yaml or NAME.yaml."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", metavar="", help="Use the likely answers and never ask.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Replace an existing YAML file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a YAML configuration to start with, for your files or for a published data set.

    For your files, it finds the columns, proposes filters and model sizes, and warns about data
    that look like a mistake.

    Example: `recgrit init --events events.csv --items items.csv --out shop.yaml`

    A published data set: `recgrit init movielens-100k`
    """
    names = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(names) + (events is not None) != 1 or (names and (overrides or items or users)):
        raise ConfigError(
            "Name one published data set ('recgrit init movielens-100k'), or your files "
            "('recgrit init --events events.csv --items items.csv')."
        )
    place = out or Path(f"{names[0].replace('/', '-')}.yaml" if names else "shop.yaml")
    if place.exists() and not force:
        raise ConfigError(f"{place} already exists: name another file with --out, or add --force.")
    warnings: tuple[str, ...] = ()
    if events is None:
        from recgrit.proposal.published import copy_config

        text = copy_config(names[0], place)
    else:
        from recgrit.proposal.shop import look_at
        from recgrit.proposal.writing import write_shop_config

        facts = look_at(events, items, users, overrides=overrides, ask=_choose_ask(yes=yes))
        text, warnings = write_shop_config(facts, place), facts.warnings
    _write(place, text)
    for warning in warnings:
        messages.print(f"Check: {escape(warning)}", soft_wrap=True)
    command = f"recgrit run {shlex.quote(str(place))}"
    output.print(f"{escape(str(place))}\n\nNext:\n  {escape(command)}")
    if as_json:
        print_json({"out": str(place), "warnings": list(warnings), "next": command})


def _choose_ask(*, yes: bool) -> Ask:
    """Return the function that answers questions about the files.

    With ``yes`` it takes the defaults. Otherwise it asks on a terminal. Elsewhere it raises an
    error for each question that must be answered.
    """
    if yes:
        return take_default
    return _ask if sys.stdin.isatty() and messages.is_terminal else refuse


def _ask(question: Question) -> str:
    try:
        with life.paused():
            answer = Prompt.ask(
                f"{escape(question.text)} ({question.setting})",
                choices=list(question.options),
                default=question.default if question.default is not None else ...,
                console=messages,
            )
    except EOFError:
        raise typer.Abort from None
    return str(answer)


def _write(path: Path, text: str) -> None:
    from recgrit.disk import write_atomic

    try:
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error.strerror}. Name another with --out."
        ) from None
