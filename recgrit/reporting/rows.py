"""The rows of a comparison: runs that differ in their seed alone are one, and so are baselines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recgrit.evaluation.report import EvaluationReport, ReportKey
from recgrit.experiment import flat_settings
from recgrit.layout import baseline_stage
from recgrit.runs import Run

# What says how a run is measured, not what its lists are.
MEASURING = {f"evaluation.{name}" for name in ("ks", "num_bootstrap", "exact_users", "baselines")}
_SEED_AT_END = re.compile(r"[-_. ]?seed[-_=. ]?\d+$")


@dataclass(frozen=True)
class Row:
    """One model of a comparison, trained once for each seed.

    Args:
        name: Told apart from the others'.
        kind: Of the model.
        runs: The runs that hold its reports, by seed.
        is_baseline: Whether it is a baseline of these runs, not their own model.
    """

    name: str
    kind: str
    runs: Mapping[int, Run]
    is_baseline: bool

    @property
    def first(self) -> Run:
        """The run that stands for all where one is shown."""
        return next(iter(self.runs.values()))

    def reports(self, *, masked: bool) -> dict[int, EvaluationReport]:
        """Its reports on test by seed."""
        return {
            seed: run.report("test", masked=masked, model=self.kind)
            for seed, run in self.runs.items()
        }


def group_runs(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Runs that differ in their seed alone as one row each, in the order of the first of each.

    The same seed twice makes two rows. A row is named after the folder of its first run without
    the seed's number at the end, as ``wide`` for ``runs/wide-seed-0``; where that leaves nothing,
    after the folder above, as for ``runs/wide/seed-0``. Rows that would share a name are named by
    their paths.
    """
    grouped: list[tuple[object, dict[int, Run]]] = []
    for run in runs:
        recipe, seed = _recipe_of(run), run.seed
        for known, by_seed in grouped:
            if known == recipe and seed not in by_seed:
                by_seed[seed] = run
                break
        else:
            grouped.append((recipe, {seed: run}))
    rows = [dict(sorted(by_seed.items())) for _, by_seed in grouped]
    names = _name_rows([next(iter(by_seed.values())) for _, by_seed in grouped])
    return tuple(
        Row(name, next(iter(by_seed.values())).model_kind, by_seed, is_baseline=False)
        for name, by_seed in zip(names, rows, strict=True)
    )


def find_baselines(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The baselines beside these rows' models, each once where it ranks alike in all runs."""
    found: list[Row] = []
    names = {row.name for row in rows}
    for row in rows:
        for kind in dict.fromkeys(key.model for run in row.runs.values() for key in run.reports):
            runs = {
                seed: run
                for seed, run in row.runs.items()
                if ReportKey(kind, "test", False) in run.reports
            }
            if kind == row.kind:
                continue
            new = Row(kind, kind, runs, is_baseline=True)
            if any(_rank_alike(new, other) for other in rows if other.kind == kind):
                continue
            for place, other in enumerate(found):
                if other.kind == kind and _rank_alike(new, other):
                    merged = dict(sorted({**new.runs, **other.runs}.items()))
                    found[place] = Row(other.name, kind, merged, is_baseline=True)
                    break
            else:
                name = kind if kind not in names else f"{kind} of {row.name}"
                names.add(name)
                found.append(Row(name, kind, runs, is_baseline=True))
    return tuple(found)


def _rank_alike(first: Row, second: Row) -> bool:
    """Whether two models rank alike on the seeds that both have, or on all if they share none."""
    common = first.runs.keys() & second.runs.keys()
    pairs = [(seed, seed) for seed in common] or itertools.product(first.runs, second.runs)
    return all(
        np.array_equal(
            first.runs[a].report("test", masked=masked, model=first.kind).ranks,
            second.runs[b].report("test", masked=masked, model=second.kind).ranks,
        )
        for a, b in pairs
        for masked in (False, True)
    )


def own_stages(run: Run) -> list[str]:
    """The stages that the reports of a run's own model come from."""
    baselines = {baseline_stage(kind) for kind in run.config.baselines}
    return [stage for stage in run.stages() if stage not in baselines | {"recommend"}]


def _recipe_of(run: Run) -> object:
    """What a run's lists depend on beside the seed, as its stages recorded it."""
    recipe = {}
    for stage in own_stages(run):
        manifest = run.manifest(stage)
        settings = {
            name: value
            for name, value in flat_settings(manifest.config)
            if name != "seed" and name not in MEASURING
        }
        recipe[stage] = (manifest.version, settings, sorted(manifest.inputs.values()))
    return run.model_kind, recipe


def _name_rows(runs: Sequence[Run]) -> tuple[str, ...]:
    """Folder names where they tell rows apart, else the paths, and numbers as a last resort."""
    folders = [run.directory.absolute() for run in runs]
    for names in (
        [_SEED_AT_END.sub("", folder.name) or folder.parent.name for folder in folders],
        [str(run.directory) for run in runs],
    ):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{run.directory} ({place})" for place, run in enumerate(runs, start=1))
