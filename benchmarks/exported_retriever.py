"""Compare the retriever's networks with their exports by torch.export, Inductor and ONNX.

    OMP_NUM_THREADS=1 python benchmarks/exported_retriever.py --json

A beam search calls two networks, and both are exported. The history encoder maps item vectors to
the last state. The code decoder maps states and chosen codes to the queries of all beams.

There are four ways to run the networks:

* ``eager``: the modules themselves.
* ``exported``: the program of `torch.export`.
* ``inductor``: the same program, compiled ahead of time by Inductor. It needs a C++ compiler.
* ``onnx``: ONNX Runtime. It needs `onnx`, `onnxscript` and `onnxruntime`.

The benchmark checks that all ways give equal outputs, and measures their times and memory. It also
times whole lists of ten items with the networks of each way, which shows how much of the speed-up
remains in a recommendation. A graph needs fixed shapes, and the package's own decode step has
shapes that depend on the data. The benchmark therefore also times a decode step in fixed shapes
beside the package's own step. The ways take turns, and medians are printed. The model and the
histories have the size of Amazon 2014 Beauty. The weights are untrained.

Shapes: B users, T items of a history, R rows (users times beams), D model dimensions.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from printing import print_results
from synthetic import BEAUTY_ITEMS, build_model, draw_split, draw_table
from torch import Tensor, nn

from recgrit.ranking import Histories, last_items
from recgrit.retrieval.frontier import Frontier, score_in_fixed_shapes
from recgrit.retrieval.model import CodeDecoder, TrieRetriever
from recgrit.retrieval.transformer import HistoryEncoder
from recgrit.retrieval.trie_ranker import TrieRanker

BEAM_WIDTH, TOP_K = 50, 10
WAYS = ("eager", "exported", "inductor", "onnx")
# Largest allowed difference between the outputs of an exported and an eager network.
TOLERANCE = 1e-4

Call = Callable[..., Tensor]


class Encode(nn.Module):
    """A module that returns the encoder's last state of each history."""

    def __init__(self, encoder: HistoryEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, vectors: Tensor, ends: Tensor) -> Tensor:
        """Return states ``[B, D]`` from item vectors ``[B, T, D]`` and last positions ``[B]``."""
        return self.encoder.last(vectors, ends)


