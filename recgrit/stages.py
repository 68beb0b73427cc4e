"""The stages: each a function from settings and parent artifacts to one artifact on disk.

A stage whose key is already on disk is skipped and says so; a changed setting redoes the stage it
belongs to and what is built from it, nothing else. Settings that change no result (devices, paths,
the place of a run) are not part of a key.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from recgrit.artifacts import (
    ArtifactWriter,
    Manifest,
    build_key,
    digest_file,
    is_current,
    read_manifest,
    write_artifact,
    write_atomic,
)
from recgrit.data.prepare import find_input_files, prepare
from recgrit.data.splits import Split
from recgrit.errors import ArtifactError, ConfigError, DataError
from recgrit.evaluation.report import EvaluationReport
from recgrit.experiment import ExperimentConfig
from recgrit.runs import CONFIG_NAME, LAYOUT, WEIGHTS_NAME, Run, stage_directory
from recgrit.tracking.start import start_tracking
from recgrit.tracking.tracker import NullTracker, Tracker

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
    build: Callable[[ExperimentConfig, ArtifactWriter, Tracker], None]
    describe: Callable[[dict[str, Any]], str]


@dataclass
class RunResult:
    """What `run_experiment` leaves.

    Args:
        directory: The run folder.
        reports: Evaluation reports by name; empty if the run stopped before evaluation.
        seconds: Time spent in each stage now; 0 for one that was up to date.
        up_to_date: Stages that were not redone.
        artifacts: Folder of each stage.
        tracking: Where the run was recorded.
    """

    directory: Path
    reports: dict[str, EvaluationReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    up_to_date: list[str] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    tracking: str = ""

    def to_json(self) -> dict[str, Any]:
        """Metrics by split, times, memory and places, as JSON-able values."""
        metrics = {name: report.metrics() for name, report in self.reports.items()}
        if "popularity_test" in metrics:
            metrics["popularity"] = metrics.pop("popularity_test")
            metrics["popularity_masked"] = metrics.pop("popularity_test_masked")
        test = self.reports.get("test")
        return {
            **metrics,
            "num_users": test.per_user.height if test is not None else None,
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 2)},
            "up_to_date": self.up_to_date,
            "peak_rss_mb": peak_memory_mb(),
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
            "tracking": self.tracking,
        }


def run_experiment(
    config: ExperimentConfig, *, until: str = "recommend", force: bool = False
) -> RunResult:
    """Run all stages up to ``until`` that are not up to date.

    Args:
        config: Settings of all stages.
        until: The last stage to run.
        force: Redo stages that are up to date.

    Raises:
        RecgritError: Some input, setting or artifact cannot be used; nothing half-written is left.
    """
    names = list(LAYOUT)[: list(LAYOUT).index(until) + 1]
    result = RunResult(config.run.dir)
    # What can be told before anything is written or a tracked run is opened, is.
    _check_place(config.run.dir)
    for name in names:
        STAGES[name].inputs(config)
    if "train" in names:
        _check_device(config.retriever.device)
    if not force and all(_is_stage_current(name, config) for name in names):
        _run_stages(names, config, result, NullTracker(), force=False)
    else:
        with start_tracking(
            config.tracking, run_name=config.run.dir.name, default_directory=config.run.dir.parent
        ) as tracker:
            tracker.log_params(config.model_dump(mode="json"))
            result.tracking = tracker.location
            _run_stages(names, config, result, tracker, force=force)
            _track_outcome(config, result, tracker)
    return result


def require_own_checkpoint(config: ExperimentConfig) -> None:
    """Refuse to go on with a retriever that was trained on other artifacts than the run has.

    `run_experiment` would train again, which is not what someone expects who asks for an
    evaluation after putting another ID table in place.

    Raises:
        ArtifactError: Names both fingerprints and the command that rebuilds.
    """
    if stage_directory(config.run.dir, "train").is_dir():
        Run(config.run.dir).manifest("train")


def _run_stages(
    names: list[str],
    config: ExperimentConfig,
    result: RunResult,
    tracker: Tracker,
    *,
    force: bool,
) -> None:
    for number, name in enumerate(names, start=1):
        started = time.perf_counter()
        directory = stage_directory(config.run.dir, name)
        heading = f"[{number}/{len(names)}] {name}"
        if not force and _is_stage_current(name, config):
            logger.info("%s: up to date", heading)
            result.up_to_date.append(name)
            result.seconds[name] = 0.0
        else:
            logger.debug("%s ...", heading)
            manifest = run_stage(name, config, tracker)
            result.seconds[name] = round(time.perf_counter() - started, 2)
            outcome = STAGES[name].describe(manifest.summary)
            logger.info("%s: %s (%.1f s)", heading, outcome, result.seconds[name])
            tracker.log_metrics({f"seconds/{name}": result.seconds[name]})
        result.artifacts[name] = directory
        # An interrupted first run can go on from its folder too.
        if not (config.run.dir / CONFIG_NAME).is_file():
            _write_config(config)
    _write_config(config)
    if "evaluate" in names:
        result.reports = Run(config.run.dir).reports


def run_stage(name: str, config: ExperimentConfig, tracker: Tracker) -> Manifest:
    """Run one stage, whatever is on disk; its parents must be there."""
    directory = stage_directory(config.run.dir, name)
    settings, parents, inputs = _starting_point(name, config)
    with write_artifact(directory, name, settings, parents, inputs) as writer:
        STAGES[name].build(config, writer, tracker)
    return read_manifest(directory)


def _starting_point(
    name: str, config: ExperimentConfig
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Settings, fingerprints of parents, and digests of input files of a stage."""
    stage = STAGES[name]
    run = Run(config.run.dir) if LAYOUT[name][1] else None
    parents = {p: run.manifest(p).fingerprint for p in LAYOUT[name][1]} if run else {}
    inputs = {str(path): digest_file(path) for path in stage.inputs(config)}
    return stage.settings(config), parents, inputs


