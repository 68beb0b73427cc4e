"""From a trained retriever to metrics on validation and test."""

from __future__ import annotations

import numpy as np

from recgrit.artifacts import ArtifactWriter
from recgrit.data.recommendations import Recommendations
from recgrit.data.splits import SequenceSplit, Split
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.jobs import TARGETS, RankTargets, name_report, plan_shards, use_absolute_paths
from recgrit.runs import Run
from recgrit.tracking.tracker import Tracker


def build_evaluation(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """Reports of the retriever and of popularity, the history kept out of lists and not."""
    from recgrit.baselines.popularity import recommend_popular
    from recgrit.evaluation.report import evaluate_recommendations

    run = Run(config.run.dir, device=config.retriever.device)
    settings = config.evaluation
    split, top_k = run.data.split, max(config.evaluation.ks)

    def report(name: str, found: Recommendations, split_name: Split, masked: bool) -> None:
        evaluated = evaluate_recommendations(
            found,
            split,
            split_name,
            masked=masked,
            beam_width="exact" if name.startswith("popularity") else settings.beam_width,
            seed=config.seed,
            ks=settings.ks,
            num_bootstrap=settings.num_bootstrap,
        )
        folder = writer.path / name_report(name, masked)
        folder.mkdir()
        evaluated.save(folder)
        writer.summary[folder.name] = evaluated.metrics()

    lists = _rank_targets(config, writer, engine, split)
    for split_name in TARGETS:
        users = split.target_users(split_name)
        for masked in (False, True):
            found = lists[name_report(split_name, masked)]
            report(split_name, found, split_name, masked)
            popular = recommend_popular(split, split_name, users, top_k, masked)
            report(f"popularity_{split_name}", popular, split_name, masked)
    if settings.exact_users:
        writer.summary["beam_agreement"] = _compare_with_exact(run, config)


def _rank_targets(
    config: ExperimentConfig, writer: ArtifactWriter, engine: Engine, split: SequenceSplit
) -> dict[str, Recommendations]:
    """Lists of all users with a target, by split and whether the history is kept out."""
    from safetensors.numpy import load_file

    users = {name: split.target_users(name) for name in TARGETS}
    num_lists = sum(map(len, users.values()))
    shards = plan_shards(
        config, f"evaluate-{writer.key}", num_lists, engine.config.shard_users, ".safetensors"
    )
    engine.map_shards(RankTargets(use_absolute_paths(config)), shards)
    parts = [load_file(path) for path in shards.paths()]
    shards.remove()
    return {
        (kind := name_report(name, masked)): Recommendations(
            users[name],
            np.concatenate([part[f"{kind}.items"] for part in parts]),
            np.concatenate([part[f"{kind}.scores"] for part in parts]),
        )
        for name in TARGETS
        for masked in (False, True)
    }


def _compare_with_exact(run: Run, config: ExperimentConfig) -> float:
    """Share of the exact top 10 (or fewer) that the beam finds, over a sample of test users."""
    from recgrit.retrieval.recommend import recommend_items

    split = run.data.split
    users = split.target_users("test")
    sample = np.random.default_rng(config.seed).permutation(users)[: config.evaluation.exact_users]
    top_k = min(10, config.evaluation.beam_width, split.num_items)
    beam, exact = (
        recommend_items(
            run.ranker(beam_width=width), split, "test", sample, top_k=top_k, masked=False
        ).items
        for width in (config.evaluation.beam_width, None)
    )
    return float(
        np.mean([len(np.intersect1d(b, e)) for b, e in zip(beam, exact, strict=True)]) / top_k
    )
