"""Compare a retriever that has one embedding row per node with one that has node buckets.

    OMP_NUM_THREADS=1 python benchmarks/node_buckets.py --json

The benchmark measures a training step, a beam search and the peak memory of training. The IDs are
unique. They have three levels of 256 codes with uneven shares and a disambiguation level. The
480,000 items give a million nodes, and training can reach all of them. A step is forward pass,
backward pass, gradient clipping and AdamW on about 1,024 targets. The histories are as long as
those of Beauty. A search ranks for 128 users with 50 beams. Each retriever runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time

import numpy as np
import torch
from synthetic import describe_catalogue, draw_split, draw_table
from trie_scale import peak_mb, reset_peak

from recgrit.models.trie import TrieModel
from recgrit.ranking import Histories
from recgrit.retrieval.config import RetrieverConfig
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.training.batches import build_windows, iterate_steps
from recgrit.training.gradients import plan_step
from recgrit.training.loop import MAX_GRAD_NORM

USERS, SEARCH_USERS, BEAM_WIDTH, TOP_K, BATCH_TARGETS = 20_000, 128, 50, 10, 1024


def measure(num_items: int, node_buckets: int, steps: int) -> dict[str, float]:
    """Measure training steps, then searches, of one retriever.

    Args:
        num_items: Number of items in the catalogue.
        node_buckets: Number of embedding rows that all nodes share. 0 gives each node its own row.
        steps: Number of timed steps, and of timed searches.
    """
    table, split = draw_table(num_items), draw_split(USERS, num_items)
    before = reset_peak()
    torch.manual_seed(0)
    config = RetrieverConfig(
        neighbours=(),
        size="constant" if node_buckets else "catalogue",
        node_buckets=node_buckets,
    )
    model = TrieModel.build(describe_catalogue(num_items, table), config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    windows = build_windows(split, config.history_length)
    batches = iterate_steps(
        split, windows, batch_targets=BATCH_TARGETS, generator=np.random.default_rng(0)
    )
    seconds = []
    for _ in range(steps + 1):
        (batch,) = next(batches).parts
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model.loss(plan_step(model, batch)).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    found = {
        "nodes": model.trie.num_nodes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_ms": 1e3 * statistics.median(seconds[1:]),
        "peak_mb": peak_mb() - before,
    }
    ranker = TrieRanker(model, beam_width=BEAM_WIDTH)
    items = torch.from_numpy(split.items[: 8 * SEARCH_USERS]).long().view(SEARCH_USERS, 8)
    histories = Histories(items, torch.full((SEARCH_USERS,), 8))
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        ranker.rank(histories, top_k=TOP_K, excluded=None)
        seconds.append(time.perf_counter() - started)
    return found | {"search_ms": 1e3 * statistics.median(seconds[1:])}


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--items", type=int, default=480_000)
    parser.add_argument("--buckets", type=int, default=65_536)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    for name, node_buckets in (("all", 0), ("buckets", arguments.buckets)):
        with context.Pool(1) as pool:
            values = pool.apply(measure, (arguments.items, node_buckets, arguments.steps))
        found |= {f"{key}_{name}": value for key, value in values.items()}
        print(f"{name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in values.items()))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
