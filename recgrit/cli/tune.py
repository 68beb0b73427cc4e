"""The `tune` command, which searches for better settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from recgrit.cli.app import JsonOption, app, print_json
from recgrit.cli.stages import ConfigArgument, OverridesArgument, load_experiment
from recgrit.display import output
from recgrit.errors import ConfigError, MissingExtraError
from recgrit.progress import messages

UNITS = {"h": 3600, "m": 60, "s": 1}


@app.command(rich_help_panel="Run")
def tune(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    trials: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Total number of trials. The first trial uses the settings as configured.",
        ),
    ] = 20,
    budget: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time for all trials, such as 2h, 30m, 90s or 1h30m."),
    ] = "2h",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the trials. If not given: RUN-tune."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Vary only this setting. Repeat the option for several settings."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search for better settings on the validation split, and write the best as a YAML file.

    If the command is stopped, the same command resumes. A larger budget or more trials add to the
    earlier trials.

    Example: `recgrit tune configs/movielens-100k.yaml --trials 20 --budget 2h`
    """
    seconds = read_duration(budget)
    settings = load_experiment(config, overrides)
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError(
            "recgrit tune needs Optuna: pip install 'recgrit[tune]', or -e '.[tune]' in a checkout."
        ) from None
    from recgrit.tuning.study import TRIALS_NAME, show_duration
    from recgrit.tuning.study import tune as run_trials

    run = settings.run.dir
    place = out if out is not None else run.with_name(f"{run.name}-tune")
    try:
        result = run_trials(settings, place, num_trials=trials, budget=seconds, vary=vary or ())
    except KeyboardInterrupt:
        messages.print("Interrupted: the same command resumes the search.")
        raise typer.Exit(130) from None
    counts = ", ".join(f"{num} {state}" for state, num in result.states.items() if num)
    output.print(f"Trials: {counts}, in {show_duration(result.seconds)}.")
    if result.is_over:
        output.print(f"The budget of {budget} is used up. To resume, raise --budget.")
    output.print(f"Validation NDCG@10 as configured: {result.given:.4f}")
    better = f"{result.best:.4f}, of trial {result.best_number}"
    output.print(
        f"Validation NDCG@10 of the best:   {better}"
        if result.best_number > 1
        else "No trial was better: the winner is the given configuration."
    )
    first = result.folder / TRIALS_NAME / "01"
    best = result.folder / TRIALS_NAME / f"{result.best_number:02}"
    commands = [f"recgrit run {shlex.quote(str(result.winner))}"]
    if result.best_number > 1:
        commands += [
            f"recgrit run {shlex.quote(str(first))}",
            f"recgrit compare {shlex.quote(str(first))} {shlex.quote(str(best))}",
        ]
    output.print("\nNext, measure the winner on test:")
    for command in commands:
        output.print(f"  {escape(command)}", soft_wrap=True, highlight=False)
    if as_json:
        print_json(
            {
                "winner": str(result.winner),
                "as_configured": result.given,
                "best": result.best,
                "best_trial": result.best_number,
                "trials": result.states,
                "seconds": result.seconds,
                "budget_spent": result.is_over,
            }
        )


def read_duration(text: str) -> float:
    """Return the seconds of a duration such as ``1h30m``.

    Raises:
        ConfigError: The text is no duration, or zero.

    >>> read_duration("2h"), read_duration("1h30m"), read_duration("90s")
    (7200.0, 5400.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", text.strip().lower())
    parts = found.groups() if found else ()
    seconds = sum(
        int(part) * unit for part, unit in zip(parts, UNITS.values(), strict=False) if part
    )
    if not seconds:
        raise ConfigError(
            f"--budget is a time such as 2h, 30m, 90s or 1h30m, got {text!r:.40}. A number alone "
            "could be seconds or hours."
        )
    return float(seconds)
