"""What engines are given to do: the long part of a stage, described by settings and paths alone.

Each job is small and goes to whatever process is to do it, reads what it needs from the run folder,
and leaves its result on disk.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recgrit.data.items import read_item_list
from recgrit.data.splits import Split
from recgrit.engines.shards import Report, ShardFunction, Shards
from recgrit.experiment import ExperimentConfig
from recgrit.runs import (
    SHARDS_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    Run,
    read_tokenizer,
    stage_directory,
)

if TYPE_CHECKING:
    from torch import nn

    from recgrit.quantization.config import TokenizerConfig

# Splits that have targets to rank.
TARGETS: tuple[Split, ...] = ("valid", "test")
EPOCHS_NAME = "epochs.parquet"
FACTS_NAME = "facts.json"


@dataclass(frozen=True)
class FitTokenizer:
    """Fits the codebooks; weights, epochs and facts go to a folder."""

    config: ExperimentConfig
    folder: Path

    def __call__(self, report: Report | None) -> None:
        """Called on every rank."""
        import torch

        from recgrit.quantization.fit import fit_codebooks

        # Copied on write: a mapped file that torch takes for writable, and nobody writes to.
        vectors = np.load(features_path(self.config.run.dir), mmap_mode="c")
        fitted = fit_codebooks(
            torch.from_numpy(vectors), self.config.tokenizer, seed=self.config.seed
        )
        facts = {"best_epoch": fitted.best_epoch, "num_fitted": fitted.num_fitted}
        _write_fit(self.folder, TOKENIZER_NAME, fitted.model, fitted.history, facts)


@dataclass(frozen=True)
class TrainRetriever:
    """Trains the retriever, from its last checkpoint on; what comes of it goes to a folder."""

    config: ExperimentConfig
    folder: Path
    checkpoint: Path

    def __call__(self, report: Report | None) -> None:
        """Called on every rank."""
        from recgrit.retrieval.fit import fit_retriever

        run = Run(self.config.run.dir)
        fitted = fit_retriever(
            run.semantic_ids,
            run.data.split,
            run.features.vectors,
            self.config.retriever,
            seed=self.config.seed,
            on_epoch=report,
            checkpoint=self.checkpoint,
        )
        facts = {
            "best_epoch": fitted.best_epoch,
            "num_epochs": len(fitted.history),
            "precision": str(fitted.precision).removeprefix("torch."),
            "num_parameters": fitted.model.num_parameters(),
            "best": fitted.history[fitted.best_epoch - 1].metrics(),
        }
        _write_fit(self.folder, WEIGHTS_NAME, fitted.model, fitted.history, facts)


def _write_fit(
    folder: Path, name: str, model: nn.Module, history: list[Any], facts: dict[str, Any]
) -> None:
    """Once, whatever the number of ranks: all hold the same."""
    from safetensors.torch import save_file

    from recgrit.ranks import is_first

    if not is_first():
        return
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / name)
    pl.DataFrame([asdict(epoch) for epoch in history]).write_parquet(folder / EPOCHS_NAME)
    (folder / FACTS_NAME).write_text(json.dumps(facts), encoding="utf-8")


def take_facts(folder: Path) -> dict[str, Any]:
    """What a fit said of itself, which goes into the manifest."""
    path = folder / FACTS_NAME
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return facts


@dataclass(frozen=True)
class AssignCodes:
    """Gives items their codes: int32 ``[n, L]`` and the sum of the norms of their residuals."""

    config: TokenizerConfig
    weights: Path
    features: Path

    def __call__(self) -> ShardFunction:
        """Load the tokenizer, once a worker."""
        import torch
        from safetensors.torch import save_file

        from recgrit.quantization.fit import assign_codes

        vectors = np.load(self.features, mmap_mode="r")
        model = read_tokenizer(self.weights, self.config, vectors.shape[1])

        def assign(rows: slice, path: Path) -> None:
            codes, norms = assign_codes(model, torch.from_numpy(np.array(vectors[rows])))
            sums = torch.tensor(norms, dtype=torch.float64) * (rows.stop - rows.start)
            save_file({"codes": codes.int(), "residual_norms": sums}, path)

        return assign


@dataclass(frozen=True)
class RankTargets:
    """Lists for all users with a target: those of validation, and behind them those of test.

    What is written has items and scores ``[n, top_k]`` of each kind, as ``test_masked.items``.
    """

    config: ExperimentConfig

    def __call__(self) -> ShardFunction:
        """Load the retriever, once a worker."""
        from safetensors.numpy import save_file

        from recgrit.retrieval.recommend import recommend_items

        run = Run(self.config.run.dir, device=self.config.retriever.device)
        ranker = run.ranker(beam_width=self.config.evaluation.beam_width)
        split = run.data.split
        targets = {name: split.target_users(name) for name in TARGETS}
        num_valid, top_k = len(targets["valid"]), max(self.config.evaluation.ks)

        def rank(rows: slice, path: Path) -> None:
            behind = slice(max(0, rows.start - num_valid), max(0, rows.stop - num_valid))
            users = {"valid": targets["valid"][rows], "test": targets["test"][behind]}
            lists: dict[str, npt.NDArray[Any]] = {}
            for name, masked in itertools.product(TARGETS, (False, True)):
                found = recommend_items(
                    ranker, split, name, users[name], top_k=top_k, masked=masked
                )
                kind = name_report(name, masked)
                lists |= {f"{kind}.items": found.items, f"{kind}.scores": found.scores}
            save_file(lists, path)

        return rank


def name_report(name: str, masked: bool) -> str:
    """What lists and their report are called in artifacts."""
    return f"{name}_masked" if masked else name


@dataclass(frozen=True)
class RecommendLists:
    """Named lists for all users, as `Run.recommend` returns them."""

    config: ExperimentConfig

    def __call__(self) -> ShardFunction:
        """Load the retriever, once a worker."""
        from recgrit.retrieval.listing import name_lists
        from recgrit.retrieval.recommend import recommend_items

        settings = self.config.recommendation
        run = Run(self.config.run.dir, device=self.config.retriever.device)
        ranker = run.ranker(
            beam_width=self.config.evaluation.beam_width,
            allowed_items=(
                read_item_list(settings.allowed_items) if settings.allowed_items else None
            ),
            blocked_items=read_item_list(settings.blocked_items) if settings.blocked_items else (),
        )
        user_ids = run.data.interactions.user_ids

        def recommend(rows: slice, path: Path) -> None:
            found = recommend_items(
                ranker,
                run.data.split,
                "all",
                np.arange(rows.start, rows.stop),
                top_k=settings.top_k,
                masked=settings.exclude_seen,
            )
            name_lists(run.semantic_ids, found.to_polars(), user_ids).write_parquet(path)

        return recommend


def plan_shards(
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


def use_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """The settings as a process with another working folder needs them."""
    lists = {
        name: path.absolute()
        for name in ("allowed_items", "blocked_items")
        if (path := getattr(config.recommendation, name)) is not None
    }
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": config.run.dir.absolute()}),
            "recommendation": config.recommendation.model_copy(update=lists),
        }
    )


def features_path(run_directory: Path) -> Path:
    """The file of the item features of a run."""
    return stage_directory(run_directory, "embed") / "features_vectors.npy"
