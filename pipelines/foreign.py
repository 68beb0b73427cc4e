"""Keep and evaluate the lists that models of other libraries make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recgrit.artifacts import is_current, write_artifact
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit
from recgrit.display import metrics_tables, output
from recgrit.evaluation.foreign_lists import name_lists, without_history
from recgrit.evaluation.report import EvaluationReport, describe_ties, evaluate_recommendations
from recgrit.manifests import Origin
from recgrit.runs import Run

logger = logging.getLogger("foreign")

# Length of the evaluated lists. The libraries return longer lists, from which seen items are
# filtered out.
TOP_K = 20
# Largest difference between a library's metrics and recgrit's on the same lists that raises no
# warning. A library may print six decimals.
TOLERANCE = 1e-6
LISTS_NAME = "lists.parquet"


@dataclass(frozen=True)
class ForeignLists:
    """Lists that a model of another library makes for the test targets.

    Args:
        lists: Recommended items. Each list is longer than `TOP_K` by the number of seen items.
        masked: True if the library filtered seen items out.
        metrics: The library's own metrics of the first `TOP_K` items, such as ``recall_at_10``.
        summary: Figures of the training for the manifest, such as epochs and seconds.
    """

    lists: Recommendations
    masked: bool
    metrics: Mapping[str, float]
    summary: Mapping[str, Any]


def keep_lists(
    run: Run,
    split: SequenceSplit,
    directory: Path,
    settings: Mapping[str, Any],
    make: Callable[[], ForeignLists],
) -> None:
    """Make lists, evaluate them and write both into a folder, unless the folder is up to date.

    The folder gets ``test`` and ``test_masked``, each with a report and with the lists in the form
    that `recgrit score` reads. ``test`` is left out if the library filters seen items out itself.

    Args:
        run: Run whose data the model learns from.
        split: Split of the run, with the targets that are evaluated.
        directory: Folder of the result.
        settings: Settings that the lists depend on, besides the data.
        make: Function that trains the model and returns its lists.
    """
    origin = Origin("foreign", 1, settings, {"prepare": run.manifest("prepare").fingerprint})
    if is_current(directory, origin.key):
        logger.info("%s: up to date", directory)
        return
    with write_artifact(directory, origin, elsewhere="--out") as writer:
        found = make()
        report = _evaluate(run, split, found.lists, masked=found.masked, name=directory.name)
        _compare_metrics(found.metrics, report)
        unseen = without_history(found.lists, split, "test")
        kept = {
            "test_masked": (
                unseen,
                _evaluate(run, split, unseen, masked=True, name=directory.name),
            )
        }
        if not found.masked:
            kept["test"] = (found.lists, report)
        ids = run.data.interactions
        for label, (lists, evaluated) in kept.items():
            folder = writer.path / label
            folder.mkdir()
            evaluated.save(folder)
            rows = name_lists(lists, split, "test", ids.user_ids, ids.item_ids)
            rows.write_parquet(folder / LISTS_NAME)
        writer.summary = {**found.summary, "metrics_by_library": dict(found.metrics)}
    logger.info("%s: %s", directory, dict(found.summary))


def print_reports(directories: Sequence[Path]) -> None:
    """Print the metrics of all models in one table."""
    reports = {
        f"{directory.name} · {path.name.replace('_', ', ')}": EvaluationReport.load(path)
        for directory in directories
        for path in sorted(directory.glob("test*"))
    }
    for table in metrics_tables(reports, output.width):
        output.print(table)


def _evaluate(
    run: Run, split: SequenceSplit, lists: Recommendations, *, masked: bool, name: str
) -> EvaluationReport:
    settings = run.config.evaluation
    return evaluate_recommendations(
        replace(lists, items=lists.items[:, :TOP_K], scores=lists.scores[:, :TOP_K]),
        split,
        "test",
        masked=masked,
        search=f"lists from {name}",
        ties=describe_ties(run.config.data),
        seed=run.config.seed,
        ks=[k for k in settings.ks if k <= TOP_K],
        num_bootstrap=settings.num_bootstrap,
    )


def _compare_metrics(theirs: Mapping[str, float], report: EvaluationReport) -> None:
    """Log the library's metrics beside recgrit's on the same lists, as a warning if they differ."""
    for name in theirs.keys() & report.means.keys():
        values = (theirs[name], report.means[name])
        log = logger.info if abs(values[0] - values[1]) < TOLERANCE else logger.warning
        log("%s of the same lists: %.6f by the library, %.6f by us", name, *values)
