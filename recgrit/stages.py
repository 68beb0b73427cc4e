"""The stages: each a function from settings and parent artifacts to one artifact on disk.

A stage says which settings its result depends on, which raw files it reads, and how it is built;
`recgrit.running` decides which stages have to run. Settings that change no result (devices, paths,
the place of a run) are not part of a stage's key.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import ArtifactWriter, digest_file
from recgrit.data.items import read_item_list
from recgrit.data.prepare import find_input_files, prepare
from recgrit.data.recommendations import Recommendations, write_lists
from recgrit.data.splits import SequenceSplit, Split
from recgrit.engines.engine import Engine
from recgrit.engines.shards import Shards
from recgrit.errors import DataError, TrackingError
from recgrit.experiment import ExperimentConfig
from recgrit.jobs import (
    EPOCHS_NAME,
    FACTS_NAME,
    TARGETS,
    AssignCodes,
    FitTokenizer,
    RankTargets,
    RecommendLists,
    TrainRetriever,
    call_lists,
    features_path,
    use_absolute_paths,
)
from recgrit.runs import (
    CHECKPOINTS_NAME,
    SHARDS_NAME,
    TOKENIZER_NAME,
    TRANSFORM_NAME,
    Run,
    read_tokenizer,
)
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    import torch

    from recgrit.retrieval.training import TrainingEpoch

logger = logging.getLogger(__name__)


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


def _build_data(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    data = prepare(config.data)
    data.save(writer.path)
    writer.summary = {
        "source": config.data.source,
        "num_users": data.interactions.num_users,
        "num_items": data.interactions.num_items,
        "num_interactions": len(data.interactions),
        "num_evaluated_users": len(
            np.unique(data.split.owners_of(data.split.target_users("test")))
        ),
        "num_untrained_items": int(np.sum(data.split.train_item_counts() == 0)),
        "funnel": data.funnel.to_dicts(),
    }
    tracker.set_tags({"data.source": config.data.source})


def _build_embeddings(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.features import fit_features
    from recgrit.embedding.frozen import encode_items
    from recgrit.embedding.text import build_item_texts
    from recgrit.embedding.vectors import load_vectors

    data = Run(config.run.dir).data
    space = None
    if config.embedding.vectors_path is not None:
        text = load_vectors(config.embedding.vectors_path, data.items.item_ids)
    else:
        texts = build_item_texts(data.items, config.embedding.template)
        encoded = encode_items(
            texts,
            config.embedding,
            config.seed,
            cache_dir=config.run.cache,
            directory=writer.path,
            engine=engine,
        )
        text = Embeddings(encoded.vectors, encoded.encoder, normalized=True)
        space = encoded.space
        pl.DataFrame({"item_id": data.items.item_ids, "text": texts}).write_parquet(
            writer.path / "texts.parquet"
        )
    text.save(writer.path, "text")
    features = config.features
    cooccurrence = None
    if features.cooccurrence_weight > 0:
        cooccurrence = build_cooccurrence_vectors(
            data.split,
            dim=features.cooccurrence_dim,
            window=features.cooccurrence_window,
            seed=config.seed,
        )
        cooccurrence.save(writer.path, "cooccurrence")
    fitted = fit_features(
        text,
        cooccurrence,
        text_dim=features.text_dim,
        cooccurrence_weight=features.cooccurrence_weight,
    )
    combined = fitted.embeddings
    combined.save(writer.path, "features")
    fitted.transform.save(writer.path / TRANSFORM_NAME)
    writer.summary = {
        "encoder": text.encoder,
        "encoder_space": space,
        "features": combined.encoder,
        "text_dim": text.embedding_dim,
        "feature_dim": combined.embedding_dim,
    }


def _build_semantic_ids(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    if config.tokenizer.semantic_ids_path is not None:
        _take_published_ids(config.tokenizer.semantic_ids_path, config, writer)
    else:
        _fit_semantic_ids(config, writer, tracker, engine)


def _take_published_ids(path: Path, config: ExperimentConfig, writer: ArtifactWriter) -> None:
    """IDs of a published table; those that items share get one more level."""
    from recgrit.quantization.diagnostics import diagnose_codes
    from recgrit.semantic_ids.collisions import disambiguate
    from recgrit.semantic_ids.published import read_published_ids
    from recgrit.semantic_ids.table import SemanticIdTable

    items = Run(config.run.dir).data.items
    published = read_published_ids(path, items.item_ids)
    diagnostics = diagnose_codes(published.codes, published.codebook_sizes)
    codes, sizes, level = published.codes.astype(np.int32), published.codebook_sizes, None
    if diagnostics.collision_rate > 0:
        unique = disambiguate(published.codes, sizes, items.item_ids)
        codes, sizes, level = unique.codes, unique.codebook_sizes, unique.disambiguation_level
    SemanticIdTable(codes, sizes, level, items.item_ids, items.titles).save(writer.path)
    writer.summary = {
        "num_items": len(codes),
        "codebook_sizes": list(sizes),
        "disambiguation_level": level,
        "unique_by": "none needed" if level is None else "disambiguation",
        "num_moved": 0,
        "published": path.name,
        "num_unknown": published.num_unknown,
        "diagnostics": diagnostics.to_dict(),
        "warnings": [],
    }


def _fit_semantic_ids(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    import torch

    from recgrit.quantization.diagnostics import diagnose_codes
    from recgrit.semantic_ids.collisions import make_unique
    from recgrit.semantic_ids.table import SemanticIdTable

    run = Run(config.run.dir)
    features, items = run.features, run.data.items
    there = use_absolute_paths(config)
    engine.run_on_ranks(FitTokenizer(there, writer.path.absolute()), _tell_nobody)
    facts = _take_facts(writer.path)
    model = read_tokenizer(writer.path / TOKENIZER_NAME, config.tokenizer, features.embedding_dim)
    assigned = _assign_codes(config, writer, engine, len(items.item_ids))
    diagnostics = diagnose_codes(
        assigned.codes, config.tokenizer.codebook_sizes, assigned.residual_norms
    )
    for warning in diagnostics.warnings():
        logger.warning(warning)

    def take(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.array(features.vectors[rows]))

    unique = make_unique(
        assigned.codes,
        config.tokenizer.codebook_sizes,
        items.item_ids,
        lambda rows: model.last_level(take(rows))[0].numpy(),
        model.last_level(take(np.arange(1)))[1].numpy(),
        method=config.tokenizer.unique_ids,
    )
    logger.info("IDs unique by %s in %.1f s", unique.method, unique.seconds)
    table = SemanticIdTable(
        codes=unique.codes,
        codebook_sizes=unique.codebook_sizes,
        disambiguation_level=unique.disambiguation_level,
        item_ids=items.item_ids,
        titles=items.titles,
    )
    table.save(writer.path)
    epochs = pl.read_parquet(writer.path / EPOCHS_NAME, glob=False).to_dicts()
    writer.summary = {
        "num_items": len(table),
        "codebook_sizes": list(table.codebook_sizes),
        "disambiguation_level": table.disambiguation_level,
        "unique_by": unique.method,
        "num_moved": unique.num_moved,
        **facts,
        "reconstruction_loss": epochs[facts["best_epoch"]]["reconstruction_loss"],
        "reconstruction_loss_kmeans": epochs[0]["reconstruction_loss"],
        "diagnostics": diagnostics.to_dict(),
        "warnings": diagnostics.warnings(),
    }
    for epoch in epochs:
        tracker.log_metrics(
            {
                f"tokenizer/{name}": epoch[name]
                for name in ("reconstruction_loss", "collision_rate")
            },
            step=epoch["epoch"],
        )
    for level in diagnostics.levels:
        tracker.log_metrics(
            {
                f"tokenizer/level_{level.level}/perplexity": level.perplexity,
                f"tokenizer/level_{level.level}/codebook_usage": level.codebook_usage,
            }
        )


@dataclass(frozen=True)
class AssignedCodes:
    """Codes int64 ``[N, L]`` of all items, and the mean norm of their residuals by level."""

    codes: npt.NDArray[np.int64]
    residual_norms: tuple[float, ...]


def _assign_codes(
    config: ExperimentConfig, writer: ArtifactWriter, engine: Engine, num_items: int
) -> AssignedCodes:
    """Have all items given their codes."""
    from safetensors.numpy import load_file

    weights = writer.path / TOKENIZER_NAME
    # Named by the weights too: a fit need not give the same bytes again after an interruption.
    shards = _plan_shards(
        config,
        f"tokenize-{writer.key}-{digest_file(weights)[:16]}",
        num_items,
        engine.config.shard_items,
        ".safetensors",
    )
    engine.map_shards(
        AssignCodes(
            config.tokenizer,
            weights.absolute(),
            features_path(config.run.dir).absolute(),
        ),
        shards,
    )
    parts = [load_file(path) for path in shards.paths()]
    shards.remove()
    norms = np.sum([part["residual_norms"] for part in parts], axis=0) / num_items
    codes = np.concatenate([part["codes"] for part in parts])
    return AssignedCodes(codes.astype(np.int64), tuple(norms.tolist()))


def _build_retriever(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    def log_epoch(epoch: TrainingEpoch) -> None:
        metrics = {f"retriever/{name}": value for name, value in epoch.metrics().items()}
        try:
            tracker.log_metrics(metrics, step=epoch.epoch)
        except TrackingError as error:  # Hours of training are worth more than one record.
            logger.warning("%s", error)

    # Named by what is trained on what: another training never goes on from here.
    checkpoint = (config.run.dir / CHECKPOINTS_NAME / f"{writer.key}.safetensors").absolute()
    job = TrainRetriever(use_absolute_paths(config), writer.path.absolute(), checkpoint)
    engine.run_on_ranks(job, log_epoch)
    writer.summary = _take_facts(writer.path)
    shutil.rmtree(checkpoint.parent)


def _take_facts(folder: Path) -> dict[str, Any]:
    """What a fit said of itself, which goes into the manifest."""
    path = folder / FACTS_NAME
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return facts


def _tell_nobody(epoch: Any) -> None:
    """The tokenizer's epochs are read from their table."""


