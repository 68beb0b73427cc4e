"""The stage ``tokenize``, which turns the feature vectors of items into a semantic-ID table."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.checksums import digest_file
from recgrit.engines.engine import Engine
from recgrit.experiment import ExperimentConfig
from recgrit.layout import (
    CHECKPOINTS_NAME,
    EPOCHS_NAME,
    LATENTS_NAME,
    TOKENIZER_NAME,
)
from recgrit.manifests import Origin
from recgrit.runs import Run
from recgrit.stages.fitting_ids import (
    AssignCodes,
    FitTokenizer,
    LearnIds,
    features_path,
    open_tokenizer,
)
from recgrit.stages.stage import Stage, as_settings, plan_shards
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    import torch

    from recgrit.quantization.autoencoder import Tokenizer
    from recgrit.semantic_ids.table import SemanticIdTable

logger = logging.getLogger(__name__)


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return the settings that the IDs depend on.

    The settings of ``item_vectors`` are included only if item vectors are learned.
    """
    tokenizer = config.tokenizer.model_dump(mode="json", exclude={"semantic_ids_path"})
    if config.tokenizer.objective == "reconstruction" or config.tokenizer.semantic_ids_path:
        return as_settings(config.seed, tokenizer=tokenizer)
    vectors = config.item_vectors.model_dump(mode="json", exclude={"device"})
    return as_settings(config.seed, tokenizer=tokenizer, item_vectors=vectors)


def _vectors_path(config: ExperimentConfig) -> Path:
    """Return the cache file of the learned item vectors.

    Runs share this file if they differ only in the settings of the codebooks, including those of
    the epochs in which codebooks and vectors learn together.
    """
    together = {"quantized_epochs", "quantized_learning_rate"}
    settings = config.item_vectors.model_dump(mode="json", exclude={"device", *together})
    run = Run(config.run.dir)
    parents = {name: run.manifest(name).fingerprint for name in TOKENIZE.parents}
    origin = Origin(
        "item_vectors", TOKENIZE.version, as_settings(config.seed, item_vectors=settings), parents
    )
    return config.run.cache / f"item-vectors-{origin.key}.safetensors"


def _find_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """Return the files of a published ID table and of its item numbers; none without a table."""
    from recgrit.semantic_ids.published import find_published_files

    path = config.tokenizer.semantic_ids_path
    return () if path is None else find_published_files(path)


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    if config.retriever.init_from is not None:
        _take_ids_of_source(config, writer)
        return  # The IDs of the source already include the change of a negative control.
    if config.tokenizer.semantic_ids_path is not None:
        _take_published_ids(config.tokenizer.semantic_ids_path, config, writer)
    else:
        _fit_semantic_ids(config, writer, tracker, engine)
    if config.tokenizer.control != "none":
        table = _replace_ids(config, writer.path)
        writer.summary |= {
            "codebook_sizes": list(table.codebook_sizes),
            "disambiguation_level": table.disambiguation_level,
            "control": config.tokenizer.control,
        }


def _replace_ids(config: ExperimentConfig, folder: Path) -> SemanticIdTable:
    """Replace the IDs by permuted or random IDs, as a negative control of an experiment."""
    from recgrit.semantic_ids.table import SemanticIdTable

    table, generator = SemanticIdTable.load(folder), np.random.default_rng(config.seed)
    if config.tokenizer.control == "permuted":
        changed = replace(table, codes=table.codes[generator.permutation(len(table))])
    else:
        sizes = list(table.codebook_sizes)
        if table.disambiguation_level is not None:
            del sizes[table.disambiguation_level]
        codes = np.column_stack([generator.integers(size, size=len(table)) for size in sizes])
        changed = _tell_apart(codes, tuple(sizes), table.item_ids, table.titles)
    changed.save(folder)
    logger.warning(
        "tokenizer.control=%s: these IDs are a control without meaning", config.tokenizer.control
    )
    return changed


def _tell_apart(
    codes: npt.NDArray[np.int64], sizes: tuple[int, ...], item_ids: pl.Series, titles: pl.Series
) -> SemanticIdTable:
    """Return an ID table of codes, with one more level if several items share an ID."""
    from recgrit.semantic_ids.collisions import disambiguate
    from recgrit.semantic_ids.table import SemanticIdTable

    level, found = None, codes.astype(np.int32)
    if len(np.unique(codes, axis=0)) < len(codes):
        unique = disambiguate(codes, sizes, item_ids)
        found, sizes, level = unique.codes, unique.codebook_sizes, unique.disambiguation_level
    return SemanticIdTable(found, sizes, level, item_ids, titles)


def _take_published_ids(path: Path, config: ExperimentConfig, writer: ArtifactWriter) -> None:
    """Write the IDs of a published table, with one more level if several items share an ID."""
    from recgrit.quantization.diagnostics import diagnose_codes
    from recgrit.semantic_ids.published import read_published_ids

    items = Run(config.run.dir).data.items
    published = read_published_ids(path, items.item_ids)
    diagnostics = diagnose_codes(published.codes, published.codebook_sizes)
    table = _tell_apart(published.codes, published.codebook_sizes, items.item_ids, items.titles)
    table.save(writer.path)
    level = table.disambiguation_level
    writer.summary = {
        "num_items": len(table),
        "codebook_sizes": list(table.codebook_sizes),
        "disambiguation_level": level,
        "unique_by": "none needed" if level is None else "disambiguation",
        "num_moved": 0,
        "published": path.name,
        "num_unknown": published.num_unknown,
        "diagnostics": diagnostics.to_dict(),
        "warnings": [],
    }


