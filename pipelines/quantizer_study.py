"""Compare GRIT-VQ with other quantizers by reconstruction error, codebook usage and collisions.

    python pipelines/quantizer_study.py configs/amazon2014-beauty.yaml data.path=/path/to/files \
        tokenizer.num_levels=3 tokenizer.codebook_size=256

The study has five parts, which run in this order:

* `ablation` varies radius, transform, start and dead-code resets behind an MLP autoencoder. Without
  an encoder the radius only rescales the gradient of the codes.
* `scaling` fits every quantizer with codebooks from 2^8 codes up, on a mixture of 200,000 vectors.
* `radius` compares radius families under both surrogates, with the gap between latent and code over
  training.
* `cache` measures the cost and the savings of assigning codes with the codebooks of T steps ago.
* `shape` varies the number of levels and the dimensions of the latent.

A cell is one tokenizer with one seed. Each finished cell is written at once as a row of
`OUT/PART.parquet`, so a stopped study resumes with the same command. `--budget small` takes a
minute and shows that everything runs. Its numbers mean nothing. `quantizer_report.py` makes tables
and plots. The study does not measure recommendations. The grid of runs
`configs/grids/tokenizers.yaml` does.

Shapes: N vectors, D dimensions, F features.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer

from recgrit.config import load_config
from recgrit.disk import replacing
from recgrit.errors import ArtifactError, ConfigError, RecgritError
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import run_experiment
from recgrit.quantization.config import TokenizerConfig
from recgrit.quantization.fit import fit_tokenizer
from recgrit.runs import Run

logger = logging.getLogger("study")

# Name of the synthetic data of `draw_mixture`, in place of the name of a data source.
MIXTURE = "mixture"
SMALL = {"epochs": 2, "codebook_size": 16}


class Budget(StrEnum):
    """The share of each part that is run: all cells, or two small cells as a check."""

    FULL = "full"
    SMALL = "small"


# One tokenizer of the study: labels of its row, and settings that override the experiment's.
Cell = tuple[dict[str, Any], dict[str, Any]]

NO_GRADIENT = {"radius": "straight_through", "codebook_weight": 1.0}
# Radius × transform: what trains the codes, and the settings.
ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "straight-through": ("codebook loss", NO_GRADIENT | {"transform": "identity"}),
    "transform only": ("codebook loss, through M and W", NO_GRADIENT),
    "radius only": ("surrogate radius", {"transform": "identity"}),
    "full": ("surrogate radius, through M and W", {}),
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
RADII = ("straight_through", "euclidean", "power", "huber", "pseudo_huber", "clipped")
SURROGATES = ("additive", "multiplicative")
MLP = {"autoencoder": "mlp"}

PARTS: dict[str, list[Cell]] = {
    "ablation": [
        (
            {"method": method, "init": init, "revival": revival, "codes_trained_by": by},
            {**settings, **MLP, "init": init, "reset_interval": 50 if revival else None},
        )
        for init in ("kmeans", "random")
        for revival in (True, False)
        for method, (by, settings) in ABLATION.items()
    ],
    "scaling": [
        (
            {"method": method, "codebook_size": size},
            {**settings, "num_levels": 2, "codebook_size": size, "epochs": 5, "batch_size": 4096},
        )
        for size in (2**power for power in range(8, 15))
        for method, settings in SCALED.items()
    ],
    "radius": [
        (
            {"radius": radius, "surrogate": surrogate},
            {"radius": radius, "surrogate": surrogate, **MLP}
            | (NO_GRADIENT if radius == "straight_through" else {}),
        )
        for radius, surrogate in itertools.product(RADII, SURROGATES)
        if (radius, surrogate) != ("straight_through", "multiplicative")
    ],
    "cache": [
        (labels, labels | {"epochs": 10})
        for codebook_size, batch_size in ((256, 1024), (256, 64), (4096, 64))
        for interval in (1, 4, 8, 16)
        for labels in [
            {"codebook_size": codebook_size, "batch_size": batch_size, "cache_interval": interval}
        ]
    ],
    "shape": [
        (
            {"num_levels": num_levels, "code_dim": code_dim},
            {"num_levels": num_levels, **({**MLP, "code_dim": code_dim} if code_dim else {})},
        )
        for num_levels in (2, 3, 4, 5, 6)
        for code_dim in (None, 16, 32, 64)
    ],
}


def read_rows(path: Path) -> pl.DataFrame:
    """Read all finished cells of a part. The frame is empty if there are none.

    Raises:
        ArtifactError: The file is not Parquet.
    """
    if not path.is_file():
        return pl.DataFrame()
    try:
        return pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}. Move it away to begin anew."
        ) from None


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a finished cell to the file of its part.

    The file is replaced as a whole, so it is never incomplete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pl.DataFrame({name: [value] for name, value in row.items()})
    rows = pl.concat([read_rows(path), new], how="diagonal_relaxed")
    with replacing(path) as temporary:
        rows.write_parquet(temporary)


@functools.cache
def draw_mixture(num_vectors: int, dim: int = 64) -> torch.Tensor:
    """Draw vectors ``[N, D]`` of a hierarchical mixture with unequal clusters and heavy tails.

    The mixture has 500 topics of 40 groups. The shares of the groups fall as 1 / rank. The noise
    around each group is Student's t with 4 degrees of freedom. The seed is 0.

    Args:
        num_vectors: Number of vectors, N.
        dim: Number of dimensions, D.
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