def _is_stage_current(name: str, config: ExperimentConfig) -> bool:
    directory = stage_directory(config.run.dir, name)
    parents = [stage_directory(config.run.dir, parent) for parent in LAYOUT[name][1]]
    # Input files are looked for even where nothing was built: their absence must be told first.
    if any(not parent.is_dir() for parent in parents):
        return False
    settings, parent_fingerprints, inputs = _starting_point(name, config)
    return is_current(directory, build_key(name, settings, parent_fingerprints, inputs))


def _check_place(directory: Path) -> None:
    """Refuse a run folder that cannot be made, or that a newer recgrit wrote."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"no permission to write to {existing}"
    else:
        reason = ""
    if reason:
        raise ArtifactError(
            f"Cannot write the run to {directory}: {reason}. Choose another folder with "
            "run.dir=PATH."
        )
    for stage in LAYOUT:
        is_current(stage_directory(directory, stage), key="")  # Refuses a newer schema.


def _check_device(name: str) -> None:
    if name in ("auto", "cpu"):
        return
    import torch

    try:
        torch.empty(0, device=name)
    # Builds without CUDA raise AssertionError, unknown names RuntimeError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"retriever.device={name} cannot be used here: {reason} Set retriever.device=auto."
        ) from None


def _build_data(config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker) -> None:
    data = prepare(config.data)
    data.save(writer.path)
    writer.summary = {
        "source": config.data.source,
        "num_users": data.interactions.num_users,
        "num_items": data.interactions.num_items,
        "num_interactions": len(data.interactions),
        "num_evaluated_users": len(data.split.target_users("test")),
        "num_untrained_items": int(np.sum(data.split.train_item_counts() == 0)),
        "funnel": data.funnel.to_dicts(),
    }
    tracker.set_tags({"data.source": config.data.source})


def _build_embeddings(config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker) -> None:
    from recgrit.embedding.cache import encode_cached
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.encoders import build_encoder
    from recgrit.embedding.features import build_features
    from recgrit.embedding.text import build_item_texts
    from recgrit.embedding.vectors import load_vectors

    data = Run(config.run.dir).data
    if config.embedding.vectors_path is not None:
        text = load_vectors(config.embedding.vectors_path, data.items.item_ids)
    else:
        texts = build_item_texts(data.items, config.embedding.template)
        encoder = build_encoder(config.embedding, config.seed)
        vectors = encode_cached(texts, encoder, config.run.cache)
        text = Embeddings(vectors, encoder.name, normalized=True)
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
    combined = build_features(
        text,
        cooccurrence,
        text_dim=features.text_dim,
        cooccurrence_weight=features.cooccurrence_weight,
    )
    combined.save(writer.path, "features")
    writer.summary = {
        "encoder": text.encoder,
        "features": combined.encoder,
        "text_dim": text.embedding_dim,
        "feature_dim": combined.embedding_dim,
    }


def _build_semantic_ids(config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker) -> None:
    import torch
    from safetensors.torch import save_file

    from recgrit.quantization.fit import fit_tokenizer
    from recgrit.semantic_ids.collisions import make_unique
    from recgrit.semantic_ids.table import SemanticIdTable

    run = Run(config.run.dir)
    features = torch.from_numpy(np.array(run.features.vectors))
    fitted = fit_tokenizer(features, config.tokenizer, seed=config.seed)
    items = run.data.items
    unique = make_unique(
        fitted.codes.cpu().numpy(),
        config.tokenizer.codebook_sizes,
        items.item_ids,
        fitted.last_residuals.cpu().numpy(),
        fitted.last_codes.cpu().numpy(),
        method=config.tokenizer.unique_ids,
    )
    table = SemanticIdTable(
        codes=unique.codes,
        codebook_sizes=unique.codebook_sizes,
        disambiguation_level=unique.disambiguation_level,
        item_ids=items.item_ids,
        titles=items.titles,
    )
    table.save(writer.path)
    save_file(fitted.model.state_dict(), writer.path / "tokenizer.safetensors")
    pl.DataFrame([asdict(epoch) for epoch in fitted.history]).write_parquet(
        writer.path / "epochs.parquet"
    )
    writer.summary = {
        "num_items": len(table),
        "codebook_sizes": list(table.codebook_sizes),
        "disambiguation_level": table.disambiguation_level,
        "unique_by": unique.method,
        "num_moved": unique.num_moved,
        "best_epoch": fitted.best_epoch,
        "reconstruction_loss": fitted.history[fitted.best_epoch].reconstruction_loss,
        "reconstruction_loss_kmeans": fitted.history[0].reconstruction_loss,
        "diagnostics": fitted.diagnostics.to_dict(),
        "warnings": fitted.diagnostics.warnings(),
    }
    for epoch in fitted.history:
        tracker.log_metrics(
            {
                "tokenizer/reconstruction_loss": epoch.reconstruction_loss,
                "tokenizer/collision_rate": epoch.collision_rate,
            },
            step=epoch.epoch,
        )
    for level in fitted.diagnostics.levels:
        tracker.log_metrics(
            {
                f"tokenizer/level_{level.level}/perplexity": level.perplexity,
                f"tokenizer/level_{level.level}/codebook_usage": level.codebook_usage,
            }
        )


def _build_retriever(config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker) -> None:
    from safetensors.torch import save_file

    from recgrit.retrieval.fit import RetrieverEpoch, fit_retriever

    def log_epoch(epoch: RetrieverEpoch) -> None:
        tracker.log_metrics(
            {f"retriever/{name}": value for name, value in epoch.metrics().items()},
            step=epoch.epoch,
        )

    run = Run(config.run.dir)
    fitted = fit_retriever(
        run.semantic_ids,
        run.data.split,
        run.features.vectors,
        config.retriever,
        seed=config.seed,
        on_epoch=log_epoch,
    )
    state = {name: value.cpu().contiguous() for name, value in fitted.model.state_dict().items()}
    save_file(state, writer.path / WEIGHTS_NAME)
    pl.DataFrame([asdict(epoch) for epoch in fitted.history]).write_parquet(
        writer.path / "epochs.parquet"
    )
    writer.summary = {
        "best_epoch": fitted.best_epoch,
        "num_epochs": len(fitted.history),
        "precision": str(fitted.precision).removeprefix("torch."),
        "num_parameters": fitted.model.num_parameters(),
        "best": fitted.history[fitted.best_epoch - 1].metrics(),
    }


def _build_evaluation(config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker) -> None:
    from recgrit.baselines.popularity import recommend_popular
    from recgrit.data.recommendations import Recommendations
    from recgrit.evaluation.report import evaluate_recommendations
    from recgrit.retrieval.recommend import recommend_items

    run, settings = Run(config.run.dir), config.evaluation
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

    splits: tuple[Split, ...] = ("valid", "test")
    for split_name in splits:
        users = split.target_users(split_name)
        for masked in (False, True):
            found = recommend_items(
                run.retriever,
                split,
                split_name,
                users,
                top_k=top_k,
                beam_width=settings.beam_width,
                masked=masked,
            )
            report(split_name, found, split_name, masked)
            popular = recommend_popular(split, split_name, users, top_k, masked)
            report(f"popularity_{split_name}", popular, split_name, masked)
    if settings.exact_users:
        writer.summary["beam_agreement"] = _compare_with_exact(run, config)


def _compare_with_exact(run: Run, config: ExperimentConfig) -> float:
    """Share of the exact top 10 that the beam finds, over a sample of test users."""
    from recgrit.retrieval.recommend import recommend_items

    split = run.data.split
    users = split.target_users("test")
    sample = np.random.default_rng(config.seed).permutation(users)[: config.evaluation.exact_users]
    beam, exact = (
        recommend_items(
            run.retriever, split, "test", sample, top_k=10, beam_width=width, masked=False
        ).items
        for width in (config.evaluation.beam_width, None)
    )
    return float(
        np.mean([len(np.intersect1d(b, e)) for b, e in zip(beam, exact, strict=True)]) / 10
    )


def _build_recommendations(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker
) -> None:
    found = Run(config.run.dir).recommend(
        top_k=config.recommendation.top_k,
        beam_width=config.evaluation.beam_width,
        exclude_seen=config.recommendation.exclude_seen,
    )
    found.write_parquet(writer.path / "recommendations.parquet")
    writer.summary = {"num_users": found["user_id"].n_unique(), "num_rows": found.height}


def _find_vectors(path: Path | None) -> tuple[Path, ...]:
    if path is None:
        return ()
    if not path.is_file():
        raise DataError(f"No vectors at {path}. Check embedding.vectors_path.")
    return (path,)


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
            mode="json", exclude={"path", "download_dir"}
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
            "embedding": config.embedding.model_dump(
                mode="json", exclude={"device", "batch_size", "vectors_path"}
            ),
            "features": config.features.model_dump(mode="json"),
        },
        inputs=lambda config: _find_vectors(config.embedding.vectors_path),
        build=_build_embeddings,
        describe=lambda summary: "{feature_dim} features per item ({features})".format(**summary),
    ),
    "tokenize": Stage(
        settings=lambda config: {
            "seed": config.seed,
            "tokenizer": config.tokenizer.model_dump(mode="json"),
        },
        inputs=lambda config: (),
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
            "recommendation": config.recommendation.model_dump(mode="json"),
        },
        inputs=lambda config: (),
        build=_build_recommendations,
        describe=lambda summary: "{num_rows:,} for {num_users:,} users".format(**summary),
    ),
}


def _track_outcome(config: ExperimentConfig, result: RunResult, tracker: Tracker) -> None:
    """Final metrics, the tables and the settings, so that a tracked run stands on its own."""
    for name, report in result.reports.items():
        tracker.log_metrics({f"{name}/{key}": value for key, value in report.metrics().items()})
    run = Run(config.run.dir)
    tracker.set_tags(
        {f"fingerprint.{name}": run.manifest(name).fingerprint for name in result.artifacts}
    )
    for name, directory in result.artifacts.items():
        tracker.log_artifact(directory / "manifest.json" if name in LARGE_STAGES else directory)


# Stages whose files are too large to copy into the tracking store: their manifest is enough.
LARGE_STAGES = {"prepare", "embed", "recommend"}


def _write_config(config: ExperimentConfig) -> None:
    """Keep the settings in the run folder; a file that already holds them stays untouched."""
    path, text = config.run.dir / CONFIG_NAME, _dump_config(config)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ArtifactError(f"Cannot write {path}: {error.strerror}.") from None


def _dump_config(config: ExperimentConfig) -> str:
    """The settings as YAML, with absolute paths: the run can be repeated from any folder."""
    return yaml.safe_dump(_absolute(config.model_dump()), sort_keys=False)


def _absolute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute(entry) for key, entry in value.items()}
    if isinstance(value, Path):
        return str(value.absolute())
    return json.loads(json.dumps(value))


def peak_memory_mb() -> float:
    """Most memory this process has held at once, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return round(peak * unit / 2**20, 1)
