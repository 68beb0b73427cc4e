"""Commands that hand on what a run made, and take back what others made of it: export, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import output
from recgrit.errors import ConfigError, DataError


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
    from recgrit.artifacts import explain_write_failure
    from recgrit.export import export_index, export_recbole

    opened = open_run(run_directory)
    try:
        if kind == "recbole":
            paths = export_recbole(opened.data, out, name)
        else:
            paths = export_index(opened.data, opened.semantic_ids, out, name)
    except OSError as error:
        reason = explain_write_failure(error) or error.strerror
        raise ConfigError(f"Cannot write to {out}: {reason}. Choose another --out.") from None
    for path in paths:
        output.print(str(path), soft_wrap=True, highlight=False)
    if as_json:
        print_json({"run": str(opened.directory), "files": [str(path) for path in paths]})


@app.command(rich_help_panel="Use")
def score(
    lists: Annotated[
        Path,
        typer.Argument(
            metavar="LISTS", help="Parquet, CSV or TSV with user_id, item_id and rank or score."
        ),
    ],
    run_directory: RunOption = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="Which targets.")] = "test",
    masked: Annotated[
        bool, typer.Option("--masked", help="The lists leave out what the histories hold.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the report in this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate lists that another tool made, on the targets of a run and by its protocol.

    Example: `recgrit score recbole-top20.csv --run runs/movielens-100k`
    """
    from recgrit.artifacts import write_artifact
    from recgrit.evaluation.lists import read_lists
    from recgrit.evaluation.report import evaluate_recommendations
    from recgrit.evaluation.table import metrics_table

    opened = open_run(run_directory)
    data, settings = opened.data, opened.config.evaluation
    ids = data.interactions
    found = read_lists(lists, data.split, split, ids.user_ids, ids.item_ids)
    ks = [k for k in settings.ks if k <= found.top_k]
    if not ks:
        raise DataError(
            f"{lists} has lists of {found.top_k} items at most, and the shortest that is evaluated "
            f"is {min(settings.ks)}. Bring longer lists."
        )
    report = evaluate_recommendations(
        found,
        data.split,
        split,
        masked=masked,
        beam_width="exact",
        seed=opened.config.seed,
        ks=ks,
        num_bootstrap=settings.num_bootstrap,
    )
    num_targets = report.protocol["num_targets"]
    output.print(f"{found.num_users:,} lists for {num_targets:,} {split} targets")
    output.print(metrics_table({lists.stem: report}))
    if out is not None:
        parents = {"prepare": opened.manifest("prepare").fingerprint}
        with write_artifact(out, "score", {"lists": lists.name}, parents) as writer:
            report.save(writer.path)
    if as_json:
        bounds = {name: list(bound) for name, bound in report.intervals().items()}
        print_json(
            {
                "run": str(opened.directory),
                "split": split,
                "metrics": report.metrics(),
                "intervals": bounds,
                "num_lists": found.num_users,
                "num_targets": num_targets,
            }
        )
