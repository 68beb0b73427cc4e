"""Commands that run stages: one command per stage, and `run` for all stages."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, app, print_json
from recgrit.display import (
    build_table,
    funnel_table,
    output,
    print_folds,
    print_metrics,
    print_model,
    print_tokenizer,
)
from recgrit.progress import messages

if TYPE_CHECKING:
    from recgrit.experiment import ExperimentConfig
    from recgrit.pipeline import RunResult
    from recgrit.runs import Run

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, or folder of an earlier run.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings to override, such as retriever.epochs=3."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", metavar="", help="Run stages again that are up to date.")
]

# Help texts of the commands that run stages. These commands differ only in name and help.
STAGE_HELP = {
    "run": """Run all stages, from raw files to item IDs, evaluation and recommendations.

    Example: `recgrit run configs/movielens-100k.yaml retriever.epochs=3 seed=1`

    Another model: `recgrit run configs/movielens-100k.yaml model.kind=sasrec run.dir=runs/sasrec`
    """,
    "prepare": """Read, filter and split the raw files.

    Example: `recgrit prepare configs/movielens-100k.yaml data.min_user_interactions=10`
    """,
    "embed": """Compute feature vectors of the items.

    Example: `recgrit embed configs/movielens-100k.yaml embedding.encoder=lsa`
    """,
    "tokenize": """Fit GRIT-VQ codebooks and write the item-ID table.

    Example: `recgrit tokenize configs/movielens-100k.yaml tokenizer.codebook_size=64`
    """,
    "train": """Train the model that `model.kind` names.

    Example: `recgrit train runs/movielens-100k retriever.epochs=30`
    """,
    "evaluate": """Report Recall@K and NDCG@K on validation and test.

    If the model was trained on another ID table than the run has now, the command ends with an
    error. Use `train`, `run` or `--force` to train it again.

    Example: `recgrit evaluate runs/movielens-100k evaluation.beam_width=100 --json`
    """,
}


def _add_stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigArgument,
        overrides: OverridesArgument = None,
        force: ForceOption = False,
        as_json: JsonOption = False,
    ) -> None:
        settings = load_experiment(config, overrides)
        from recgrit.pipeline import require_own_checkpoint, run_experiment
        from recgrit.tracking.termination import Terminated

        if name == "evaluate" and not force:
            require_own_checkpoint(settings)
        last = "recommend" if name == "run" else name
        try:
            result = run_experiment(settings, until=last, force=force)
        except KeyboardInterrupt:
            messages.print(
                "Interrupted: finished stages are kept; the same command resumes the run."
            )
            raise typer.Exit(130) from None
        except Terminated:
            messages.print(
                "Terminated: finished stages are kept; the same command resumes the run."
            )
            raise
        if not result.is_leader:
            return
        _print_result(result, last)
        if as_json:
            print_json(result.to_json())

    app.command(name, help=text, rich_help_panel="Run")(command)


for _name, _text in STAGE_HELP.items():
    _add_stage_command(_name, _text)


def load_experiment(config: Path, overrides: list[str] | None) -> ExperimentConfig:
    """Load the settings of a YAML file or of a run folder, with overrides from the command line."""
    from recgrit.config import load_config
    from recgrit.experiment import CONFIG_NAME, ExperimentConfig

    path, given = config, list(overrides or [])
    if config.is_dir():
        path = config / CONFIG_NAME
        given = [f"run.dir={json.dumps(str(config))}", *given]
    return load_config(ExperimentConfig, path, given)


def _print_result(result: RunResult, stage: str) -> None:
    from recgrit.pipeline import peak_memory_mb
    from recgrit.runs import Run

    opened = Run(result.directory)
    if stage == "prepare":
        output.print(funnel_table(opened.manifest("prepare").summary["funnel"]))
    if stage == "tokenize":
        print_tokenizer(opened.manifest("tokenize").summary)
    if stage == "train":
        print_model(opened.manifest("train").summary)
    if result.reports:
        print_metrics(opened)
        agreement = opened.manifest("evaluate").summary.get("beam_agreement")
        if result.folds is not None:
            print_folds(result.folds)
        if agreement is not None:
            output.print(
                "Beam search follows only the most likely prefixes of IDs. It finds "
                f"{agreement:.1%} of the exact top 10, which comes from scoring every item."
            )
    written = build_table("stage", "seconds", "written to")
    for name, path in result.artifacts.items():
        seconds = "up to date" if name in result.up_to_date else f"{result.seconds[name]:.1f}"
        written.add_row(name, seconds, escape(str(path)))
    output.print(written)
    total = sum(result.seconds.values())
    if len(result.up_to_date) == len(result.artifacts):
        output.print("Every stage is up to date; --force redoes them.")
    else:
        output.print(f"{total:.1f} s in total, {peak_memory_mb():,.0f} MiB of memory at most.")
    if result.tracking:
        output.print(f"MLflow: {escape(result.tracking)}", soft_wrap=True)
    if result.model_uri:
        output.print(f"Registered model: {escape(result.model_uri)}", soft_wrap=True)
    if stage == "recommend":
        _print_next_steps(opened)


def _print_next_steps(opened: Run) -> None:
    user = opened.data.interactions.user_ids[0]
    item = opened.data.items.item_ids[0]
    place = shlex.quote(str(opened.directory))
    program, has_ids = _program(), "tokenize" in opened.stages()
    output.print("\nNext:")
    for command in (
        f"{program} report {place} --open",
        f"{program} recommend --run {place} --user {shlex.quote(user)}",
        *([f"{program} inspect item {shlex.quote(item)} --run {place}"] if has_ids else []),
        f"{program} inspect run --run {place}",
    ):
        output.print(f"  {escape(command)}", soft_wrap=True)


def _program() -> str:
    """Return the text by which the user can call recgrit in this environment.

    Without an activated environment, the name ``recgrit`` alone is not found.
    """
    if shutil.which("recgrit"):
        return "recgrit"
    if Path(sys.argv[0]).name == "recgrit":
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m recgrit"
