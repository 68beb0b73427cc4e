"""What does GRIT-VQ bring? Tokenizers compared by what they are for, and part by part.

    python pipelines/quantizer_study.py configs/amazon2014-beauty.yaml data.path=/path/to/files

Parts, in the order they run:

* `choice`: which GRIT settings to report as its best, by validation, on seeds of their own;
* `recommendation`: the same retriever on the IDs of six tokenizers;
* `ablation`: radius, transform, start and revival, behind an MLP autoencoder (without an encoder
  the radius only rescales the codes' gradient);
* `scaling`: codebooks from 2^8 codes up, every quantizer, on a mixture of 200,000 vectors;
* `radius`: radius families under both surrogates, with the gap over training;
* `cache`: what assigning by codebooks of T steps ago costs and saves;
* `shape`: number of levels and size of the latent.

Every finished cell is a row of `OUT/PART.parquet` at once; a study that was stopped goes on where
it was, and several processes may work on different seeds or parts. `--budget small` takes minutes
and shows that everything runs; its numbers mean nothing. `quantizer_report.py` makes tables and
plots.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer

from recgrit.artifacts import read_manifest
from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.errors import RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import fit_tokenizer
from recgrit.running import run_experiment
from recgrit.runs import Run, stage_directory
from recgrit.tracking.start import start_tracking

# Settings of `tokenizer` by what a row calls them. All start from k-means on all items and, but for
# plain k-means, compare directions from the second level on and revive dead codes.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "ema": {"quantizer": "ema"},
    "rq_kmeans": {"quantizer": "rq_kmeans", "normalization": "none"},
    "rq_kmeans_normalized": {"quantizer": "rq_kmeans"},
    "diveq": {"quantizer": "diveq"},
    "grit": {},
}
# What "GRIT best" is chosen from.
CANDIDATES: dict[str, dict[str, Any]] = {
    "grit": {},
    "grit_noise": {"direction_noise": 0.3},
    "grit_w_only": {"transform_rank": 0},
    "grit_plain_residuals": {"normalization": "none"},
    "grit_mlp": {"autoencoder": "mlp"},
}
CHOICE_SEEDS = (100, 101)

# Radius × transform. Straight-through gives codes no gradient, so a codebook loss trains them.
ABLATION: dict[str, dict[str, Any]] = {
    "straight-through": {
        "radius": "straight_through",
        "transform": "identity",
        "codebook_weight": 1.0,
    },
    "transform only": {"radius": "straight_through", "codebook_weight": 1.0},
    "radius only": {"transform": "identity"},
    "full": {},
}
CODES_TRAINED_BY = {
    "straight-through": "codebook loss",
    "transform only": "codebook loss, through M and W",
    "radius only": "surrogate radius",
    "full": "surrogate radius, through M and W",
}
SCALED: dict[str, dict[str, Any]] = {
    "grit": {},
    "grit, random start": {"init": "random"},
    "straight_through": {"quantizer": "straight_through"},
    "straight_through, random start, no revival": {
        "quantizer": "straight_through",
        "init": "random",
        "reset_interval": None,
    },
    "ema": {"quantizer": "ema"},
    "simvq": {"quantizer": "simvq"},
    "simvq, random start": {"quantizer": "simvq", "init": "random"},
    "rotation": {"quantizer": "rotation"},
    "diveq": {"quantizer": "diveq"},
    "rq_kmeans": {"quantizer": "rq_kmeans"},
    "opq": {"quantizer": "opq"},
}
# More than one seed up to this many codes.
ONE_SEED_ABOVE = 2**12
RADII = ("straight_through", "euclidean", "power", "huber", "pseudo_huber", "clipped")


class Budget(StrEnum):
    """How much of the grid is run."""

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True)
class Study:
    """What all parts need.

    Args:
        config: The experiment whose tokenizer is varied.
        out: Where the tables go.
        work: Where the runs of the cells go.
        seeds: Seeds that are reported.
        budget: How much of the grid.
        finalists: Tokenizers whose recommendations are compared, or all if empty.
    """

    config: ExperimentConfig
    out: Path
    work: Path
    seeds: tuple[int, ...]
    budget: Budget
    finalists: tuple[str, ...] = ()

    @property
    def is_small(self) -> bool:
        """Whether only to see that it runs."""
        return self.budget is Budget.SMALL

    def shrink(self, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """All variants, or the first two on a small budget."""
        return dict(list(variants.items())[:2]) if self.is_small else variants

    @functools.cached_property
    def features(self) -> torch.Tensor:
        """What the experiment's tokenizer is fitted to, float32 [N, F]."""
        config = self.configure("features", {}, seed=self.config.seed)
        run_experiment(config, until="embed")
        return torch.from_numpy(np.array(Run(config.run.dir).features.vectors, dtype=np.float32))

    def table(self, part: str) -> CellTable:
        """The table of a part."""
        return CellTable(self.out / f"{part}.parquet")

    @property
    def data(self) -> str:
        """The name of the data set."""
        return self.config.data.source

    def configure(self, name: str, tokenizer: Mapping[str, Any], seed: int) -> ExperimentConfig:
        """The experiment with another tokenizer and seed, in a run folder of its own."""
        values = self.config.model_dump()
        values["seed"] = seed
        values["tokenizer"] |= tokenizer
        values["run"] = {
            "dir": self.work / self.data.replace("/", "-") / f"{name}-{seed}",
            "cache_dir": self.work / "cache",
        }
        values["evaluation"]["exact_users"] = 0
        return ExperimentConfig.model_validate(values)


