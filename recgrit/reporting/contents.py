"""The contents of the page about one run, computed and typed.

A part that a run lacks is named with the reason. A part that the run's model does not use, such as
semantic IDs for popularity, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl

from recgrit.embedding.text import DEFAULT_TEMPLATE, parse_template
from recgrit.errors import ArtifactError
from recgrit.evaluation.repeats import Repeats
from recgrit.folds import FoldResults, collect_folds
from recgrit.layout import EPOCHS_NAME, ID_EPOCHS_NAME, stage_directory
from recgrit.reporting.catalogue import Collisions, ItemRows, find_collisions, list_items
from recgrit.reporting.examples import ExampleUser, show_users
from recgrit.reporting.likeness import Likeness, measure_likeness
from recgrit.reporting.lists import ListsOfRun, measure_lists
from recgrit.reporting.origin import Origin, trace_origin
from recgrit.reporting.scores import Breakdown, ModelScores, break_down, collect_scores
from recgrit.reporting.tags import WORDS_OF_TITLE, read_tags
from recgrit.reporting.tree import IdTree, build_tree
from recgrit.runs import Run

T = TypeVar("T")


@dataclass(frozen=True)
class IdContents:
    """Everything that a run's page shows about semantic IDs.

    Args:
        summary: Summary from the manifest of the tokenize stage, with diagnostics of each level.
        epochs: The tokenizer's training, one row per epoch. None if the run did not train a
            tokenizer.
        learning: Shares of items whose learned ID changed, one row per epoch. None if the IDs were
            not learned with next-item prediction.
        usage: For each level, the number of items of each code, most used code first.
        tree: The tree of IDs.
        likeness: Similarity of items by the number of codes that they share.
        items: Rows of the searchable item table.
        collisions: Items that shared an ID. None if the IDs have no disambiguation level.
        labels_in_text: Whether the tree's labels come from a field that is part of the encoded item
            texts. None if it is unknown what the IDs were made from.
    """

    summary: dict[str, Any]
    epochs: pl.DataFrame | None
    learning: pl.DataFrame | None
    usage: tuple[tuple[int, ...], ...]
    tree: IdTree
    likeness: tuple[Likeness, ...]
    items: ItemRows
    collisions: Collisions | None
    labels_in_text: bool | None

    def explain_labels(self) -> str:
        """Return a sentence that explains what regions of one colour in the tree mean."""
        same = "Regions of one colour mean that codes are semantic"
        if self.labels_in_text is None:
            return f"{same}."
        if self.labels_in_text:
            return f"{same}. These labels are part of the items' texts."
        return f"{same}. The tokenizer never saw these labels."


@dataclass(frozen=True)
class TrainingContents:
    """Everything that a page shows about the model's training.

    Args:
        summary: Summary from the manifest of the train stage.
        epochs: Losses and validation metrics, one row per epoch.
    """

    summary: dict[str, Any]
    epochs: pl.DataFrame


@dataclass(frozen=True)
class EvaluationContents:
    """Everything that a run's page shows about the evaluation.

    Args:
        scores: Scores of every model on every split.
        breakdowns: Scores over groups of test targets.
        users: Example users with their lists.
        ties: How interactions with equal timestamps were ordered, as text.
        beam_agreement: Share of the exact top 10 that the beam search finds. None if every list is
            exact.
        repeats: Test targets whose item is in the history before them. None if they are few.
        folds: Results of all windows of time. None if the run has a single window, or folds are
            missing.
        new_items: Scores of every model on the test targets that are not repeats, with seen items
            filtered out. Empty if repeats are few, or if all targets are repeats.
    """

    scores: tuple[ModelScores, ...]
    breakdowns: tuple[Breakdown, ...]
    users: tuple[ExampleUser, ...]
    ties: str
    beam_agreement: float | None
    repeats: Repeats | None
    folds: FoldResults | None
    new_items: tuple[ModelScores, ...]


@dataclass(frozen=True)
class RunContents:
    """Everything that the page about one run shows.

    Args:
        name: Name of the run's folder.
        model: Kind of the run's model.
        data: Summary of the prepared data, with the number of rows that each filter left.
        origin: Settings, versions and commands that repeat the run.
        created: Time when the last stage was made, in UTC.
        missing: For each stage that the model needs but that cannot be shown, the reason.
        ids: Contents about IDs. None if the run is not tokenized, or if the model needs no IDs.
        training: Contents about training. None if the model is not trained, or not trained in
            epochs.
        evaluation: Contents about the evaluation. None if the run is not evaluated.
        lists: Quality of the recommended lists. None if nothing was recommended.
    """

    name: str
    model: str
    data: dict[str, Any]
    origin: Origin
    created: str
    missing: dict[str, str]
    ids: IdContents | None
    training: TrainingContents | None
    evaluation: EvaluationContents | None
    lists: ListsOfRun | None

    @property
    def shows_ids(self) -> bool:
        """Whether the page has a section on IDs, with their contents or why they are missing."""
        return self.ids is not None or "tokenize" in self.missing

    @property
    def shows_training(self) -> bool:
        """Whether the page has a section on training, with its epochs or why they are missing."""
        return self.training is not None or "train" in self.missing


def gather_contents(run: Run) -> RunContents:
    """Compute the contents of a run's page from the stages that the run has.

    Raises:
        ArtifactError: The data are not prepared, or files are damaged.
    """
    data = run.manifest("prepare").summary
    stages = run.stages()
    origin = trace_origin(run)
    missing = {stage: reason for stage in stages if (reason := why_missing(run, stage))}

    def take(stage: str, build: Callable[[Run], T]) -> T | None:
        return build(run) if stage in stages and stage not in missing else None

    return RunContents(
        name=run.directory.absolute().name,
        model=run.config.model.kind,
        data=data,
        origin=origin,
        created=max(stage.created for stage in origin.stages),
        missing=missing,
        ids=take("tokenize", _read_ids),
        training=take("train", read_training),
        evaluation=take("evaluate", _read_evaluation),
        lists=take("recommend", lambda run: measure_lists(run, seed=run.config.seed)),
    )


def why_missing(run: Run, stage: str) -> str:
    """Return the reason why a stage's results cannot be shown, and what to do; empty if they can.

    Results are also not shown if a parent of the stage does not fit the parent's own parents.
    """
    if not stage_directory(run.directory, stage).is_dir():
        command = "run" if stage == "recommend" else stage
        return f"This stage has not run yet: recgrit {command} {run.directory}"
    try:
        parents = run.manifest(stage).parents
    except ArtifactError as error:
        return str(error)
    if stage == "recommend" and run.has("evaluate"):
        made, evaluated = run.manifest(stage).config["beam_width"], run.evaluated_beam_width()
        if made != evaluated:
            return (
                f"The lists were made with beam width {made}, but the evaluation with "
                f"{evaluated}: recgrit run {run.directory}"
            )
    return next(filter(None, (why_missing(run, parent) for parent in parents)), "")


def _read_ids(run: Run) -> IdContents:
    table, split = run.semantic_ids, run.data.split
    counts = split.train_item_counts()
    tags = read_tags(run.data.items)
    levels = table.id_length if table.disambiguation_level is None else table.disambiguation_level
    usage = []
    for level in range(levels):
        used = pl.Series(table.codes[:, level]).value_counts(sort=True)["count"].to_list()
        usage.append(tuple(used + [0] * (table.codebook_sizes[level] - len(used))))
    tokenized = run.manifest("tokenize")
    return IdContents(
        summary=tokenized.summary,
        epochs=read_epochs(run, "tokenize") if EPOCHS_NAME in tokenized.files else None,
        learning=_read_learning(run),
        usage=tuple(usage),
        tree=build_tree(table, tags, counts),
        likeness=measure_likeness(table, run.features.vectors, tags, seed=run.config.seed),
        items=list_items(table, counts),
        collisions=find_collisions(table),
        labels_in_text=_labels_in_text(run, tags.field),
    )


def _labels_in_text(run: Run, field: str) -> bool | None:
    """Return whether a field of the items is part of the encoded texts; None if unknown."""
    manifest = run.manifest("embed") if run.has("embed") else None
    tokenizer = run.manifest("tokenize").config["tokenizer"]
    if manifest is None or tokenizer.get("semantic_ids_path"):
        return None
    if manifest.config["embedding"].get("vectors_path"):
        return None
    template = manifest.summary.get("template") or DEFAULT_TEMPLATE
    fields = {segment.field for segment in parse_template(template)}
    return ("title" if field == WORDS_OF_TITLE else field) in fields


def _read_learning(run: Run) -> pl.DataFrame | None:
    if "ids" not in run.manifest("tokenize").summary:
        return None
    return read_epochs(run, "tokenize", ID_EPOCHS_NAME)


def read_training(run: Run) -> TrainingContents | None:
    """Return the training of a run's model; None for a model that is not trained in epochs."""
    if EPOCHS_NAME not in run.manifest("train").files:
        return None
    return TrainingContents(run.manifest("train").summary, read_epochs(run, "train"))


def _read_evaluation(run: Run) -> EvaluationContents:
    repeats = Repeats.of(run.report("test"), run.data.split, run.config.data)
    new_items = {
        key: new
        for key, report in run.reports.items()
        if repeats.are_many and key.split == "test" and key.masked
        if (new := repeats.of_new_items(report)) is not None
    }
    tags = read_tags(run.data.items)
    return EvaluationContents(
        scores=collect_scores(run.reports, run.model_kind),
        breakdowns=break_down(
            run.reports,
            run.data.split,
            run.model_kind,
            users=run.data.users,
            segments=run.config.evaluation.segments,
            categories=None if tags.field == WORDS_OF_TITLE else tags.pairs,
        ),
        users=show_users(run, seed=run.config.seed),
        ties=run.report("test").protocol["ties"],
        beam_agreement=run.manifest("evaluate").summary.get("beam_agreement"),
        repeats=repeats if repeats.are_many else None,
        folds=collect_folds(run),
        new_items=collect_scores(new_items, run.model_kind),
    )


def read_epochs(run: Run, stage: str, name: str = EPOCHS_NAME) -> pl.DataFrame:
    """Return the training log of a stage, one row per epoch.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    return run.read(stage, lambda path: pl.read_parquet(path / name, glob=False))