def _take_ids_of_source(config: ExperimentConfig, writer: ArtifactWriter) -> None:
    """Write the IDs and the tokenizer of the model that the training starts from."""
    from recgrit.serving.delta import measure_ids
    from recgrit.serving.writing import find_rows, open_source

    run = Run(config.run.dir)
    source = open_source(run)
    table = source.semantic_ids.take(find_rows(source, run.data.items))
    table.save(writer.path)
    shutil.copyfile(source.directory / TOKENIZER_NAME, writer.path / TOKENIZER_NAME)
    everything = np.ones(len(table), dtype=bool)
    diagnostics = measure_ids(table, run.features.vectors, source.tokenizer, everything)
    level = table.disambiguation_level
    writer.summary = {
        "num_items": len(table),
        "codebook_sizes": list(table.codebook_sizes),
        "disambiguation_level": level,
        "unique_by": config.tokenizer.unique_ids if level is None else "disambiguation",
        "num_moved": 0,
        "diagnostics": diagnostics.to_dict(),
        "warnings": diagnostics.warnings(),
    }


def _fit_semantic_ids(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    import torch

    from recgrit.quantization.diagnostics import diagnose_codes
    from recgrit.semantic_ids.collisions import explain_method, make_unique
    from recgrit.semantic_ids.table import SemanticIdTable

    items, folder = Run(config.run.dir).data.items, writer.path.absolute()
    fit: FitTokenizer | LearnIds = FitTokenizer(config.with_absolute_paths(), folder)
    # The name contains the key of the artifact, so a training with other settings or data is never
    # resumed from this checkpoint.
    checkpoint = (config.run.dir / CHECKPOINTS_NAME / f"{writer.key}.safetensors").absolute()
    latents_path = None
    if config.tokenizer.objective != "reconstruction":
        fit = LearnIds(
            config.with_absolute_paths(), folder, checkpoint, _vectors_path(config).absolute()
        )
        latents_path = folder / LATENTS_NAME
    fit_summary = engine.run_on_processes(fit, lambda epoch: None, writer.path)
    checkpoint.unlink(missing_ok=True)
    assign = AssignCodes(
        config.tokenizer, folder / TOKENIZER_NAME, features_path(config).absolute(), latents_path
    )
    assigned = _assign_codes(config, writer, engine, assign, len(items.item_ids))
    encode, vectors, model = open_tokenizer(assign)
    diagnostics = diagnose_codes(
        assigned.codes,
        config.tokenizer.codebook_sizes,
        assigned.residual_norms,
        _measure_fidelity(encode, vectors, model, assigned.codes),
    )
    for warning in diagnostics.warnings():
        logger.warning(warning)

    def last_level(rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            latents = encode(torch.from_numpy(np.array(vectors[rows])))
            return model.quantizer.last_level(latents)

    unique = make_unique(
        assigned.codes,
        config.tokenizer.codebook_sizes,
        items.item_ids,
        lambda rows: last_level(rows)[0].numpy(),
        last_level(np.arange(1))[1].numpy(),
        method=config.tokenizer.unique_ids,
    )
    if unique.method == "none needed":
        logger.info("No two items shared an ID (%.1f s)", unique.seconds)
    else:
        logger.info("IDs made unique by %s (%.1f s)", explain_method(unique.method), unique.seconds)
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
        **fit_summary,
        "reconstruction_loss": epochs[fit_summary["best_epoch"]]["reconstruction_loss"],
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


def _measure_fidelity(
    encode: Callable[[torch.Tensor], torch.Tensor],
    vectors: npt.NDArray[np.float32],
    model: Tokenizer,
    codes: npt.NDArray[np.int64],
) -> tuple[float, ...]:
    """Return the fidelity of each level, measured on items spread over the catalogue."""
    import torch

    from recgrit.quantization.fidelity import measure_fidelity, spread_rows

    rows = spread_rows(len(codes))
    with torch.no_grad():
        latents = encode(torch.from_numpy(np.array(vectors[rows])))
    return measure_fidelity(latents, torch.from_numpy(codes[rows]), model.quantizer.decode)


@dataclass(frozen=True)
class AssignedCodes:
    """The codes of all items, before they are made unique.

    Args:
        codes: Code of each item (N) at each level (L), int64 ``[N, L]``.
        residual_norms: Mean norm of the items' residuals for each level.
    """

    codes: npt.NDArray[np.int64]
    residual_norms: tuple[float, ...]


def _assign_codes(
    config: ExperimentConfig,
    writer: ArtifactWriter,
    engine: Engine,
    assign: AssignCodes,
    num_items: int,
) -> AssignedCodes:
    """Assign codes to all items in shards, and return the codes in the order of the items."""
    from safetensors.numpy import load_file

    # The name contains a digest of the weights. A fit that is repeated after an interruption may
    # give other weights, and shards of the earlier weights must not be used then.
    shards = plan_shards(
        config,
        f"tokenize-{writer.key}-{digest_file(assign.weights)[:16]}",
        num_items,
        engine.config.shard_items,
        ".safetensors",
    )
    engine.map_shards(assign, shards)
    parts = [load_file(path) for path in shards.paths()]
    shards.remove()
    norms = np.sum([part["residual_norms"] for part in parts], axis=0) / num_items
    codes = np.concatenate([part["codes"] for part in parts])
    return AssignedCodes(codes.astype(np.int64), tuple(norms.tolist()))


TOKENIZE = Stage(
    name="tokenize",
    version=4,
    parents=("prepare", "embed"),
    settings=_settings,
    inputs=_find_inputs,
    build=_build,
    describe=lambda summary: (
        f"{summary['num_items']:,} IDs of {len(summary['codebook_sizes'])} levels, "
        f"{summary['diagnostics']['collision_rate']:.1%} shared before being made unique"
    ),
)