def load_features(config: ExperimentConfig) -> torch.Tensor:
    """Return the features that the experiment's tokenizer is fitted to, float32 ``[N, F]``."""
    run_experiment(config, until="embed")
    return torch.from_numpy(np.array(Run(config.run.dir).features.vectors, dtype=np.float32))


def measure(features: torch.Tensor, config: TokenizerConfig, seed: int) -> dict[str, Any]:
    """Fit one tokenizer and return its errors, codebook usage, collisions and processor time."""
    # Processor time, because other work may run at the same time.
    started = time.process_time()
    fitted = fit_tokenizer(features, config, seed=seed)
    seconds = time.process_time() - started
    diagnostics = fitted.diagnostics
    return {
        "start_loss": fitted.history[0].reconstruction_loss,
        "reconstruction_loss": fitted.history[fitted.best_epoch].reconstruction_loss,
        "last_loss": fitted.history[-1].reconstruction_loss,
        "best_epoch": fitted.best_epoch,
        "collision_rate": diagnostics.collision_rate,
        "entropy_ratio": diagnostics.entropy_ratio,
        "cpu_seconds": seconds,
        "codebook_usage": [level.codebook_usage for level in diagnostics.levels],
        "perplexity": [level.perplexity for level in diagnostics.levels],
        "mean_gaps": [epoch.mean_gap for epoch in fitted.history],
        "losses": [epoch.reconstruction_loss for epoch in fitted.history],
    }


def main(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment to vary.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Further settings as key=value.")
    ] = None,
    parts: Annotated[str, typer.Option(help="Parts to run, separated by commas.")] = ",".join(
        PARTS
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("runs/quantizer-study"),
    work: Annotated[Path, typer.Option(help="Folder of the features.")] = Path(
        "runs/quantizer-study"
    ),
    budget: Annotated[Budget, typer.Option(help="small only checks that all runs.")] = Budget.FULL,
) -> None:
    """Run the cells that are not finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if unknown := [part for part in parts.split(",") if part not in PARTS]:
        raise ConfigError(f"Unknown part(s) {unknown}: choose from {', '.join(PARTS)}.")
    is_small = budget is Budget.SMALL
    values = load_config(ExperimentConfig, config, overrides or []).model_dump()
    values["run"]["dir"] = work / values["data"]["source"].lower().replace("/", "-")
    values["tracking"]["backend"] = "none"
    experiment = ExperimentConfig.model_validate(values)
    features = functools.cache(functools.partial(load_features, experiment))
    for part in parts.split(","):
        path, cells = out / f"{part}.parquet", PARTS[part][:2] if is_small else PARTS[part]
        data = MIXTURE if part == "scaling" else experiment.data.source
        for seed, (labels, settings) in itertools.product(map(int, seeds.split(",")), cells):
            key = {"data": data, **labels, "seed": seed}
            rows = read_rows(path).to_dicts()
            if any(all(row.get(name) == key[name] for name in key) for row in rows):
                continue
            logger.info("%s: %s", part, ", ".join(f"{name}={key[name]}" for name in key))
            drawn = draw_mixture(2_000 if is_small else 200_000) if data == MIXTURE else features()
            changed = values["tokenizer"] | settings | (SMALL if is_small else {})
            append_row(path, key | measure(drawn, TokenizerConfig.model_validate(changed), seed))


if __name__ == "__main__":
    try:
        typer.run(main)
    except RecgritError as error:
        sys.exit(str(error))
