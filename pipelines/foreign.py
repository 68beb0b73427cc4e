"""What the models of other libraries have in common here: their lists, kept and evaluated once."""

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

# Of the lists that are evaluated; longer ones are brought, so that histories can be filtered out.
TOP_K = 20
# Between a library's metrics, which may have six decimals, and ours on the same lists.
TOLERANCE = 1e-6
LISTS_NAME = "lists.parquet"


@dataclass(frozen=True)
class ForeignLists:
    """What another library's model recommends for the test targets.

    Args:
        lists: Longer than `TOP_K` by the length of the history.
        masked: Whether the library filtered seen items out.
        metrics: What the library says of the first `TOP_K`, such as ``recall_at_10``.
        summary: What is to be known of the training.
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
    """Have lists made, evaluate them and keep both, unless they are there.

    The folder gets ``test`` and ``test_masked``, each with a report and the lists as `recgrit
    score` reads them; without the former where the library filters seen items out itself.

    Args:
        run: Whose data the model learned from.
        split: Of the run, with the targets that are evaluated.
        directory: Where the result goes.
        settings: What the lists depend on beside the data.
        make: Trains the model.
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
    """The metrics of all models in one table."""
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
    """Warn where the library's numbers are not ours on the same lists."""
    for name in theirs.keys() & report.means.keys():
        values = (theirs[name], report.means[name])
        log = logger.info if abs(values[0] - values[1]) < TOLERANCE else logger.warning
        log("%s of the same lists: %.6f by the library, %.6f by us", name, *values)