class Decode(nn.Module):
    """A module that returns the decoder's queries of all beams at one level."""

    def __init__(self, decoder: CodeDecoder, level: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.level = level

    def forward(self, states: Tensor, chosen: Tensor) -> Tensor:
        """Return queries ``[R, D]`` from states and sums of node vectors, both ``[R, D]``."""
        queries: Tensor = self.decoder(states, chosen, self.level)
        return queries


def has_all_for(way: str) -> bool:
    """Return whether this machine has everything that a way of running needs."""
    if way == "inductor":
        return bool(shutil.which("g++") or shutil.which("clang++"))
    needs = ("onnx", "onnxscript", "onnxruntime") if way == "onnx" else ()
    return all(map(importlib.util.find_spec, needs))


def export_network(
    network: nn.Module, inputs: tuple[Tensor, ...], sizes: tuple[dict[int, Any], ...], way: str
) -> tuple[Call, int]:
    """Export a network and return it as a callable, with the size of its file in bytes.

    The way ``eager`` returns the network itself and 0 bytes.

    Args:
        network: Network in eval mode.
        inputs: Example inputs for the export.
        sizes: Variable dimensions of each input, by the number of the dimension.
        way: Way to run the network, one of `WAYS`.
    """
    if way == "eager":
        return network, 0
    program = torch.export.export(network, inputs, dynamic_shapes=sizes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{'.onnx' if way == 'onnx' else '.pt2'}"
        if way == "exported":
            torch.export.save(program, path)
            loaded: Any = torch.export.load(path).module()
        elif way == "inductor":
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            loaded = torch._inductor.aoti_load_package(str(path))
        else:
            loaded = _load_onnx(program, path)
        return loaded, path.stat().st_size


def _load_onnx(program: Any, path: Path) -> Call:
    import onnxruntime

    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (found,) = session.run(None, given)
        return torch.from_numpy(found)

    return call


class Networks:
    """The encoder and the decoders of all levels, exported in one way.

    Args:
        model: Retriever in eval mode.
        way: Way to run the networks, one of `WAYS`.
    """

    def __init__(self, model: TrieRetriever, way: str) -> None:
        length, dim = model.encoder.positions.shape
        users, beams = torch.export.Dim("users", min=1), torch.export.Dim("beams", min=1)
        items = torch.export.Dim("items", min=1, max=length)
        memory, started = psutil.Process().memory_info().rss, time.perf_counter()
        # No example dimension has size 1, because torch.export treats size 1 as fixed.
        networks = [
            export_network(
                Encode(model.encoder).eval(),
                (torch.randn(3, length - 1, dim), torch.tensor([0, 5, length - 2])),
                ({0: users, 1: items}, {0: users}),
                way,
            )
        ]
        networks += [
            export_network(
                Decode(model.decoder, level).eval(),
                (torch.randn(7, dim), torch.randn(7, dim)),
                ({0: beams}, {0: beams}),
                way,
            )
            for level in range(model.trie.num_levels)
        ]
        calls = [call for call, _ in networks]
        self.encode, self.decode = calls[0], calls[1:]
        self.bytes = sum(size for _, size in networks)
        self.seconds = time.perf_counter() - started
        self.memory_mb = (psutil.Process().memory_info().rss - memory) / 1e6


def take_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each call. The calls take turns in every repeat."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def rank_by(model: TrieRetriever, networks: Networks) -> TrieRanker:
    """Return a ranker that calls these networks in place of the model's own."""
    model = copy.deepcopy(model)

    def forward(state: Tensor, chosen: Tensor | None, level: int) -> Tensor:
        return networks.decode[level](state, torch.zeros_like(state) if chosen is None else chosen)

    def last(items: Tensor, ends: Tensor, first: Tensor | None = None) -> Tensor:
        assert first is None, "a model without attributes of users"
        return networks.encode(items, ends)

    model.encoder.last = last  # type: ignore[method-assign]
    model.decoder.forward = forward  # type: ignore[method-assign]
    return TrieRanker(model, beam_width=BEAM_WIDTH)


def time_steps(ranker: TrieRanker, histories: Histories, repeats: int) -> dict[str, float]:
    """Return the milliseconds of scoring all candidates of the second level, in two ways.

    The ways are the package's own step and a step in fixed shapes.
    """
    walk, trie = ranker.read(histories), ranker.model.trie
    root = Frontier.build(trie.child_starts, torch.zeros(walk.num_users, 1, dtype=torch.long))
    best = walk.expand(None, root, 0).flatten(1).topk(BEAM_WIDTH, dim=-1).indices
    nodes = root.nodes_of(best)
    chosen = walk.extend(None, nodes, 0)
    own = Frontier.build(trie.child_starts, nodes)
    fixed = Frontier.build(trie.child_starts, nodes, trie.most_children[1])
    states = walk.states.unsqueeze(1).expand_as(chosen).flatten(0, 1)

    def in_fixed_shapes() -> Tensor:
        queries = ranker.model.decoder(states, chosen.flatten(0, 1), 1)
        return score_in_fixed_shapes(queries, fixed, ranker.node_vectors).log_softmax(dim=-1)

    calls = {"own": lambda: walk.expand(chosen, own, 1), "fixed_shapes": in_fixed_shapes}
    return take_turns(calls, repeats)


@torch.inference_mode()
def measure(
    model: TrieRetriever, ways: Mapping[str, Networks], *, repeats: int, users: int
) -> dict[str, float]:
    """Measure milliseconds and speed-ups of all ways, for one number of users per call.

    Args:
        model: Retriever in eval mode.
        ways: Exported networks by the name of their way.
        repeats: Number of timed calls of each way.
        users: Number of users in one call.

    Raises:
        AssertionError: The outputs of a way differ from the eager outputs.
    """
    rankers = {name: rank_by(model, way) for name, way in ways.items()}
    ranker = TrieRanker(model, beam_width=BEAM_WIDTH)
    split = draw_split(users, BEAUTY_ITEMS, seed=1)
    length = ranker.history_length
    histories = last_items(split.items, split.offsets[:-1], split.offsets[1:], length)
    vectors = ranker.model.item_vectors(histories.items, ranker.node_vectors)
    states = torch.randn(users * BEAM_WIDTH, vectors.shape[-1])
    parts: dict[str, Callable[[str], Tensor]] = {
        "encoder": lambda way: ways[way].encode(vectors, histories.ends),
        "decoder": lambda way: ways[way].decode[1](states, states),
        "lists": lambda way: rankers[way].rank(histories, top_k=TOP_K, excluded=None).scores,
    }
    found: dict[str, float] = {}
    for part, call in parts.items():
        calls = {name: functools.partial(call, name) for name in ways}
        outputs = {name: once() for name, once in calls.items()}
        for name, output in outputs.items():
            difference = float((output - outputs["eager"]).abs().max())
            if not difference <= TOLERANCE:
                raise AssertionError(f"{part} by {name} differs from eager by {difference}.")
        took = take_turns(calls, repeats)
        for name in ways:
            found[f"{part}_{name}_ms_{users}"] = took[name]
            found[f"{part}_{name}_speedup_{users}"] = took["eager"] / took[name]
    steps = time_steps(ranker, histories, repeats)
    return found | {f"step_{name}_ms_{users}": took for name, took in steps.items()}


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument(
        "--users", default="1,32,128", help="numbers of users per call, measured in turn"
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="ways to run the networks")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    table, split = draw_table(BEAUTY_ITEMS), draw_split(2000, BEAUTY_ITEMS)
    model = build_model(table, split).eval()
    named = arguments.ways.split(",")
    ways = {way: Networks(model, way) for way in named if has_all_for(way)}
    found: dict[str, object] = {"ways": " ".join(ways), "items": len(table)}
    for name, way in ways.items():
        found |= {
            f"{name}_export_seconds": way.seconds,
            f"{name}_file_mb": way.bytes / 1e6,
            f"{name}_memory_mb": way.memory_mb,
        }
    for users in map(int, arguments.users.split(",")):
        found |= measure(model, ways, repeats=arguments.repeats, users=users)
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
