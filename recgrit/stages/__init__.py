"""The stages: each a function from settings and parent artifacts to one artifact on disk.

A stage says which settings its result depends on, which raw files it reads, and how it is built;
`recgrit.running` decides which stages have to run. Settings that change no result (devices, paths,
engines, the place of a run) are not part of a stage's key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recgrit.artifacts import ArtifactWriter
from recgrit.data.items import read_item_list
from recgrit.data.prepare import find_input_files
from recgrit.engines.engine import Engine
from recgrit.errors import DataError
from recgrit.experiment import ExperimentConfig
from recgrit.stages.embed import build_embeddings
from recgrit.stages.evaluate import build_evaluation
from recgrit.stages.prepare import build_data
from recgrit.stages.recommend import build_recommendations
from recgrit.stages.tokenize import build_semantic_ids
from recgrit.stages.train import build_retriever
from recgrit.tracking.tracker import Tracker


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        settings: The part of the settings its result depends on.
        inputs: The raw files it reads, beside its parents.
        build: Writes its files and a summary.
        describe: The summary in one line.
    """

    settings: Callable[[ExperimentConfig], dict[str, Any]]
    inputs: Callable[[ExperimentConfig], tuple[Path, ...]]
    build: Callable[[ExperimentConfig, ArtifactWriter, Tracker, Engine], None]
    describe: Callable[[dict[str, Any]], str]


def _find_embedding_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Vectors of the user's own, or the weights of a model in a folder: their content counts."""
    from recgrit.embedding.weights import find_folder_weights

    path = config.embedding.vectors_path
    if path is None:
        return find_folder_weights(config.embedding.model)
    if not path.is_file():
        raise DataError(f"No vectors at {path}. Check embedding.vectors_path.")
    return (path,)


def _find_published_ids(config: ExperimentConfig) -> tuple[Path, ...]:
    """A published table of IDs and what says which item has which number."""
    from recgrit.semantic_ids.published import find_published_files

    path = config.tokenizer.semantic_ids_path
    return () if path is None else find_published_files(path)


def _find_item_lists(config: ExperimentConfig) -> tuple[Path, ...]:
    """Files of items that may, or must not, be recommended."""
    settings = config.recommendation
    paths = tuple(path for path in (settings.allowed_items, settings.blocked_items) if path)
    for path in paths:
        read_item_list(path)  # Refused now rather than after training.
    return paths


def _embedding_settings(config: ExperimentConfig) -> dict[str, Any]:
    irrelevant = {"device", "batch_size", "vectors_path"}
    if _find_embedding_inputs(config):
        irrelevant.add("model")  # A folder, told apart by its content instead.
    return config.embedding.model_dump(mode="json", exclude=irrelevant)


def _describe_evaluation(summary: dict[str, Any]) -> str:
    ks = [int(name.rpartition("_")[2]) for name in summary["test"]]
    k = 10 if 10 in ks else max(ks)
    return ", ".join(
        f"{name} Recall@{k} {found[f'recall_at_{k}']:.4f} and NDCG@{k} {found[f'ndcg_at_{k}']:.4f}"
        for name, found in ((name, summary[name]) for name in ("valid", "test"))
    )


STAGES: dict[str, Stage] = {
    "prepare": Stage(
        settings=lambda config: config.data.model_dump(
            mode="json", exclude={"path", "download_dir", "mirrors", "partition_users"}
        ),
        inputs=lambda config: find_input_files(config.data),
        build=build_data,
        describe=lambda summary: (
            "{num_interactions:,} interactions of {num_users:,} users with {num_items:,} items"
        ).format(**summary),
    ),
    "embed": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "embedding": _embedding_settings(config),
            "features": config.features.model_dump(mode="json"),
        },
        inputs=_find_embedding_inputs,
        build=build_embeddings,
        describe=lambda summary: "{feature_dim} features per item ({features})".format(**summary),
    ),
    "tokenize": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"semantic_ids_path"}),
        },
        inputs=_find_published_ids,
        build=build_semantic_ids,
        describe=lambda summary: (
            f"{summary['num_items']:,} IDs of {len(summary['codebook_sizes'])} levels, "
            f"{summary['diagnostics']['collision_rate']:.1%} were shared before"
        ),
    ),
    "train": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "retriever": config.retriever.model_dump(mode="json", exclude={"device"}),
        },
        inputs=lambda config: (),
        build=build_retriever,
        describe=lambda summary: (
            f"best epoch {summary['best_epoch']} of {summary['num_epochs']}, valid NDCG@10 "
            f"{summary['best']['valid_ndcg_at_10']:.4f}"
        ),
    ),
    "evaluate": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "evaluation": config.evaluation.model_dump(mode="json"),
        },
        inputs=lambda config: (),
        build=build_evaluation,
        describe=_describe_evaluation,
    ),
    "recommend": Stage(
        settings=lambda config: {
            "beam_width": config.evaluation.beam_width,
            "recommendation": config.recommendation.model_dump(
                mode="json", exclude={"allowed_items", "blocked_items"}
            ),
            # Told apart by their content; which of the two a file is, by this.
            "lists": [
                name
                for name in ("allowed_items", "blocked_items")
                if getattr(config.recommendation, name) is not None
            ],
        },
        inputs=_find_item_lists,
        build=build_recommendations,
        describe=lambda summary: "{num_rows:,} for {num_users:,} users".format(**summary),
    ),
}
