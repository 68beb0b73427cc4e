"""What does GRIT-VQ bring? Tokenizers compared by what they are for, and part by part.

    python pipelines/quantizer_study.py configs/amazon2014-beauty.yaml data.path=/path/to/files

Parts, in the order they run: `choice` (which GRIT settings to report as its best, by validation,
on seeds of their own), `recommendation` (the same retriever on the IDs of six tokenizers).

Every finished cell is a row of `OUT/PART.parquet` at once; a study that was stopped goes on where
it was, and several processes may work on different seeds or parts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from recgrit.artifacts import read_manifest
from recgrit.cells import Cell, CellTable
from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.runs import Run, stage_directory
from recgrit.running import run_experiment

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


@dataclass(frozen=True)
class Study:
    """What all parts need.

    Args:
        config: The experiment whose tokenizer is varied.
        out: Where the tables go.
        work: Where the runs of the cells go.
        seeds: Seeds that are reported.
    """

    config: ExperimentConfig
    out: Path
    work: Path
    seeds: tuple[int, ...]

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
        return {"best_epoch": summary["best_epoch"], **summary["best"], **_ids(config)}

    cells = [
        {"data": study.data, "tokenizer": name, "seed": seed}
        for seed in CHOICE_SEEDS
        for name in CANDIDATES
    ]
    study.table("choice").fill(cells, run)


def best_candidate(study: Study) -> str:
    """The candidate, other than the default, with the best validation NDCG@10."""
    rows = study.table("choice").rows()
    ranked = (
        rows.filter(pl.col("tokenizer") != "grit")
        .group_by("tokenizer")
        .agg(pl.col("valid_ndcg_at_10").mean())
        .sort("valid_ndcg_at_10", descending=True)
    )
    return str(ranked["tokenizer"][0])


def compare_recommendation(study: Study) -> None:
    """Metrics on validation and test of the same retriever on each tokenizer's IDs."""
    tokenizers = dict(TOKENIZERS)
    if not study.table("choice").rows().is_empty():
        best = best_candidate(study)
        tokenizers[best] = CANDIDATES[best]

    def run(cell: Cell) -> dict[str, Any]:
        name, seed = str(cell["tokenizer"]), int(cell["seed"] or 0)
        config = study.configure(name, tokenizers[name], seed)
        run_experiment(config, until="evaluate")
        row: dict[str, Any] = {
            "best_epoch": read_manifest(stage_directory(config.run.dir, "train")).summary[
                "best_epoch"
            ],
            **_ids(config),
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


def _ids(config: ExperimentConfig) -> dict[str, Any]:
    """How the tokenizer of a run did."""
    summary = read_manifest(stage_directory(config.run.dir, "tokenize")).summary
    diagnostics = summary["diagnostics"]
    return {
        "reconstruction_loss": summary["reconstruction_loss"],
        "collision_rate": diagnostics["collision_rate"],
        "entropy_ratio": diagnostics["entropy_ratio"],
        "perplexity": [level["perplexity"] for level in diagnostics["levels"]],
    }


PARTS = {"choice": choose_best, "recommendation": compare_recommendation}


def main(
    config: Annotated[Path, typer.Argument(help="The experiment to vary.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value settings.")] = None,
    parts: Annotated[str, typer.Option(help="Parts to run.")] = ",".join(PARTS),
    seeds: Annotated[str, typer.Option(help="Seeds that are reported.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where tables go.")] = Path("runs/quantizer-study"),
    work: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs/quantizer-study"),
) -> None:
    """Run the parts of the study that are not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    base = [
        "retriever.epochs=12",
        f"tracking.uri=sqlite:///{(work / 'mlflow.db').absolute()}",
        "tracking.experiment=quantizer-study",
    ]
    study = Study(
        config=load_config(ExperimentConfig, config, [*base, *(overrides or [])]),
        out=out,
        work=work,
        seeds=tuple(int(seed) for seed in seeds.split(",")),
    )
    for part in parts.split(","):
        PARTS[part](study)


if __name__ == "__main__":
    typer.run(main)
