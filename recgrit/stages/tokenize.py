"""From feature vectors to the item-ID table."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import ArtifactWriter, digest_file
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.jobs import (
    EPOCHS_NAME,
    AssignCodes,
    FitTokenizer,
    features_path,
    plan_shards,
    take_facts,
    use_absolute_paths,
)
from recgrit.runs import TOKENIZER_NAME, Run, read_tokenizer
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def build_semantic_ids(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    """The table, with the tokenizer that made it where it was not published."""
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
    engine.run_on_ranks(FitTokenizer(there, writer.path.absolute()), _tell_nobody, writer.path)
    facts = take_facts(writer.path)
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
    shards = plan_shards(
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


def _tell_nobody(epoch: Any) -> None:
    """The tokenizer's epochs are read from their table."""
