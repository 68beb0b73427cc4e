"""The ``recgrit`` command: one subcommand per stage, `run` for all, and ways to look at a run.

Results go to standard output, progress and logs to standard error. A mistake the user can mend ends
with one message and exit code 2. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

import recgrit
from recgrit.errors import ArtifactError, ConfigError, RecgritError

if TYPE_CHECKING:
    import polars as pl

    from recgrit.experiment import ExperimentConfig
    from recgrit.runs import Run
    from recgrit.stages import RunResult

app = typer.Typer(
    name="recgrit",
    help="Generative recommendation with GRIT-VQ semantic IDs.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
inspect_app = typer.Typer(help="Look at what a run made.", no_args_is_help=True)
app.add_typer(inspect_app, name="inspect", rich_help_panel="Look")

# Tables and lines keep their shape in files and pipes, where there is no width to fit.
PIPE_WIDTH = 130

output = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
messages = Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH)

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the folder of an earlier run.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override, as retriever.epochs=3."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of output.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Redo stages that are up to date.")]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="A run folder; the newest under runs/ if not given."),
]


@app.callback()
def _setup(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say warnings only.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        output.print(f"recgrit {recgrit.__version__}")
        raise typer.Exit
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(console=messages, show_path=False, show_level=False, markup=False)
    root = logging.getLogger("recgrit")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


@app.command(rich_help_panel="Run")
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run everything: from raw files to item IDs, evaluation and recommendations.

    Example: `recgrit run configs/movielens-100k.yaml retriever.epochs=3 seed=1`
    """
    _run_until("recommend", config, overrides, force, as_json)


