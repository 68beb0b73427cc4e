"""The stage ``evaluate``, which measures the model and the baselines on validation and test."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recgrit.artifacts import ArtifactWriter
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import Split
from recgrit.engines.engine import Engine
from recgrit.engines.shards import ShardFunction
from recgrit.evaluation.groups import group_by_segments, group_targets, require_segments
from recgrit.evaluation.report import (
    EvaluationReport,
    ReportKey,
    describe_search,
    describe_ties,
    evaluate_recommendations,
)
from recgrit.experiment import ExperimentConfig
from recgrit.layout import baseline_stage
from recgrit.retrieval.config import search_width
from recgrit.runs import Run
from recgrit.stages.stage import Stage, as_settings, plan_shards
from recgrit.tracking.tracker import Tracker

# Splits on whose targets the models are measured.
TARGETS: tuple[Split, ...] = ("valid", "test")


def evaluate_stage(config: ExperimentConfig) -> Stage:
    """Return the stage that measures the run's model and its baselines."""
    return Stage(
        name="evaluate",
        version=2,
        parents=("prepare", "train", *map(baseline_stage, config.baselines)),
        settings=lambda config: as_settings(
            config.seed,
            evaluation=config.evaluation.model_dump(mode="json", exclude={"folds"}),
        ),
        build=_build,
        check=_require_segments,
        describe=_describe,
    )


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    run, settings = Run(config.run.dir, device=_device(config)), config.evaluation
    split = run.data.split
    width = search_width(settings.beam_width, max(settings.ks), split.num_items)
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for key, found in _rank_targets(config, writer, engine, run).items():
        report = evaluate_recommendations(
            found,
            split,
            key.split,
            masked=key.masked,
            search=describe_search(width if run.model(key.model).searches else None),
            ties=describe_ties(config.data),
            seed=config.seed,
            ks=settings.ks,
            num_bootstrap=settings.num_bootstrap,
        )
        folder = writer.path / key.folder
        folder.mkdir(parents=True)
        report.save(folder)
        metrics.setdefault(key.model, {})[key.lists] = report.metrics()
        if key == ReportKey(config.model.kind, "test", False):
            groups = _measure_groups(report, run, settings.segments)
    writer.summary = {"model": config.model.kind, "metrics": metrics, "groups": groups}
    model = run.model()
    if settings.exact_users and model.searches and model.scores_all:
        writer.summary["beam_agreement"] = _compare_with_exact(run, config)


def _require_segments(config: ExperimentConfig) -> None:
    require_segments(Run(config.run.dir).data.users, config.evaluation.segments)


def _measure_groups(
    report: EvaluationReport, run: Run, segments: tuple[str, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the number of targets and the metrics of each group of targets.

    The outer key is the grouping, such as ``history``, and the inner key the group, such as
    ``5–9``. ``segments`` names columns of the run's user table, which give one grouping each.
    """
    grouped = group_targets(report, run.data.split)
    grouped |= group_by_segments(report, run.data.users, segments)
    return {
        key: {
            label: {"num_targets": int(members.sum()), **report.of_targets(members).metrics()}
            for label, members in groups.items()
        }
        for key, groups in grouped.items()
    }


def _device(config: ExperimentConfig) -> str:
    return str(getattr(config.settings_of(config.model.kind), "device", "auto"))


@dataclass(frozen=True)
class RankTargets:
    """A task that writes the lists of all models for the users with a target.

    The rows are the users with a validation target, followed by those with a test target. A shard
    holds items and scores ``[n, top_k]`` for each report, under names such as
    ``trie/test_masked.items``, where n is the number of the shard's users with a target in the
    report's split.

    Args:
        config: Settings of all stages, with absolute paths.
    """

    config: ExperimentConfig

    def __call__(self) -> ShardFunction:
        """Load the models, and return the function that writes the lists of a range of rows."""
        from safetensors.numpy import save_file

        from recgrit.ranking import recommend_items

        config = self.config
        run = Run(config.run.dir, device=_device(config))
        rankers = {
            kind: run.recommender(kind, beam_width=config.evaluation.beam_width).ranker()
            for kind in (config.model.kind, *config.baselines)
        }
        split = run.data.split
        targets = {name: split.target_users(name) for name in TARGETS}
        num_valid, top_k = len(targets["valid"]), max(config.evaluation.ks)

        def rank(rows: slice, path: Path) -> None:
            behind = slice(max(0, rows.start - num_valid), max(0, rows.stop - num_valid))
            users = {"valid": targets["valid"][rows], "test": targets["test"][behind]}
            lists: dict[str, npt.NDArray[Any]] = {}
            for key in _keys(config):
                found = recommend_items(
                    rankers[key.model],
                    split,
                    key.split,
                    users[key.split],
                    top_k=top_k,
                    masked=key.masked,
                )
                lists |= {f"{key.folder}.items": found.items, f"{key.folder}.scores": found.scores}
            save_file(lists, path)

        return rank


def _keys(config: ExperimentConfig) -> list[ReportKey]:
    kinds = (config.model.kind, *config.baselines)
    return [ReportKey(*key) for key in itertools.product(kinds, TARGETS, (False, True))]


def _rank_targets(
    config: ExperimentConfig, writer: ArtifactWriter, engine: Engine, run: Run
) -> dict[ReportKey, Recommendations]:
    """Return the lists of all users with a target, for each report."""
    from safetensors.numpy import load_file

    users = {name: run.data.split.target_users(name) for name in TARGETS}
    num_lists = sum(map(len, users.values()))
    shards = plan_shards(
        config, f"evaluate-{writer.key}", num_lists, engine.config.shard_users, ".safetensors"
    )
    engine.map_shards(RankTargets(config.with_absolute_paths()), shards)
    parts = [load_file(path) for path in shards.paths()]
    shards.remove()
    return {
        key: Recommendations(
            users[key.split],
            np.concatenate([part[f"{key.folder}.items"] for part in parts]),
            np.concatenate([part[f"{key.folder}.scores"] for part in parts]),
        )
        for key in _keys(config)
    }


def _compare_with_exact(run: Run, config: ExperimentConfig) -> float:
    """Return the share of the exact best items that the beam search finds.

    The share is a mean over a sample of test users. The lists have 10 items, or fewer if the beam
    or the catalogue is smaller.
    """
    from recgrit.ranking import recommend_items

    split = run.data.split
    users = split.target_users("test")
    sample = np.random.default_rng(config.seed).permutation(users)[: config.evaluation.exact_users]
    top_k = min(10, config.evaluation.beam_width, split.num_items)
    # The beam width is given here, because `run` would read it from the evaluation that this stage
    # is about to replace.
    recommender = run.recommender(beam_width=config.evaluation.beam_width)
    beam, exact = (
        recommend_items(ranker, split, "test", sample, top_k=top_k, masked=False).items
        for ranker in (recommender.ranker(), recommender.ranker(beam_width="exact"))
    )
    return float(
        np.mean([len(np.intersect1d(b, e)) for b, e in zip(beam, exact, strict=True)]) / top_k
    )


def _describe(summary: dict[str, Any]) -> str:
    metrics = summary["metrics"][summary["model"]]
    ks = [int(name.rpartition("_")[2]) for name in metrics["test"]]
    k = 10 if 10 in ks else max(ks)
    return ", ".join(
        f"{name} Recall@{k} {found[f'recall_at_{k}']:.4f} and NDCG@{k} {found[f'ndcg_at_{k}']:.4f}"
        for name, found in ((name, metrics[name]) for name in TARGETS)
    )
