"""The best configuration of a tuning as YAML, with explanations as comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from recgrit.config import SettingsLoader, validate
from recgrit.experiment import ExperimentConfig
from recgrit.progress import show_control
from recgrit.tuning.space import Varied

COMMENT_COLUMN = 34


def describe_winner(
    config: ExperimentConfig,
    space: Sequence[Varied],
    *,
    place: Path,
    given: float,
    best: float,
    number: int,
    states: Mapping[str, int],
    spent: str,
) -> str:
    """Return the settings of the best trial as commented YAML that 'recgrit run' accepts.

    Args:
        config: Settings of the best trial.
        space: Settings that trials differed in.
        place: Path that the file will have.
        given: Validation NDCG@10 of the first trial, which has the configured settings.
        best: Validation NDCG@10 of the best trial.
        number: Number of the best trial, from 1.
        states: Number of trials that are complete, pruned and failed, by these names.
        spent: Time that all trials took, as text.
    """
    counts = ", ".join(f"{num} {state}" for state, num in states.items() if num)
    share = f" ({best / given - 1:+.1%})" if given else ""
    heading = [
        f"Trial {number} of 'recgrit tune', the best of {sum(states.values())} ({counts}) in "
        f"{spent}, seed {config.seed}.",
        "",
        f"  recgrit run {place}",
        "",
        "The run folder below has its trained model: that command evaluates it on test, which no "
        "trial has read.",
        f"Validation NDCG@10, nothing masked: {best:.4f}; as configured, trial 1: "
        f"{given:.4f}{share}.",
        "It is the highest of many, so the gain on test is likely smaller than on validation.",
        "Trials differed in the settings with a comment.",
    ]
    lines = [f"# {show_control(line)}".rstrip() for line in heading]
    comments = {varied.name: _explain(varied) for varied in space}
    section: list[str] = []
    for line in _dump(config, space).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        key = line.strip().partition(":")[0]
        if line.lstrip().startswith("-"):
            lines.append(line)
            continue
        section = [*section[:depth], key]
        comment = comments.get(".".join(section))
        if depth == 0:
            lines.append("")
        lines.append(f"{line:<{COMMENT_COLUMN - 2}}# {comment}" if comment else line)
    text = "\n".join(lines) + "\n"
    validate(ExperimentConfig, yaml.load(text, SettingsLoader), "the winner")
    return text


def _dump(config: ExperimentConfig, space: Sequence[Varied]) -> str:
    """Return the configured and the varied settings as YAML, with each list on one line."""
    values = {"seed": config.seed, **config.to_values(only_given=True)}
    whole = config.to_values()
    for varied in space:
        *sections, last = varied.name.split(".")
        inner, found = values, whole
        for section in sections:
            inner, found = inner.setdefault(section, {}), found[section]
        inner.setdefault(last, found[last])
    return yaml.dump(values, Dumper=_OneLineLists, sort_keys=False, allow_unicode=True, width=1000)


class _OneLineLists(yaml.SafeDumper):
    """A YAML writer that writes lists as ``[5, 10]``, so that a comment can follow on the line."""


_OneLineLists.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)


def _explain(varied: Varied) -> str:
    given = str(varied.given) or "none"
    return show_control(f"configured {given}; tried {varied.describe()}")
