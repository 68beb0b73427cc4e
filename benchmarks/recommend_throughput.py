"""Measure users per second of recgrit, `generate` of transformers, and full scoring.

    OMP_NUM_THREADS=1 python benchmarks/recommend_throughput.py --json

Each contestant lists ten items per user. The catalogue and the histories have the shape of Amazon
2014 Beauty. The models have their default sizes and untrained weights. The contestants take turns,
and medians are printed.

* ``recgrit`` is the trie retriever with 50 beams.
* ``generate`` is a T5 of transformers in TIGER's size, with about as many parameters. It has 50
  beams and a `prefix_allowed_tokens_fn` over a Python trie of the same IDs.
* ``full_scoring`` is SASRec: one matrix product with all items, then the best ten. It is repeated
  with larger catalogues, up to a million items. The benchmark prints the number of items at which
  recgrit and full scoring cost the same.

The benchmark also measures the cost of gathering the children of trie nodes in a beam step,
compared with the same product whose pattern is computed beforehand. It also measures how the cost
grows with the number of users and with the length of histories.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from printing import print_results
from synthetic import BEAUTY_ITEMS, build_model, build_sasrec, draw_split, draw_table, fit_power
from torch import Tensor
from train_throughput import build_t5

from recgrit.data.splits import SequenceSplit
from recgrit.pipeline import peak_memory_mb
from recgrit.ranking import Ranker, recommend_items
from recgrit.retrieval.frontier import Frontier, ragged_index, score_children
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.ragged_products import sampled_products
from recgrit.retrieval.trie_ranker import BATCH_USERS, TrieRanker
from recgrit.semantic_ids.table import SemanticIdTable
from recgrit.training.loop import choose_device

BEAM_WIDTH, TOP_K = 50, 10


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(call: Callable[[], object]) -> float:
    """Return the seconds of one call, including the work on the accelerator."""
    _wait()
    started = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - started


def take_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call. The calls take turns in every repeat."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(clock(call))
    return {name: statistics.median(values) for name, values in seconds.items()}


def lists_of(ranker: Ranker, split: SequenceSplit, num_users: int) -> Callable[[], object]:
    """Return a call that lists ten items for each of the first users."""
    users = np.arange(num_users)
    return lambda: recommend_items(ranker, split, "test", users, top_k=TOP_K, masked=False)


def generate_by_transformers(
    table: SemanticIdTable, split: SequenceSplit, num_users: int
) -> Callable[[], object]:
    """Return a call that lists ten items per user by `generate`, as published retrievers do."""
    device = choose_device("auto")
    torch.manual_seed(0)
    model = build_t5(table.codebook_sizes).to(device).eval()
    offsets = 2 + np.concatenate([[0], np.cumsum(table.codebook_sizes)[:-1]])
    tokens = table.codes.astype(np.int64) + offsets
    num_levels = tokens.shape[1]
    children: dict[tuple[int, ...], list[int]] = {}
    for row in tokens.tolist():
        for level in range(num_levels):
            below = children.setdefault(tuple(row[:level]), [])
            if not below or row[level] not in below:
                below.append(row[level])
    histories = torch.zeros(num_users, 20 * num_levels, dtype=torch.long, device=device)
    for user in range(num_users):
        read = tokens[split.history(user, "test")[-20:].astype(np.int64)].flatten()
        histories[user, : len(read)] = torch.from_numpy(read)

    def allowed(batch: int, sentence: Tensor) -> list[int]:
        return children.get(tuple(sentence[1:].tolist()), [1])

    def run() -> object:
        return model.generate(
            input_ids=histories,
            attention_mask=(histories > 0).long(),
            num_beams=BEAM_WIDTH,
            num_return_sequences=TOP_K,
            max_new_tokens=num_levels,
            min_new_tokens=num_levels,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
        )

    return run


def gather_seconds(model: TrieRetriever, repeats: int) -> float:
    """Return the seconds of finding the children of all nodes in one step of a beam search.

    The nodes are of the second level, and their children are scored in one sampled product. The
    result is the time through the trie's tables minus the time of the product alone, whose pattern
    is computed beforehand.
    """
    device = model.trie.device
    draw = torch.Generator().manual_seed(0)
    vectors = model.nodes().detach()
    level = model.trie.paths[:, 1].unique()
    nodes = level[torch.randint(len(level), (BATCH_USERS * BEAM_WIDTH,), generator=draw)]
    queries = torch.randn(len(nodes), vectors.shape[1], generator=draw).to(device)

    def through_the_trie() -> Tensor:
        frontier = Frontier.build(model.trie.child_starts, nodes.unsqueeze(0))
        return score_children(
            queries, frontier.firsts[0], frontier.counts[0], vectors, frontier.width
        )

    starts = model.trie.child_starts[nodes]
    counts = model.trie.child_starts[nodes + 1] - starts
    _, _, flat = ragged_index(starts, counts)

    def contiguous() -> Tensor:
        return sampled_products(queries, vectors, F.pad(counts.long().cumsum(0), (1, 0)), flat)

    seconds = take_turns({"gathered": through_the_trie, "contiguous": contiguous}, repeats)
    return seconds["gathered"] - seconds["contiguous"]


def find_crossing(by_size: dict[int, float]) -> float:
    """Return the catalogue size at which a ratio that rises with the size passes 1.

    The ratio is interpolated linearly between the logarithms of sizes and ratios.
    """
    sizes, ratios = (np.log(list(values)) for values in (by_size, by_size.values()))
    return float(np.exp(np.interp(0.0, ratios, sizes)))


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--users", type=int, default=1024)
    parser.add_argument("--generate-users", type=int, default=8)
    parser.add_argument(
        "--sizes",
        default="25000,50000,100000,1000000",
        help="numbers of items of larger catalogues",
    )
    arguments = parser.parse_args()
    device, repeats, users = choose_device("auto"), arguments.repeats, arguments.users
    found: dict[str, float | str | int] = {}
    table = draw_table(BEAUTY_ITEMS)
    split = draw_split(16 * users, BEAUTY_ITEMS)
    model = build_model(table, split).to(device).eval()
    sasrec = build_sasrec(split).to_device("auto")
    ranker = TrieRanker(model, beam_width=BEAM_WIDTH)
    seconds = take_turns(
        {
            "recgrit": lists_of(ranker, split, users),
            "full_scoring": lists_of(sasrec.ranker(), split, users),
            "generate": generate_by_transformers(table, split, arguments.generate_users),
        },
        repeats,
    )
    for name, value in seconds.items():
        asked = arguments.generate_users if name == "generate" else users
        found[f"users_per_second_{name}"] = asked / value
    found["speedup_vs_hf_generate"] = float(found["users_per_second_recgrit"]) / float(
        found["users_per_second_generate"]
    )
    found["speedup_vs_full_scoring"] = seconds["full_scoring"] / seconds["recgrit"]

    step = seconds["recgrit"] / -(-users // BATCH_USERS) / model.trie.num_levels
    found["gather_share_of_step"] = gather_seconds(model, repeats) / step

    growth = {n: take_turns({"": lists_of(ranker, split, n * users)}, 3)[""] for n in (1, 4, 16)}
    found["growth_with_users"] = fit_power(list(growth), list(growth.values()))
    by_length = {}
    for length in (20, 50, 200):
        long = draw_split(users, BEAUTY_ITEMS, mean_length=3.0 * length)
        reader = TrieRanker(
            build_model(table, long, history_length=length).to(device).eval(), beam_width=BEAM_WIDTH
        )
        by_length[length] = take_turns({"": lists_of(reader, long, users)}, 3)[""]
        found[f"users_per_second_history_{length}"] = users / by_length[length]
    found["growth_with_history"] = fit_power(list(by_length), list(by_length.values()))

    by_size = {BEAUTY_ITEMS: float(found["speedup_vs_full_scoring"])}
    for size in map(int, arguments.sizes.split(",")):
        split = draw_split(users, size)
        model = build_model(draw_table(size), split).to(device).eval()
        sasrec = build_sasrec(split).to_device("auto")
        seconds = take_turns(
            {
                "recgrit": lists_of(TrieRanker(model, beam_width=BEAM_WIDTH), split, users),
                "full_scoring": lists_of(sasrec.ranker(), split, users),
            },
            repeats,
        )
        by_size[size] = seconds["full_scoring"] / seconds["recgrit"]
        for name, value in seconds.items():
            found[f"users_per_second_{name}_{size}"] = users / value
        found[f"speedup_vs_full_scoring_{size}"] = by_size[size]
    found["items_where_full_scoring_costs_as_much"] = find_crossing(by_size)
    found |= {
        "peak_rss_mb": peak_memory_mb(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
