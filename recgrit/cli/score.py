"""The `score` command, which evaluates lists of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from recgrit.cli.app import JsonOption, RunOption, app, open_run, print_json
from recgrit.display import metrics_tables, output
from recgrit.errors import DataError


@app.command(rich_help_panel="Use")
def score(
    lists: Annotated[
        Path,
        typer.Argument(
            metavar="LISTS",
            help="Parquet, CSV or TSV file with user_id, item_id, and rank or score.",
        ),
    ],
    run_directory: RunOption = None,
    split: Annotated[
        Literal["valid", "test"], typer.Option(help="Split whose targets are used.")
    ] = "test",
    masked: Annotated[
        bool,
        typer.Option(
            "--masked", metavar="", help="State that the lists have seen items filtered out."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder to save the report in."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate lists from another tool on the targets of a run, with the run's protocol.

    Example: `recgrit score recbole-top20.csv --run runs/movielens-100k`
    """
    from recgrit.artifacts import write_artifact
    from recgrit.checksums import digest_file
    from recgrit.evaluation.foreign_lists import read_lists
    from recgrit.evaluation.report import describe_ties, evaluate_recommendations
    from recgrit.manifests import Origin

    opened = open_run(run_directory)
    data, settings = opened.data, opened.config.evaluation
    ids = data.interactions
    found = read_lists(lists, data.split, split, ids.user_ids, ids.item_ids)
    ks = [k for k in settings.ks if k <= found.top_k]
    if not ks:
        raise DataError(
            f"{lists} has lists of at most {found.top_k} items, but the smallest of "
            f"evaluation.ks is {min(settings.ks)}. Provide longer lists."
        )
    report = evaluate_recommendations(
        found,
        data.split,
        split,
        masked=masked,
        search=f"lists from {lists.name}",
        ties=describe_ties(opened.config.data),
        seed=opened.config.seed,
        ks=ks,
        num_bootstrap=settings.num_bootstrap,
    )
    num_targets = report.protocol["num_targets"]
    output.print(f"{found.num_users:,} lists for {num_targets:,} {split} targets")
    for table in metrics_tables({lists.stem: report}, output.width):
        output.print(table)
    if out is not None:
        parents = {"prepare": opened.manifest("prepare").fingerprint}
        inputs = {str(lists): digest_file(lists)}
        origin = Origin("score", 1, {"split": split, "masked": masked}, parents, inputs)
        with write_artifact(out, origin, elsewhere="--out") as writer:
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
