"""The ``recgrit`` command: one subcommand per stage, `run` for all, and ways to look at a run.

Results go to standard output, progress and logs to standard error. A mistake the user can mend ends
with one message and exit code 2. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.panel import Panel

import recgrit
from recgrit.display import (
    build_table,
    funnel_table,
    output,
    print_history,
    print_metrics,
    print_retriever,
    print_tokenizer,
    recommendation_table,
    relatives_table,
)
from recgrit.errors import ArtifactError, ConfigError, RecgritError
from recgrit.progress import messages

if TYPE_CHECKING:
    import polars as pl

    from recgrit.experiment import ExperimentConfig
    from recgrit.running import RunResult
    from recgrit.runs import Run

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

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the folder of an earlier run.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings to override, as retriever.epochs=3."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of output.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Redo stages that are up to date.")]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="A run folder; the newest under runs/ if not given."),
]


def _show_version(asked: bool) -> None:
    if asked:
        output.print(f"recgrit {recgrit.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _setup(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say warnings only.")] = False,
    # Eager: answered before a missing command is complained about.
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    root = logging.getLogger("recgrit")
    root.handlers = [_build_log_handler()]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    root.propagate = False


class _LogFormatter(logging.Formatter):
    """The message, marked where it is more than a note."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        if record.levelno >= logging.WARNING:
            record.message = f"warning: {record.message}"
        return super().formatMessage(record)