def _plan_shards(
    config: ExperimentConfig, name: str, num_rows: int, shard_rows: int, suffix: str
) -> Shards:
    """Shards of so many rows each, in a folder of the run that its stage deletes."""
    return Shards(
        name.partition("-")[0],
        (config.run.dir / SHARDS_NAME / f"{name}-{shard_rows}").absolute(),
        num_rows,
        shard_rows,
        suffix,
    )


def _build_evaluation(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
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
        folder = writer.path / (f"{name}_masked" if masked else name)
        folder.mkdir()
        evaluated.save(folder)
        writer.summary[folder.name] = evaluated.metrics()

    lists = _rank_targets(config, writer, engine, split)
    for split_name in TARGETS:
        users = split.target_users(split_name)
        for masked in (False, True):
            found = lists[call_lists(split_name, masked)]
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
    shards = _plan_shards(
        config, f"evaluate-{writer.key}", num_lists, engine.config.shard_users, ".safetensors"
    )
    engine.map_shards(RankTargets(use_absolute_paths(config)), shards)
    parts = [load_file(path) for path in shards.paths()]
    shards.remove()
    return {
        (kind := call_lists(name, masked)): Recommendations(
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


def _build_recommendations(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    size = engine.config.shard_users
    num_users = Run(config.run.dir).data.interactions.num_users
    shards = _plan_shards(config, f"recommend-{writer.key}", num_users, size, ".parquet")
    engine.map_shards(RecommendLists(use_absolute_paths(config)), shards)
    tables = (pl.read_parquet(path, glob=False) for path in shards.paths())
    written = write_lists(tables, writer.path / "recommendations.parquet")
    shards.remove()
    writer.summary = asdict(written)


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
        build=_build_data,
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
        build=_build_embeddings,
        describe=lambda summary: "{feature_dim} features per item ({features})".format(**summary),
    ),
    "tokenize": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "tokenizer": config.tokenizer.model_dump(mode="json", exclude={"semantic_ids_path"}),
        },
        inputs=_find_published_ids,
        build=_build_semantic_ids,
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
        build=_build_retriever,
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
        build=_build_evaluation,
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
        build=_build_recommendations,
        describe=lambda summary: "{num_rows:,} for {num_users:,} users".format(**summary),
    ),
}