@app.command(rich_help_panel="Run")
def prepare(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read, filter and split the raw files."""
    _run_until("prepare", config, overrides, force, as_json)


@app.command(rich_help_panel="Run")
def embed(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn items into feature vectors."""
    _run_until("embed", config, overrides, force, as_json)


@app.command(rich_help_panel="Run")
def tokenize(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit GRIT-VQ codebooks and write the item-ID table."""
    _run_until("tokenize", config, overrides, force, as_json)


@app.command(rich_help_panel="Run")
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the retriever."""
    _run_until("train", config, overrides, force, as_json)


@app.command(rich_help_panel="Run")
def evaluate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Report Recall@K and NDCG@K on validation and test."""
    _run_until("evaluate", config, overrides, force, as_json)


@app.command(rich_help_panel="Look")
def recommend(
    run_directory: RunOption = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", "-u", help="User id; repeat for several.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Items per user.")] = 10,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write Parquet here; all users if no --user.")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Allow items the user already has.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recommend items, with titles and scores.

    Example: `recgrit recommend --run runs/movielens-100k --user 42`
    """
    if not user and out is None:
        raise ConfigError("Name users with --user ID, or a file for all users with --out FILE.")
    opened = _open_run(run_directory)
    found = opened.recommend(user or None, top_k=top_k, exclude_seen=not include_seen)
    if out is not None:
        _write_parquet(found, out)
        messages.print(f"{found.height:,} rows written to {out}")
    else:
        for user_id in user or []:
            rows = found.filter(found["user_id"] == user_id)
            output.print(_recommendation_table(user_id, rows))
    if as_json:
        values: dict[str, Any] = {"run": str(opened.directory), "num_rows": found.height}
        if out is not None:
            values["out"] = str(out)
        else:
            values["recommendations"] = found.to_dicts()
        _print_json(values)


@inspect_app.command("item")
def inspect_item(
    item_id: Annotated[str, typer.Argument(metavar="ITEM_ID")],
    run_directory: RunOption = None,
    neighbours: Annotated[int, typer.Option(help="Neighbours to show.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show an item's title, its semantic ID, and the items that share its prefix."""
    opened = _open_run(run_directory)
    table = opened.semantic_ids
    item_idx = table.item_idx(item_id)
    title = str(table.titles[item_idx])
    near = table.neighbours(item_id, limit=neighbours)
    output.print(f"[bold]{escape(title)}[/]  item {escape(item_id)}")
    output.print(f"semantic ID {table.text_of(item_id)}")
    shown = _rich_table("Items that share its prefix", near)
    output.print(shown if near.height else "No other item shares its first code.")
    if as_json:
        _print_json(
            {
                "item_id": item_id,
                "title": title,
                "semantic_id": table.text_of(item_id),
                "codes": list(table.codes_of(item_id)),
                "neighbours": near.to_dicts(),
            }
        )


@inspect_app.command("run")
def inspect_run(run_directory: RunOption = None, as_json: JsonOption = False) -> None:
    """Show what a run was built from, stage by stage."""
    from recgrit.runs import LAYOUT, stage_directory

    opened = _open_run(run_directory)
    table = Table("stage", "artifact", "built from", "seconds", "created", title=str(opened.directory))
    stages = {}
    for stage, (folder, parents) in LAYOUT.items():
        if not stage_directory(opened.directory, stage).is_dir():
            table.add_row(stage, "–", "", "", "")
            continue
        manifest = opened.manifest(stage)
        origins = [f"{parent} {manifest.parents[parent]}" for parent in parents]
        origins += [Path(name).name for name in manifest.inputs]
        table.add_row(
            stage,
            f"{folder}/ {manifest.fingerprint}",
            "\n".join(origins),
            f"{manifest.seconds:.1f}",
            manifest.created,
        )
        stages[stage] = manifest.model_dump(mode="json")
    output.print(table)
    data = opened.manifest("prepare").summary
    output.print(_funnel_table(data["funnel"]))
    if "tokenize" in stages:
        output.print(_level_table(stages["tokenize"]["summary"]))
    if "evaluate" in stages:
        output.print(_metrics(opened))
    if as_json:
        _print_json({"run": str(opened.directory), "stages": stages})


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
    except KeyboardInterrupt:
        messages.print("Interrupted; finished stages are kept.")
        sys.exit(130)


def _load(config: Path, overrides: list[str] | None) -> ExperimentConfig:
    from recgrit.config import load_config
    from recgrit.experiment import ExperimentConfig
    from recgrit.runs import CONFIG_NAME

    path, given = config, list(overrides or [])
    if config.is_dir():
        path = config / CONFIG_NAME
        given = [f"run.dir={config}", *given]
    return load_config(ExperimentConfig, path, given)


def _run_until(
    stage: str, config_path: Path, overrides: list[str] | None, force: bool, as_json: bool
) -> None:
    config = _load(config_path, overrides)
    from recgrit.stages import run_experiment

    result = run_experiment(config, until=stage, force=force)
    _print_result(result, stage)
    if as_json:
        _print_json(result.to_json())


def _print_result(result: RunResult, stage: str) -> None:
    from recgrit.runs import Run

    opened = Run(result.directory)
    if stage == "prepare":
        output.print(_funnel_table(opened.manifest("prepare").summary["funnel"]))
    if stage == "tokenize":
        output.print(_level_table(opened.manifest("tokenize").summary))
    if result.reports:
        output.print(_metrics(opened))
        agreement = opened.manifest("evaluate").summary.get("beam_agreement")
        if agreement is not None:
            output.print(f"Beam search finds {agreement:.1%} of the exact top 10.")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result.seconds.items() if value)
    output.print(f"Time: {seconds or 'nothing to do, every stage is up to date'}.")
    places = Table("stage", "written to", box=None, pad_edge=False)
    for name, path in result.artifacts.items():
        places.add_row(name, str(path))
    output.print(places)
    if result.tracking:
        output.print(f"MLflow: {result.tracking}", soft_wrap=True)
    if stage == "recommend":
        _print_next_steps(opened)


def _print_next_steps(opened: Run) -> None:
    user = opened.data.interactions.user_ids[0]
    item = opened.semantic_ids.item_ids[0]
    output.print("\nNext:")
    for command in (
        f"recgrit recommend --run {opened.directory} --user {user}",
        f"recgrit inspect item {item} --run {opened.directory}",
        f"recgrit inspect run --run {opened.directory}",
    ):
        output.print(f"  {escape(command)}", soft_wrap=True, highlight=False)


def _open_run(directory: Path | None) -> Run:
    from recgrit.runs import CONFIG_NAME, Run

    if directory is None:
        found = sorted(Path("runs").glob(f"*/{CONFIG_NAME}"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ArtifactError("No run under runs/: name one with --run DIR, or run a config first.")
        directory = found[-1].parent
        messages.print(f"Using the newest run, {directory}.")
    return Run(directory)


def _metrics(opened: Run) -> Table:
    from recgrit.evaluation.table import metrics_table

    names = ("valid", "valid_masked", "test", "test_masked")
    rows = {}
    for model, prefix in (("retriever", ""), ("popularity", "popularity_")):
        for name in names:
            label = name.replace("_", ", ")
            rows[f"{model} · {label}"] = opened.reports[prefix + name]
    table = metrics_table(rows)
    users = opened.reports["test"].per_user.height
    table.title = f"{users:,} users, all items ranked, mean ± half the 95% interval"
    table.caption = "masked: the items of a user's history are kept out of the lists"
    return table


def _funnel_table(funnel: list[dict[str, Any]]) -> Table:
    table = Table("step", "interactions", "users", "items", "dropped", "counted", title="Data")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in funnel:
        table.add_row(*("" if v is None else f"{v:,}" if isinstance(v, int) else v for v in row.values()))
    return table


def _level_table(summary: dict[str, Any]) -> Table:
    found = summary["diagnostics"]
    table = Table(
        "level", "codes", "usage", "perplexity", "dead", "residual norm", title="Semantic IDs"
    )
    for level in found["levels"]:
        table.add_row(
            str(level["level"]),
            str(level["codebook_size"]),
            f"{level['codebook_usage']:.1%}",
            f"{level['perplexity']:.0f}",
            str(level["dead_codes"]),
            f"{level['residual_norm']:.3f}",
        )
    table.caption = (
        f"{summary['num_items']:,} items; {found['collision_rate']:.1%} shared an ID "
        f"(at most {found['largest_bucket']} on one), made unique by {summary['unique_by']}"
        + (f", {summary['num_moved']:,} moved" if summary["num_moved"] else "")
    )
    return table


def _recommendation_table(user_id: str, rows: pl.DataFrame) -> Table:
    table = Table("rank", "item", "title", "semantic ID", "log P", title=f"User {user_id}")
    for row in rows.iter_rows(named=True):
        table.add_row(
            str(row["rank"]),
            escape(row["item_id"]),
            escape(row["title"]),
            row["semantic_id"],
            f"{row['score']:.2f}",
        )
    return table


def _rich_table(title: str, frame: pl.DataFrame) -> Table:
    table = Table(*frame.columns, title=title)
    for row in frame.iter_rows():
        table.add_row(*(escape(str(value)) for value in row))
    return table


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"Cannot write {path}: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _print_json(values: dict[str, Any]) -> None:
    # Not through rich: one line, whatever the width of the terminal.
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
