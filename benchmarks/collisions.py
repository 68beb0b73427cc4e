"""Measure the time to make ten million semantic IDs unique.

    OMP_NUM_THREADS=1 python benchmarks/collisions.py --json

The IDs have codes of three levels, drawn at random. In a *skewed* catalogue the codes of the second
level follow a power law. Some prefixes then have more items than the last level has codes, so only
a disambiguation level makes the IDs unique. An *even* catalogue has 65,536 codes on the second
level, so greedy resolution makes the IDs unique.
"""

from __future__ import annotations

import argparse

import numpy as np
import polars as pl
from printing import print_results

from recgrit.pipeline import peak_memory_mb
from recgrit.semantic_ids.collisions import make_unique

DIM, SIZE, EVEN_SIZE = 16, 256, 65_536


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, SIZE, (arguments.rows, 3))
    item_ids = pl.Series([f"B{i:09d}" for i in range(arguments.rows)])
    last_codes = rng.standard_normal((SIZE, DIM), dtype=np.float32)
    found: dict[str, float | str] = {"rows": arguments.rows}
    for name, second, size, method in (
        ("skewed_disambiguation", rng.zipf(1.3, arguments.rows) % SIZE, SIZE, "disambiguation"),
        ("skewed_greedy", rng.zipf(1.3, arguments.rows) % SIZE, SIZE, "greedy"),
        ("even_greedy", rng.integers(0, EVEN_SIZE, arguments.rows), EVEN_SIZE, "greedy"),
    ):
        codes[:, 1] = second
        unique = make_unique(
            codes,
            (SIZE, size, SIZE),
            item_ids,
            lambda rows: rng.standard_normal((len(rows), DIM), dtype=np.float32),
            last_codes,
            method=method,
        )
        found[f"{name}_seconds"] = unique.seconds
        found[f"{name}_became"] = unique.method
        found[f"{name}_moved"] = unique.num_moved
    found["peak_rss_mb"] = peak_memory_mb()
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