def choose_best(study: Study) -> None:
    """Validation metrics of each GRIT candidate, on seeds that are not reported."""

    def run(cell: Cell) -> dict[str, Any]:
        name, seed = str(cell["tokenizer"]), int(cell["seed"] or 0)
        config = study.configure(name, CANDIDATES[name], seed)
        run_experiment(config, until="train")
        summary = read_manifest(stage_directory(config.run.dir, "train")).summary
        return {"best_epoch": summary["best_epoch"], **summary["best"], **_describe_ids(config)}

    cells = [
        {"data": study.data, "tokenizer": name, "seed": seed}
        for seed in CHOICE_SEEDS
        for name in study.shrink(CANDIDATES)
    ]
    study.table("choice").fill(cells, run)


def best_candidate(study: Study) -> str | None:
    """The candidate, other than the default, with the best validation NDCG@10.

    None until the choice is finished.
    """
    rows = study.table("choice").rows()
    if rows.height < len(study.shrink(CANDIDATES)) * len(CHOICE_SEEDS):
        return None
    ranked = (
        rows.filter(pl.col("tokenizer") != "grit")
        .group_by("tokenizer")
        .agg(pl.col("valid_ndcg_at_10").mean())
        .sort("valid_ndcg_at_10", descending=True)
    )
    return str(ranked["tokenizer"][0])


def compare_recommendation(study: Study) -> None:
    """Metrics on validation and test of the same retriever on each tokenizer's IDs."""
    tokenizers = dict(study.shrink(TOKENIZERS))
    best = best_candidate(study)
    if best is not None:
        tokenizers[best] = CANDIDATES[best]
    if study.finalists:
        tokenizers = {name: {**CANDIDATES, **TOKENIZERS}[name] for name in study.finalists}

    def run(cell: Cell) -> dict[str, Any]:
        name, seed = str(cell["tokenizer"]), int(cell["seed"] or 0)
        config = study.configure(name, tokenizers[name], seed)
        run_experiment(config, until="evaluate")
        row: dict[str, Any] = {
            "best_epoch": read_manifest(stage_directory(config.run.dir, "train")).summary[
                "best_epoch"
            ],
            **_describe_ids(config),
        }
        for split, report in Run(config.run.dir).reports.items():
            if not split.startswith("popularity"):
                row |= {f"{split}_{metric}": value for metric, value in report.metrics().items()}
                row[f"{split}_ranks"] = pl.Series(report.ranks, dtype=pl.Int16)
        return row

    cells = [
        {"data": study.data, "tokenizer": name, "seed": seed}
        for seed in study.seeds
        for name in tokenizers
    ]
    study.table("recommendation").fill(cells, run)


def _describe_ids(config: ExperimentConfig) -> dict[str, Any]:
    """How the tokenizer of a run did."""
    summary = read_manifest(stage_directory(config.run.dir, "tokenize")).summary
    diagnostics = summary["diagnostics"]
    return {
        "reconstruction_loss": summary["reconstruction_loss"],
        "collision_rate": diagnostics["collision_rate"],
        "entropy_ratio": diagnostics["entropy_ratio"],
        "perplexity": [level["perplexity"] for level in diagnostics["levels"]],
    }


