"""Everything a page about one run shows, computed and typed; parts a run lacks are named.

A part that the run's model has no use for, such as semantic IDs for popularity, is left out.
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
    """What the tokenizer left.

    Args:
        summary: Of the stage's manifest: diagnostics by level and more.
        epochs: The tokenizer's training; None where the run did not train it.
        learning: What became of IDs that learned the next item, by epoch; None for others.
        usage: Items of each code by level, most used first.
        tree: The tree of IDs.
        likeness: How alike items are by shared codes.
        items: To search.
        collisions: None where no level tells items apart.
        labels_in_text: Whether the tree's labels stand in the texts that IDs are made from; None
            where nothing tells what these were made from.
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
        """What regions of one colour in the tree mean, in a sentence."""
        same = "Regions of one colour mean that codes are semantic"
        if self.labels_in_text is None:
            return f"{same}."
        if self.labels_in_text:
            return f"{same}: they keep these labels, which stand in the texts of the items."
        return f"{same}: the tokenizer never saw these labels."


@dataclass(frozen=True)
class TrainingContents:
    """The model's training: its manifest's summary, and its epochs."""

    summary: dict[str, Any]
    epochs: pl.DataFrame


@dataclass(frozen=True)
class EvaluationContents:
    """Metrics of all models, over groups of targets, and examples.

    Args:
        scores: Of every model on every split.
        breakdowns: Over groups of test targets.
        users: Some users with their lists.
        ties: How interactions with equal timestamps were ordered.
        beam_agreement: Share of the exact top 10 that the beam finds; None where all is exact.
        repeats: Test targets that stand in the history before them; None where they are few.
        folds: Of every window of time, where several were asked for and are made.
        new_items: Of every model on all other test targets, in masked lists; empty where repeats
            are few, or all there is.
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
    """One run.

    Args:
        name: Its folder's name.
        model: The kind of its model.
        data: The summary of the prepared data, with the funnel.
        origin: Where it comes from.
        created: When the last of its stages was made, UTC.
        missing: Why parts are None though the model needs them, by stage.
        ids: None if not tokenized, or if the model needs no IDs.
        training: None if not trained, or if there is nothing to train in epochs.
        evaluation: None if not evaluated.
        lists: None if nothing was recommended.
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
        """Whether the page speaks of IDs: of those there are, or of why there are none yet."""
        return self.ids is not None or "tokenize" in self.missing

    @property
    def shows_training(self) -> bool:
        """Whether the page speaks of training: of its epochs, or of why there are none yet."""
        return self.training is not None or "train" in self.missing


def gather_contents(run: Run) -> RunContents:
    """Compute what there is of a run.

    Raises:
        ArtifactError: Not even its data are prepared, or files are damaged.
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
    """Why a stage's results cannot be shown, and what to do; empty if they can.

    Results of a stage whose parent does not fit its own parents are not shown either.
    """
    if not stage_directory(run.directory, stage).is_dir():
        command = "run" if stage == "recommend" else stage
        return f"This run has not got that far: recgrit {command} {run.directory}"
    try:
        parents = run.manifest(stage).parents
    except ArtifactError as error:
        return str(error)
    if stage == "recommend" and run.has("evaluate"):
        made, evaluated = run.manifest(stage).config["beam_width"], run.evaluated_beam_width()
        if made != evaluated:
            return (
                f"The lists are of a beam of {made}, the evaluation of {evaluated}: recgrit run "
                f"{run.directory}"
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
    """Whether a field of the items stands in the texts that were encoded."""
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
    """The training of a run's model; None for a model that has no epochs."""
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
    """What each epoch of a stage reached.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    return run.read(stage, lambda path: pl.read_parquet(path / name, glob=False))
