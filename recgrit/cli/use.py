"""Commands that hand on what a run made: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import output
from recgrit.errors import ConfigError


@app.command(rich_help_panel="Use")
def export(
    kind: Annotated[
        Literal["recbole", "index"],
        typer.Argument(help="recbole: atomic files. index: IDs, sequences and titles as JSON."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    run_directory: RunOption = None,
    name: Annotated[str, typer.Option(help="What the files are called.")] = "recgrit",
    as_json: JsonOption = False,
) -> None:
    """Write a run's data and IDs for other tools, which then see the same split."""
    from recgrit.export import export_index, export_recbole

    opened = open_run(run_directory)
    try:
        if kind == "recbole":
            paths = export_recbole(opened.data, out, name)
        else:
            paths = export_index(opened.data, opened.semantic_ids, out, name)
    except OSError as error:
        raise ConfigError(
            f"Cannot write to {out}: {error.strerror}. Choose another --out."
        ) from None
    for path in paths:
        output.print(str(path), soft_wrap=True, highlight=False)
    if as_json:
        print_json({"run": str(opened.directory), "files": [str(path) for path in paths]})