def ablate(study: Study) -> None:
    """Radius × transform, from both starts, with and without revival."""

    def run(cell: Cell) -> dict[str, Any]:
        settings = ABLATION[str(cell["method"])] | {
            "init": cell["init"],
            "reset_interval": 50 if cell["revival"] else None,
            "autoencoder": "mlp",
        }
        return {
            "codes_trained_by": CODES_TRAINED_BY[str(cell["method"])],
            **_fit(study, "ablation", study.features, settings, cell),
        }

    cells = [
        {"data": study.data, "method": method, "init": init, "revival": revival, "seed": seed}
        for seed in study.seeds
        for init in ("kmeans", "random")
        for revival in (True, False)
        for method in study.shrink(ABLATION)
    ]
    study.table("ablation").fill(cells, run)


def scale(study: Study) -> None:
    """Every quantizer at growing codebook sizes, two levels, on the mixture."""
    num_vectors = 2_000 if study.is_small else 200_000
    sizes = (16, 32) if study.is_small else tuple(2**power for power in range(8, 15))

    def run(cell: Cell) -> dict[str, Any]:
        settings = SCALED[str(cell["method"])] | {
            "num_levels": 2,
            "codebook_size": cell["codebook_size"],
            "epochs": 5,
            "batch_size": 4096,
        }
        return _fit(study, "scaling", draw_mixture(num_vectors), settings, cell)

    cells = [
        {"data": "mixture", "method": method, "codebook_size": size, "seed": seed}
        for size in sizes
        for seed in (study.seeds if size <= ONE_SEED_ABOVE else study.seeds[:1])
        for method in study.shrink(SCALED)
    ]
    study.table("scaling").fill(cells, run)


@functools.cache
def draw_mixture(num_vectors: int, dim: int = 64) -> torch.Tensor:
    """A hierarchical mixture with clusters of very different sizes and heavy tails, [N, D].

    500 topics, in each up to 40 groups whose shares fall as 1 / rank; Student's t noise of 4
    degrees of freedom around each group. Seed 0.
    """
    draw = np.random.default_rng(0)
    num_topics, groups_per_topic = 500, 40
    topics = draw.normal(size=(num_topics, 1, dim))
    groups = topics + 0.5 * draw.normal(size=(num_topics, groups_per_topic, dim))
    shares = 1 / np.arange(1, num_topics * groups_per_topic + 1)
    chosen = draw.choice(
        draw.permutation(num_topics * groups_per_topic), size=num_vectors, p=shares / shares.sum()
    )
    noise = 0.25 * draw.standard_t(4, size=(num_vectors, dim))
    return torch.from_numpy((groups.reshape(-1, dim)[chosen] + noise).astype(np.float32))


def vary_radius(study: Study) -> None:
    """Radius families under both surrogates; a codebook loss where the radius gives no gradient."""

    def run(cell: Cell) -> dict[str, Any]:
        radius = cell["radius"]
        settings = {
            "radius": radius,
            "surrogate": cell["surrogate"],
            "codebook_weight": 1.0 if radius == "straight_through" else 0.0,
            "autoencoder": "mlp",
        }
        return _fit(study, "radius", study.features, settings, cell)

    cells = [
        {"data": study.data, "radius": radius, "surrogate": surrogate, "seed": seed}
        for seed in study.seeds
        for radius in (RADII[:2] if study.is_small else RADII)
        for surrogate in ("additive", "multiplicative")
        if (radius, surrogate) != ("straight_through", "multiplicative")
    ]
    study.table("radius").fill(cells, run)


def vary_cache(study: Study) -> None:
    """Steps between refreshes of the codebooks used for assignment."""

    def run(cell: Cell) -> dict[str, Any]:
        settings = {
            "cache_interval": cell["cache_interval"],
            "batch_size": cell["batch_size"],
            "codebook_size": cell["codebook_size"],
            "epochs": 10,
        }
        return _fit(study, "cache", study.features, settings, cell)

    shapes = ((16, 64),) if study.is_small else ((256, 1024), (256, 64), (4096, 64))
    cells = [
        {
            "data": study.data,
            "codebook_size": codebook_size,
            "batch_size": batch_size,
            "cache_interval": interval,
            "seed": seed,
        }
        for seed in study.seeds
        for codebook_size, batch_size in shapes
        for interval in (1, 4, 8, 16)
    ]
    study.table("cache").fill(cells, run)


