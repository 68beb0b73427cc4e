"""From feature vectors to the item-ID table."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.artifacts import ArtifactWriter
from recgrit.checksums import digest_file
from recgrit.engines.engine import Engine
from recgrit.engines.shards import Report, ShardFunction
from recgrit.experiment import ExperimentConfig
from recgrit.layout import (
    CHECKPOINTS_NAME,
    EPOCHS_NAME,
    ID_EPOCHS_NAME,
    LATENTS_NAME,
    TOKENIZER_NAME,
    stage_directory,
)
from recgrit.manifests import Origin
from recgrit.quantization.config import TokenizerConfig
from recgrit.runs import Run, read_tokenizer
from recgrit.stages.stage import Stage, as_settings, plan_shards
from recgrit.tracking.tracker import Tracker

if TYPE_CHECKING:
    import torch

    from recgrit.quantization.autoencoder import Tokenizer
    from recgrit.quantization.fit import FittedCodebooks, TokenizerEpoch
    from recgrit.semantic_ids.table import SemanticIdTable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitTokenizer:
    """Fits the codebooks in every process; the first writes the weights and the epochs."""

    config: ExperimentConfig
    folder: Path

    def __call__(self, report: Report) -> dict[str, Any]:
        """The fit summary."""
        import torch

        from recgrit import distributed
        from recgrit.quantization.fit import fit_codebooks

        # Copied on write: a mapped file that torch takes for writable, and nobody writes to.
        vectors = np.load(_features_path(self.config), mmap_mode="c")
        fitted = fit_codebooks(
            torch.from_numpy(vectors), self.config.tokenizer, seed=self.config.seed
        )
        if distributed.is_first():
            _save_tokenizer(fitted.model, fitted.history, self.folder)
        return _describe_fit(fitted)


@dataclass(frozen=True)
class LearnIds:
    """Learns item vectors, and codebooks with them, in every process; the first writes them."""

    config: ExperimentConfig
    folder: Path
    checkpoint: Path
    kept: Path

    def __call__(self, report: Report) -> dict[str, Any]:
        """The fit summary."""
        import torch

        from recgrit import distributed
        from recgrit.models.learned_ids import learn_ids

        run = Run(self.config.run.dir)
        learned = learn_ids(
            torch.from_numpy(np.array(run.features.vectors, dtype=np.float32)),
            run.data.split,
            self.config.tokenizer,
            self.config.item_vectors,
            seed=self.config.seed,
            checkpoint=self.checkpoint,
            kept=self.kept,
        )
        if distributed.is_first():
            _save_tokenizer(learned.tokenizer, learned.fit.history, self.folder)
            np.save(self.folder / LATENTS_NAME, learned.latents.cpu().numpy())
            epochs = pl.DataFrame([asdict(epoch) for epoch in learned.id_epochs])
            epochs.write_parquet(self.folder / ID_EPOCHS_NAME)
        return {
            **_describe_fit(learned.fit),
            "vectors": learned.vectors.to_json(),
            "ids": asdict(learned.id_epochs[learned.best_epoch]),
        }


def _save_tokenizer(model: Tokenizer, history: list[TokenizerEpoch], folder: Path) -> None:
    from safetensors.torch import save_file

    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / TOKENIZER_NAME)
    pl.DataFrame([asdict(epoch) for epoch in history]).write_parquet(folder / EPOCHS_NAME)


def _describe_fit(fitted: FittedCodebooks) -> dict[str, Any]:
    return {"best_epoch": fitted.best_epoch, "num_fitted": fitted.num_fitted}


@dataclass(frozen=True)
class AssignCodes:
    """Gives items their codes: int32 ``[n, L]`` and the sum of the norms of their residuals.

    Args:
        config: Of the tokenizer.
        weights: Its file.
        features: The file of the items' features.
        latents: The file of their learned latents; None where features are encoded.
    """

    config: TokenizerConfig
    weights: Path
    features: Path
    latents: Path | None

    def __call__(self) -> ShardFunction:
        """Load the tokenizer, once a worker."""
        import torch
        from safetensors.torch import save_file

        from recgrit.quantization.fit import assign_codes

        encode, vectors, model = _open_tokenizer(self)

        def assign(rows: slice, path: Path) -> None:
            part = torch.from_numpy(np.array(vectors[rows]))
            codes, norms = assign_codes(model.quantizer, part, encode)
            sums = torch.tensor(norms, dtype=torch.float64) * (rows.stop - rows.start)
            save_file({"codes": codes.int(), "residual_norms": sums}, path)

        return assign


def _open_tokenizer(
    files: AssignCodes,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], npt.NDArray[np.float32], Tokenizer]:
    """What makes latents of the rows of an array, the array, and the tokenizer."""
    features = np.load(files.features, mmap_mode="r")
    model = read_tokenizer(files.weights, files.config, features.shape[1])
    if files.latents is None:
        return model.encode_latent, features, model
    return lambda latents: latents, np.load(files.latents, mmap_mode="r"), model


def _features_path(config: ExperimentConfig) -> Path:
    return stage_directory(config.run.dir, "embed") / "features_vectors.npy"


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """Those of learning item vectors count where they are learned."""
    tokenizer = config.tokenizer.model_dump(mode="json", exclude={"semantic_ids_path"})
    if config.tokenizer.objective == "reconstruction" or config.tokenizer.semantic_ids_path:
        return as_settings(config.seed, tokenizer=tokenizer)
    vectors = config.item_vectors.model_dump(mode="json", exclude={"device"})
    return as_settings(config.seed, tokenizer=tokenizer, item_vectors=vectors)


def _vectors_path(config: ExperimentConfig) -> Path:
    """The cache of learned item vectors, which other codebooks of the same can start from."""
    together = {"quantized_epochs", "quantized_learning_rate"}
    settings = config.item_vectors.model_dump(mode="json", exclude={"device", *together})
    run = Run(config.run.dir)
    parents = {name: run.manifest(name).fingerprint for name in TOKENIZE.parents}
    origin = Origin(
        "item_vectors", TOKENIZE.version, as_settings(config.seed, item_vectors=settings), parents
    )
    return config.run.cache / f"item-vectors-{origin.key}.safetensors"


def _find_inputs(config: ExperimentConfig) -> tuple[Path, ...]:
    """A published table of IDs, and what says which item has which number."""
    from recgrit.semantic_ids.published import find_published_files

    path = config.tokenizer.semantic_ids_path
    return () if path is None else find_published_files(path)


def _build(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
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
    """Give the IDs to other items, or other IDs to the items: a negative control."""
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
    logger.warning("tokenizer.control=%s: the IDs mean nothing", config.tokenizer.control)
    return changed


def _tell_apart(
    codes: npt.NDArray[np.int64], sizes: tuple[int, ...], item_ids: pl.Series, titles: pl.Series
) -> SemanticIdTable:
    """A table of these codes, with one more level where items share an ID."""
    from recgrit.semantic_ids.collisions import disambiguate
    from recgrit.semantic_ids.table import SemanticIdTable

    level, found = None, codes.astype(np.int32)
    if len(np.unique(codes, axis=0)) < len(codes):
        unique = disambiguate(codes, sizes, item_ids)
        found, sizes, level = unique.codes, unique.codebook_sizes, unique.disambiguation_level
    return SemanticIdTable(found, sizes, level, item_ids, titles)


def _take_published_ids(path: Path, config: ExperimentConfig, writer: ArtifactWriter) -> None:
    """IDs of a published table; those that items share get one more level."""
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


def _fit_semantic_ids(
    config: ExperimentConfig, writer: ArtifactWriter, tracker: Tracker, engine: Engine
) -> None:
    import torch

    from recgrit.quantization.diagnostics import diagnose_codes
    from recgrit.semantic_ids.collisions import make_unique
    from recgrit.semantic_ids.table import SemanticIdTable

    items, folder = Run(config.run.dir).data.items, writer.path.absolute()
    fit: FitTokenizer | LearnIds = FitTokenizer(config.with_absolute_paths(), folder)
    # Named by what is learned from what: another training never goes on from here.
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
        config.tokenizer, folder / TOKENIZER_NAME, _features_path(config).absolute(), latents_path
    )
    assigned = _assign_codes(config, writer, engine, assign, len(items.item_ids))
    encode, vectors, model = _open_tokenizer(assign)
    diagnostics = diagnose_codes(
        assigned.codes, config.tokenizer.codebook_sizes, assigned.residual_norms
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


@dataclass(frozen=True)
class AssignedCodes:
    """Codes int64 ``[N, L]`` of all items, and the mean norm of their residuals by level."""

    codes: npt.NDArray[np.int64]
    residual_norms: tuple[float, ...]


def _assign_codes(
    config: ExperimentConfig,
    writer: ArtifactWriter,
    engine: Engine,
    assign: AssignCodes,
    num_items: int,
) -> AssignedCodes:
    """Have all items given their codes."""
    from safetensors.numpy import load_file

    # Named by the weights too: a fit need not give the same bytes again after an interruption.
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
        f"{summary['diagnostics']['collision_rate']:.1%} were shared before"
    ),
)
