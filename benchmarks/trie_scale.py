"""Measure building the trie and a step of the beam search, by size of the catalogue.

    OMP_NUM_THREADS=1 python benchmarks/trie_scale.py --json

The IDs are unique. They have three levels with uneven codes, 256 per level or 1,024 for more than
2^20 items, and a disambiguation level. Each size runs in its own process, and its peak memory is
printed. The time of a step is the time of a beam search, divided by its number of levels. The
search has 128 users, 50 beams and node vectors of 32 dimensions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from synthetic import draw_table

from recgrit.retrieval.decoding import beam_search
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_walk import TrieWalk
from recgrit.semantic_ids.trie import build_trie

USERS, BEAM_WIDTH, DIM = 128, 50, 32


def peak_mb() -> float:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_peak() -> float:
    """Reset the peak memory to the memory that is held now, and return it in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def measure(num_items: int, repeats: int, with_step: bool) -> dict[str, float]:
    """Build the trie of a catalogue, search it, and return times and memory.

    Args:
        num_items: Number of items in the catalogue.
        repeats: Number of timed searches.
        with_step: True also times the beam search.
    """
    codebook_size = 256 if num_items <= 2**20 else 1024
    table = draw_table(num_items, codebook_size)
    before = reset_peak()
    started = time.perf_counter()
    trie = build_trie(table.codes)
    found = {"seconds": time.perf_counter() - started, "peak_mb": peak_mb() - before}
    arrays = [value for value in vars(trie).values() if isinstance(value, np.ndarray)]
    found["bytes_per_item"] = sum(array.nbytes for array in arrays) / num_items
    if not with_step:
        return found
    torch.manual_seed(0)
    model = TrieRetriever(
        table.codes,
        table.codebook_sizes,
        disambiguation_level=table.disambiguation_level,
        train_items=torch.ones(num_items, dtype=torch.bool),
        model_dim=DIM,
        num_layers=1,
        num_heads=1,
    ).eval()
    nothing = torch.zeros(USERS, 1, dtype=torch.long)
    seen = model.find_seen(nothing, nothing.bool())
    with torch.inference_mode():
        walk = TrieWalk(model, model.nodes(), torch.randn(USERS, DIM), seen)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        beam_search(model.trie, walk, beam_width=BEAM_WIDTH, top_k=10)
        seconds.append(time.perf_counter() - started)
    found["step_ms"] = 1e3 * statistics.median(seconds[1:]) / model.trie.num_levels
    return found


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", default="10000,100000,1000000,10000000")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    for size in map(int, arguments.sizes.split(",")):
        with context.Pool(1) as pool:
            values = pool.apply(measure, (size, arguments.repeats, True))
        found |= {f"{name}_{size}": value for name, value in values.items()}
        print(f"{size:,} items: " + ", ".join(f"{k} {v:,.4g}" for k, v in values.items()))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
