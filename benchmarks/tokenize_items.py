"""Measure time and memory of assigning semantic IDs to a million items, end to end.

    OMP_NUM_THREADS=2 python benchmarks/tokenize_items.py --json

The benchmark writes interactions with a million items as a RecBole file, and a file of item vectors
of 64 dimensions. Then it runs the stages prepare, embed and tokenize with the code of `recgrit
tokenize`. The stage tokenize fits codebooks (3 levels of 256 codes) to a random sample, assigns
codes to all items, makes the IDs unique and writes them. The seconds of each stage are printed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from printing import print_results

from recgrit.config import load_config
from recgrit.experiment import ExperimentConfig
from recgrit.pipeline import peak_memory_mb, run_experiment

DIM, CHUNK, ITEMS_PER_USER = 64, 65_536, 10


def write_data(folder: Path, num_items: int) -> None:
    """Write one interaction per item, and item vectors of a hierarchical mixture, in item order."""
    rng = np.random.default_rng(0)
    items = np.arange(num_items)
    pl.DataFrame(
        {
            "user_id:token": items // ITEMS_PER_USER,
            "item_id:token": items,
            "timestamp:float": items % ITEMS_PER_USER,
        }
    ).write_csv(folder / "synthetic.inter", separator="\t")
    topics = rng.normal(size=(500, DIM)).astype(np.float32)
    groups = topics.repeat(40, axis=0)
    groups += 0.5 * rng.normal(size=groups.shape).astype(np.float32)
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(num_items, DIM)
    )
    for start in range(0, num_items, CHUNK):
        rows = vectors[start : start + CHUNK]
        rows[:] = groups[rng.integers(len(groups), size=len(rows))]
        rows += 0.25 * rng.normal(size=rows.shape).astype(np.float32)
    vectors.flush()


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("overrides", nargs="*", help="further settings as key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, arguments.rows)
        written_mb = peak_memory_mb()
        config = load_config(
            ExperimentConfig,
            None,
            [
                "data.source=recbole",
                f"data.path={folder}",
                "data.min_user_interactions=1",
                "data.min_item_interactions=1",
                "embedding.encoder=vectors",
                f"embedding.vectors_path={folder / 'vectors.npy'}",
                "features.text_dim=null",
                "features.cooccurrence_weight=0",
                f"run.dir={folder / 'run'}",
                "tracking.backend=none",
                *arguments.overrides,
            ],
        )
        result = run_experiment(config, until="tokenize")
    found = {
        "rows": arguments.rows,
        "fitted_to": min(arguments.rows, config.tokenizer.sample_items),
        **{f"{stage}_seconds": seconds for stage, seconds in result.seconds.items()},
        "seconds": sum(result.seconds.values()),
        "peak_rss_mb": peak_memory_mb(),
        "peak_rss_before_mb": written_mb,
        "threads": torch.get_num_threads(),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
