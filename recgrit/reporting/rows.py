"""The rows of a comparison: one row for runs that differ only in their seed, or for a baseline."""

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

# Settings of the measurement, which do not change a run's lists.
MEASURING = {f"evaluation.{name}" for name in ("ks", "num_bootstrap", "exact_users", "baselines")}
_SEED_AT_END = re.compile(r"[-_. ]?seed[-_=. ]?\d+$")


@dataclass(frozen=True)
class Row:
    """One model of a comparison, trained once for each seed.

    Args:
        name: Name of the row, unique within the comparison.
        kind: Kind of the model.
        runs: The runs that have the model's reports, by seed.
        is_baseline: Whether the model is a baseline of these runs and not their own model.
    """

    name: str
    kind: str
    runs: Mapping[int, Run]
    is_baseline: bool

    @property
    def first(self) -> Run:
        """The run of the lowest seed, which represents the row if only one run is shown."""
        return next(iter(self.runs.values()))

    def reports(self, *, masked: bool) -> dict[int, EvaluationReport]:
        """Return the reports of the row's model on test, by seed."""
        return {
            seed: run.report("test", masked=masked, model=self.kind)
            for seed, run in self.runs.items()
        }


def group_runs(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Group runs that differ only in their seed into rows, in the order of first appearance.

    Two runs with the same settings and the same seed make two rows. A row is named after the folder
    of its first run without the seed number at the end: ``wide`` for ``runs/wide-seed-0``. If
    nothing is left, it is named after the parent folder, as for ``runs/wide/seed-0``. If two rows
    would get the same name, all rows are named by their paths.
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
    """Return the baselines of these rows' runs as rows.

    A baseline that gives equal ranks in several runs is one row. A baseline that gives the same
    ranks as a row's own model of the same kind is left out.
    """
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
    """Return whether two models give equal ranks to all targets.

    They are compared on their common seeds, or on all pairs of seeds if they have none in common.
    """
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
    """Return the stages that the reports of a run's own model depend on."""
    baselines = {baseline_stage(kind) for kind in run.config.baselines}
    return [stage for stage in run.stages() if stage not in baselines | {"recommend"}]


def _recipe_of(run: Run) -> object:
    """Return everything that a run's lists depend on except the seed, as its stages recorded it."""
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
    """Return row names: folder names if they are unique, else paths, else paths with numbers."""
    folders = [run.directory.absolute() for run in runs]
    for names in (
        [_SEED_AT_END.sub("", folder.name) or folder.parent.name for folder in folders],
        [str(run.directory) for run in runs],
    ):
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{run.directory} ({place})" for place, run in enumerate(runs, start=1))