def _build_log_handler() -> logging.Handler:
    """Wrapped with a hanging indent on a terminal; one line a message in files and pipes."""
    handler: logging.Handler
    if messages.is_terminal:
        handler = RichHandler(
            console=messages, show_path=False, show_level=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(_LogFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


# The commands that run stages differ in nothing but name and help.
STAGE_HELP = {
    "run": """Run everything: from raw files to item IDs, evaluation and recommendations.

    Example: `recgrit run configs/movielens-100k.yaml retriever.epochs=3 seed=1`
    """,
    "prepare": "Read, filter and split the raw files.",
    "embed": "Turn items into feature vectors.",
    "tokenize": "Fit GRIT-VQ codebooks and write the item-ID table.",
    "train": "Train the retriever.",
    "evaluate": """Report Recall@K and NDCG@K on validation and test.

    A retriever that was trained on another ID table than the run has now is refused, not trained
    again: that takes `train`, `run` or `--force`.
    """,
}


def _add_stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigArgument,
        overrides: OverridesArgument = None,
        force: ForceOption = False,
        as_json: JsonOption = False,
    ) -> None:
        _run_until("recommend" if name == "run" else name, config, overrides, force, as_json)

    app.command(name, help=text, rich_help_panel="Run")(command)


for _name, _text in STAGE_HELP.items():
    _add_stage_command(_name, _text)


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
    allow: Annotated[
        Path | None, typer.Option(help="Text file of the only items to list, one id a line.")
    ] = None,
    block: Annotated[
        Path | None, typer.Option(help="Text file of items never to list, one id a line.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend items, with titles and scores.

    Example: `recgrit recommend --run runs/movielens-100k --user 42`
    """
    if not user and out is None:
        raise ConfigError("Name users with --user ID, or a file for all users with --out FILE.")
    if out is not None and out.is_dir():
        raise ArtifactError(f"{out} is a folder: name a file, such as {out / 'lists.parquet'}.")
    from recgrit.data.items import read_item_list

    opened = _open_run(run_directory)
    # A user named twice is meant once.
    users = list(dict.fromkeys(user)) if user else None
    found = opened.recommend(
        users,
        top_k=top_k,
        exclude_seen=not include_seen,
        allowed_items=read_item_list(allow) if allow else None,
        blocked_items=read_item_list(block) if block else (),
    )
    if out is not None:
        _write_parquet(found, out)
        messages.print(f"{found.height:,} rows written to {escape(str(out))}", soft_wrap=True)
    else:
        for user_id in users or []:
            rows = found.filter(found["user_id"] == user_id)
            output.print(recommendation_table(user_id, rows))
            print_history(opened.history(user_id))
            if rows.height < top_k:
                messages.print(
                    f"User {escape(user_id)} can be recommended {rows.height} items only."
                )
    if as_json:
        values: dict[str, Any] = {"run": str(opened.directory), "num_rows": found.height}
        if out is not None:
            values["out"] = str(out)
        else:
            values["recommendations"] = found.to_dicts()
        _print_json(values)


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

    opened = _open_run(run_directory)
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
        _print_json({"run": str(opened.directory), "files": [str(path) for path in paths]})


@app.command(rich_help_panel="Look")
def datasets(as_json: JsonOption = False) -> None:
    """List the published data sets that can be read, their terms, and what that was verified on."""
    from recgrit.data.releases import RELEASES

    table = build_table(
        "data.source",
        "users",
        "items",
        "interactions",
        "MB",
        "verified on",
        numbers=("users", "items", "interactions", "MB"),
    )
    table.columns[0].no_wrap = True
    for release in RELEASES:
        size = "–" if release.megabytes is None else f"{release.megabytes:g}"
        counts = (release.users, release.items, release.interactions)
        table.add_row(escape(release.source), *counts, size, release.verified)
    output.print(table)
    output.print("Fetched where data.path is not set. Terms:")
    terms = {release.terms: release.family.partition("-")[0] for release in RELEASES}
    for text, family in terms.items():
        output.print(f"  {family}: {text}")
    output.print("Your own files: data.source=table or data.source=recbole, with data.path.")
    if as_json:
        _print_json({"datasets": [asdict(release) for release in RELEASES]})


@inspect_app.command("item")
def inspect_item(
    item_id: Annotated[str, typer.Argument(metavar="ITEM_ID")],
    run_directory: RunOption = None,
    relatives: Annotated[int, typer.Option(help="Items to show.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show an item's title, its semantic ID, and the items that share its prefix."""
    opened = _open_run(run_directory)
    table = opened.semantic_ids
    item_idx = table.item_idx(item_id)
    title = str(table.titles[item_idx])
    near = table.relatives(item_id, limit=relatives)
    output.print(f"[bold]{escape(title)}[/]  item {escape(item_id)}")
    output.print(f"semantic ID {table.text_of(item_id)}")
    if near.height:
        output.print(relatives_table(near))
    elif relatives:
        output.print("No other item shares its first code.")
    if as_json:
        _print_json(
            {
                "item_id": item_id,
                "title": title,
                "semantic_id": table.text_of(item_id),
                "codes": list(table.codes_of(item_id)),
                "relatives": near.to_dicts(),
            }
        )


@inspect_app.command("run")
def inspect_run(run_directory: RunOption = None, as_json: JsonOption = False) -> None:
    """Show what a run was built from, stage by stage."""
    from recgrit.artifacts import read_manifest
    from recgrit.runs import LAYOUT, stage_directory

    opened = _open_run(run_directory)
    table = build_table("stage", "folder", "fingerprint", "built from", "seconds", "created (UTC)")
    for column in table.columns[:3]:
        column.no_wrap = True
    table.title = escape(str(opened.directory))
    stages: dict[str, Any] = {}
    unfit: set[str] = set()
    for stage, (folder, parents) in LAYOUT.items():
        directory = stage_directory(opened.directory, stage)
        if not directory.is_dir():
            table.add_row(stage, "–", "", "", "", "")
            continue
        manifest = read_manifest(directory)
        stages[stage] = manifest.model_dump(mode="json")
        # Shown rather than refused: this is where one looks for what does not fit together.
        stale = [p for p in parents if stages.get(p, {}).get("fingerprint") != manifest.parents[p]]
        if stale:
            unfit.add(stage)
        origins = [f"[red]another {p}[/]" if p in stale else p for p in parents]
        origins += [escape(Path(name).name) for name in manifest.inputs]
        table.add_row(
            stage,
            folder,
            manifest.fingerprint,
            ", ".join(origins),
            f"{manifest.seconds:.1f}",
            manifest.created[:16].replace("T", " "),
        )
    output.print(table)
    output.print(funnel_table(stages["prepare"]["summary"]["funnel"]))
    if "tokenize" in stages:
        print_tokenizer(stages["tokenize"]["summary"])
    if "train" in stages:
        print_retriever(stages["train"]["summary"])
    if "evaluate" in stages and "evaluate" not in unfit:
        print_metrics(opened)
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


def _load(config: Path, overrides: list[str] | None) -> ExperimentConfig:
    from recgrit.config import load_config
    from recgrit.experiment import ExperimentConfig
    from recgrit.runs import CONFIG_NAME

    path, given = config, list(overrides or [])
    if config.is_dir():
        path = config / CONFIG_NAME
        given = [f"run.dir={json.dumps(str(config))}", *given]
    return load_config(ExperimentConfig, path, given)


def _run_until(
    stage: str, config_path: Path, overrides: list[str] | None, force: bool, as_json: bool
) -> None:
    config = _load(config_path, overrides)
    from recgrit.running import require_own_checkpoint, run_experiment

    if stage == "evaluate" and not force:
        require_own_checkpoint(config)
    try:
        result = run_experiment(config, until=stage, force=force)
    except KeyboardInterrupt:
        messages.print(
            "Interrupted: finished stages are kept, the same command goes on from there."
        )
        raise typer.Exit(130) from None
    _print_result(result, stage)
    if as_json:
        _print_json(result.to_json())


def _print_result(result: RunResult, stage: str) -> None:
    from recgrit.running import peak_memory_mb
    from recgrit.runs import Run

    opened = Run(result.directory)
    if stage == "prepare":
        output.print(funnel_table(opened.manifest("prepare").summary["funnel"]))
    if stage == "tokenize":
        print_tokenizer(opened.manifest("tokenize").summary)
    if stage == "train":
        print_retriever(opened.manifest("train").summary)
    if result.reports:
        print_metrics(opened)
        agreement = opened.manifest("evaluate").summary.get("beam_agreement")
        if agreement is not None:
            output.print(f"Beam search finds {agreement:.1%} of the exact top 10.")
    written = build_table("stage", "seconds", "written to")
    for name, path in result.artifacts.items():
        seconds = "up to date" if name in result.up_to_date else f"{result.seconds[name]:.1f}"
        written.add_row(name, seconds, escape(str(path)))
    output.print(written)
    total = sum(result.seconds.values())
    if len(result.up_to_date) == len(result.artifacts):
        output.print("Every stage is up to date; --force redoes them.")
    else:
        output.print(f"{total:.1f} s in all, {peak_memory_mb():,.0f} MiB of memory at most.")
        output.print(f"MLflow: {escape(result.tracking)}", soft_wrap=True, highlight=False)
    if stage == "recommend":
        _print_next_steps(opened)


def _print_next_steps(opened: Run) -> None:
    user = opened.data.interactions.user_ids[0]
    item = opened.semantic_ids.item_ids[0]
    place = shlex.quote(str(opened.directory))
    program = _program()
    output.print("\nNext:")
    for command in (
        f"{program} recommend --run {place} --user {shlex.quote(user)}",
        f"{program} inspect item {shlex.quote(item)} --run {place}",
        f"{program} inspect run --run {place}",
    ):
        output.print(f"  {escape(command)}", soft_wrap=True, highlight=False)


def _program() -> str:
    """How to type this command here: without an activated environment its name is not enough."""
    if shutil.which("recgrit"):
        return "recgrit"
    if Path(sys.argv[0]).name == "recgrit":
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m recgrit"


def _open_run(directory: Path | None) -> Run:
    from recgrit.runs import CONFIG_NAME, Run

    if directory is None:
        found = sorted(Path("runs").glob(f"*/{CONFIG_NAME}"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise ArtifactError(
                "No run under runs/: name one with --run DIR, or run a config first."
            )
        directory = found[-1].parent
        messages.print(f"Using the newest run, {escape(str(directory))}.", soft_wrap=True)
    return Run(directory)


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    import polars as pl

    from recgrit.artifacts import explain_write_failure

    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(temporary)
        temporary.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = explain_write_failure(error) or error
        raise ArtifactError(f"Cannot write {path}: {reason}.") from None
    finally:
        with contextlib.suppress(OSError):  # Such as a file where a folder was named.
            temporary.unlink()


def _print_json(values: dict[str, Any]) -> None:
    # Not through rich: one line, whatever the width of the terminal.
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