def vary_shape(study: Study) -> None:
    """Number of levels with and without autoencoder, and size of the latent."""

    def run(cell: Cell) -> dict[str, Any]:
        settings: dict[str, Any] = {"num_levels": cell["num_levels"]}
        if cell["code_dim"] is not None:
            settings |= {"autoencoder": "mlp", "code_dim": cell["code_dim"]}
        return _fit(study, "shape", study.features, settings, cell)

    cells: list[Cell] = [
        {"data": study.data, "num_levels": num_levels, "code_dim": code_dim, "seed": seed}
        for seed in study.seeds
        for num_levels in ((2,) if study.is_small else (2, 3, 4, 5, 6))
        for code_dim in ((None, 8) if study.is_small else (None, 16, 32, 64))
    ]
    study.table("shape").fill(cells, run)


def _fit(
    study: Study, part: str, features: torch.Tensor, settings: Mapping[str, Any], cell: Cell
) -> dict[str, Any]:
    """Fit one tokenizer, track it, and say how it did."""
    values = study.config.tokenizer.model_dump() | {"unique_ids": "disambiguation"} | settings
    if study.is_small:
        values["epochs"] = 2
    config = TokenizerConfig.model_validate(values)
    name = "-".join(str(value) for value in (part, *cell.values()))
    with start_tracking(
        study.config.tracking, run_name=name, default_directory=study.work
    ) as tracker:
        tracker.log_params({"part": part, "seed": cell["seed"], "tokenizer": values})
        # Time of the processor: other cells may be running beside this one.
        started = time.process_time()
        fitted = fit_tokenizer(features, config, seed=int(cell["seed"] or 0))
        cpu_seconds = time.process_time() - started
        diagnostics = fitted.diagnostics
        best = fitted.history[fitted.best_epoch]
        row: dict[str, Any] = {
            "start_loss": fitted.history[0].reconstruction_loss,
            "reconstruction_loss": best.reconstruction_loss,
            "last_loss": fitted.history[-1].reconstruction_loss,
            "best_epoch": fitted.best_epoch,
            "collision_rate": diagnostics.collision_rate,
            "entropy_ratio": diagnostics.entropy_ratio,
            "cpu_seconds": cpu_seconds,
        }
        tracker.log_metrics(row)
    return row | {
        "codebook_usage": [level.codebook_usage for level in diagnostics.levels],
        "perplexity": [level.perplexity for level in diagnostics.levels],
        "mean_gaps": [epoch.mean_gap for epoch in fitted.history],
        "losses": [epoch.reconstruction_loss for epoch in fitted.history],
    }


PARTS = {
    "choice": choose_best,
    "recommendation": compare_recommendation,
    "ablation": ablate,
    "scaling": scale,
    "radius": vary_radius,
    "cache": vary_cache,
    "shape": vary_shape,
}


def main(
    config: Annotated[Path, typer.Argument(help="The experiment to vary.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    parts: Annotated[str, typer.Option(help="Parts to run.")] = ",".join(PARTS),
    seeds: Annotated[str, typer.Option(help="Seeds that are reported.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where tables go.")] = Path("runs/quantizer-study"),
    work: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs/quantizer-study"),
    budget: Annotated[Budget, typer.Option(help="small only shows that it runs.")] = Budget.FULL,
    finalists: Annotated[
        str, typer.Option(help="Tokenizers whose recommendations are compared; all if empty.")
    ] = "",
) -> None:
    """Run the parts of the study that are not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen = parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise typer.BadParameter(f"Unknown part(s) {unknown}: choose from {', '.join(PARTS)}.")
    named = tuple(filter(None, finalists.split(",")))
    known = [*TOKENIZERS, *(name for name in CANDIDATES if name not in TOKENIZERS)]
    if unknown := [name for name in named if name not in known]:
        raise typer.BadParameter(f"Unknown finalist(s) {unknown}: choose from {', '.join(known)}.")
    base = [
        f"retriever.epochs={1 if budget is Budget.SMALL else 12}",
        f"tracking.uri=sqlite:///{(work / 'mlflow.db').absolute()}",
        "tracking.experiment=quantizer-study",
    ]
    study = Study(
        config=load_config(ExperimentConfig, config, [*base, *(overrides or [])]),
        out=out,
        work=work,
        seeds=tuple(int(seed) for seed in seeds.split(",")),
        budget=budget,
        finalists=named,
    )
    for part in chosen:
        PARTS[part](study)


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
