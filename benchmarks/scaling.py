"""What every stage costs as the catalogue grows: seconds, memory and bytes, and a line through them.

    python benchmarks/scaling.py --stages trie,assign --sizes 1e5,1e6,1e7 --json
    python benchmarks/scaling.py --stages embed --sizes 500,1000,2000 --out docs/results/scaling
    python benchmarks/scaling.py --fit docs/results/scaling

Size N is items; where people matter there are N of them with ten interactions each. Each measurement
runs in a process of its own with one thread, on inputs drawn in the shape of real ones: how long it
took, its highest memory from the moment the inputs are there, and what it left on disk. Training is
told per million targets and recommending per million users, for their cost does not come per item.

The lines are seconds = a + b N and so on, a and b at least 0, by least squares on the relative error.
`--memory-gb` ends a measurement that wants more, in place of the machine. `--out` keeps the rows, one
JSON file a stage, and `--fit` reads them again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import draw_split, draw_table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from trie_scale import reset_peak

from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RetrieverConfig

TEXT_DIM, FEATURE_DIM, CHUNK, MILLION = 384, 128, 65_536, 1_000_000
MEAN_LENGTH, MISSING_SHARE, STEPS, USERS, BEAM_WIDTH, TOP_K = 10.0, 0.02, 5, 512, 50, 10
FITTED = ("cpu_seconds", "peak_rss_mb", "written_mb")

# Does what is measured; returns by how many units of a million to divide, None for the whole.
Work = Callable[[], float | None]


@dataclass(frozen=True)
class Stage:
    """One thing to measure.

    Args:
        draw: Draws inputs of a size into a folder; what it returns writes to the folder's ``out``.
        unit: What the seconds are for.
    """

    draw: Callable[[int, Path], Work]
    unit: str = "the whole"


def codebook_size(num_items: int) -> int:
    """Codes a level that suit a catalogue."""
    return 256 if num_items <= 2**20 else 1024


def draw_vectors(path: Path, num_items: int, dim: int) -> None:
    """Unit vectors of a mixture of 2,000 groups, chunk by chunk."""
    draw = np.random.default_rng(0)
    groups = draw.standard_normal((2000, dim), dtype=np.float32)
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (num_items, dim))
    for start in range(0, num_items, CHUNK):
        rows = vectors[start : start + CHUNK]
        rows[:] = groups[draw.integers(len(groups), size=len(rows))]
        rows += 0.5 * draw.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors.flush()


def prepare(size: int, folder: Path, *, partition_users: int | None) -> Work:
    """Ten ratings an item, as many users as items, by the stage as a user runs it."""
    from ratings import write_ratings

    from recgrit.config import load_config
    from recgrit.experiment import ExperimentConfig
    from recgrit.running import run_experiment

    write_ratings(folder, rows=10 * size, users=size, items=size)
    settings = {
        "data.source": "movielens-25m",
        "data.path": folder,
        "data.partition_users": partition_users or "null",
        "run.dir": folder / "out",
        "tracking.backend": "none",
    }
    config = load_config(ExperimentConfig, None, [f"{k}={v}" for k, v in settings.items()])
    return lambda: run_experiment(config, until="prepare") and None


def embed(size: int, folder: Path, *, with_model: bool) -> Work:
    """Different texts of 60 tokens through MiniLM, or all that is done beside the model."""
    from embed import draw_texts

    from recgrit.embedding.cache import encode_cached
    from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder
    from recgrit.engines.local import LocalEngine

    drawn = draw_texts(min(size, 10_000))
    texts = [f"{drawn[row % len(drawn)]} {row}" for row in range(size)]
    encoder = SentenceTransformerEncoder(device="cpu") if with_model else NoEncoder()
    encoder.encode(texts[:1])  # Loads the weights.
    return lambda: (
        encode_cached(texts, encoder, folder / "out", engine=LocalEngine()) is None or None
    )


class NoEncoder:
    """Vectors of MiniLM's size that cost nothing."""

    name = fingerprint = "none"

    def encode(self, texts: list[str]) -> np.ndarray:
        """Zeros."""
        return np.zeros((len(texts), TEXT_DIM), np.float32)


def reduce_text(size: int, folder: Path) -> Work:
    """Principal components of text vectors."""
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.features import fit_features

    draw_vectors(folder / "text.npy", size, TEXT_DIM)

    def work() -> None:
        text = Embeddings(np.load(folder / "text.npy", mmap_mode="r"), "text", normalized=True)
        fit_features(text, None).embeddings.save(folder / "out", "features")

    return work


def count_together(size: int, folder: Path) -> Work:
    """Co-occurrence vectors of the sequences of as many users as items."""
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors

    split = draw_split(size, size, mean_length=MEAN_LENGTH)
    return lambda: build_cooccurrence_vectors(split).save(folder / "out", "cooccurrence")


def fill(size: int, folder: Path) -> Work:
    """Co-occurrence vectors for the items, one in fifty, that nobody has taken with another."""
    from recgrit.embedding.features import fill_missing

    draw_vectors(folder / "vectors.npy", size, FEATURE_DIM // 2)
    known = np.load(folder / "vectors.npy")
    vectors = known.copy()
    vectors[:: round(1 / MISSING_SHARE)] = 0
    return lambda: np.save(folder / "out" / "filled.npy", fill_missing(vectors, known))


def fit_tokenizer(size: int, folder: Path) -> Work:
    """Codebooks, to a sample of at most 262,144 items."""
    from recgrit.quantization.fit import fit_codebooks

    draw_vectors(folder / "vectors.npy", size, FEATURE_DIM)
    features = torch.from_numpy(np.load(folder / "vectors.npy", mmap_mode="c"))
    return lambda: fit_codebooks(features, TokenizerConfig(), seed=0) is None or None


def assign(size: int, folder: Path) -> Work:
    """Codes of all items, shard by shard."""
    from safetensors.torch import save_file

    from recgrit.engines.local import LocalEngine
    from recgrit.engines.shards import Shards
    from recgrit.jobs import AssignCodes
    from recgrit.quantization.fit import fit_codebooks

    draw_vectors(folder / "features.npy", size, FEATURE_DIM)
    config = TokenizerConfig(epochs=0, sample_items=20_000, codebook_size=256)
    features = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="c"))
    save_file(fit_codebooks(features, config, seed=0).model.state_dict(), folder / "tokenizer")
    job = AssignCodes(config, folder / "tokenizer", folder / "features.npy")
    shards = Shards("assign", folder / "out", size, CHUNK, ".safetensors")
    return lambda: LocalEngine().map_shards(job, shards)


def make_unique(size: int, folder: Path) -> Work:
    """A disambiguation level, and the table of IDs on disk."""
    from recgrit.semantic_ids import collisions
    from recgrit.semantic_ids.table import SemanticIdTable

    table = draw_table(size, codebook_size(size))
    codes, names = table.codes[:, :3].astype(np.int64), table.item_ids
    sizes = table.codebook_sizes[:3]
    del table

    def work() -> None:
        unique = collisions.disambiguate(codes, sizes, names)
        SemanticIdTable(
            unique.codes, unique.codebook_sizes, unique.disambiguation_level, names, names
        ).save(folder / "out")

    return work


def build_trie(size: int, folder: Path) -> Work:
    """The trie of all IDs."""
    from recgrit.semantic_ids.trie import build_trie as build

    codes = draw_table(size, codebook_size(size)).codes
    return lambda: build(codes) is None or None


def count_neighbours(size: int, folder: Path) -> Work:
    """Each item's neighbours in the sequences of as many users as items."""
    from recgrit.retrieval.neighbours import ItemNeighbours

    split = draw_split(size, size, mean_length=MEAN_LENGTH)
    return lambda: ItemNeighbours(size, weight=0.3).count(split)


def train(size: int, folder: Path, *, node_buckets: int | None) -> Work:
    """Steps of training, the moving average of the weights included, its neighbours not."""
    from recgrit.retrieval.batching import build_windows, iterate_batches
    from recgrit.retrieval.fit import assemble_retriever
    from recgrit.retrieval.training import MAX_GRAD_NORM

    torch.manual_seed(0)
    table = draw_table(size, codebook_size(size))
    split = draw_split(20_000, size, mean_length=MEAN_LENGTH)
    config = RetrieverConfig(neighbour_weight=0.0, node_buckets=node_buckets)
    model = assemble_retriever(table, np.ones(size, dtype=bool), None, config).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = iterate_batches(
        split,
        build_windows(split, config.history_length),
        batch_targets=config.batch_targets,
        generator=np.random.default_rng(0),
    )

    def step() -> int:
        (batch,) = next(batches)
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch.histories, batch.targets, batch.supervised).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        averaged.update_parameters(model)
        return batch.num_targets

    step()
    return lambda: sum(step() for _ in range(STEPS)) / MILLION


def recommend(size: int, folder: Path, *, node_buckets: int | None) -> Work:
    """Lists of ten by a beam of fifty, written as Parquet."""
    from recgrit.retrieval.fit import build_retriever
    from recgrit.retrieval.recommend import recommend_items
    from recgrit.retrieval.trie_ranker import TrieRanker

    table = draw_table(size, codebook_size(size))
    split = draw_split(2 * USERS, size, mean_length=MEAN_LENGTH)
    model = build_retriever(table, split, None, RetrieverConfig(node_buckets=node_buckets))
    ranker = TrieRanker(model, beam_width=BEAM_WIDTH)

    def work(users: np.ndarray) -> float:
        found = recommend_items(ranker, split, "all", users, top_k=TOP_K, masked=True)
        found.to_polars().write_parquet(folder / "out" / "lists.parquet")
        return len(users) / MILLION

    work(np.arange(USERS, 2 * USERS))
    return partial(work, np.arange(USERS))


STAGES = {
    "prepare": Stage(partial(prepare, partition_users=None)),
    "prepare_partitions": Stage(partial(prepare, partition_users=100_000)),
    "texts": Stage(partial(embed, with_model=False)),
    "embed": Stage(partial(embed, with_model=True)),
    "text_features": Stage(reduce_text),
    "cooccurrence": Stage(count_together),
    "fill": Stage(fill),
    "fit_tokenizer": Stage(fit_tokenizer),
    "assign": Stage(assign),
    "unique": Stage(make_unique),
    "trie": Stage(build_trie),
    "neighbours": Stage(count_neighbours),
    "train": Stage(partial(train, node_buckets=None), "a million targets"),
    "train_buckets": Stage(partial(train, node_buckets=65_536), "a million targets"),
    "recommend": Stage(partial(recommend, node_buckets=None), "a million users"),
    "recommend_buckets": Stage(partial(recommend, node_buckets=65_536), "a million users"),
}


def measure(stage: str, size: int, folder: Path) -> dict[str, float]:
    """One measurement, in this process."""
    torch.set_num_threads(1)
    out = folder / "out"
    out.mkdir()
    work = STAGES[stage].draw(size, folder)
    gc.collect()
    held_mb = reset_peak()
    started, cpu = time.perf_counter(), time.process_time()
    millions = work() or 1.0
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "seconds": seconds / millions,
        "cpu_seconds": cpu_seconds / millions,
        "peak_rss_mb": peak,
        "held_mb": held_mb,
        "written_mb": written / 2**20 / millions,
    }


def measure_apart(stage: str, size: int, repeats: int, memory_gb: float) -> dict[str, Any] | None:
    """The median of some measurements, each in a process of its own; None if one failed."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--measure", stage, str(size), folder]
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | threads,
                preexec_fn=lambda: resource.setrlimit(
                    resource.RLIMIT_DATA, (int(memory_gb * 2**30),) * 2
                ),
            )
        if done.returncode:
            print(f"{stage}, {size:,}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    medians["load"] = os.getloadavg()[0]
    return {"stage": stage, "size": size, "unit": STAGES[stage].unit, "repeats": repeats, **medians}


def fit_line(sizes: list[float], values: list[float]) -> dict[str, float]:
    """Least squares on the relative error, neither constant below 0.

    >>> {k: round(v, 3) for k, v in fit_line([10, 20, 40], [25, 45, 85]).items()}
    {'fixed': 5.0, 'per_item': 2.0, 'worst': 0.0}
    """
    from scipy.optimize import nnls

    x, y = np.array(sizes, float), np.array(values, float)
    scale = x.max()
    fixed, slope = nnls(np.stack([1 / y, x / scale / y], axis=1), np.ones(len(y)))[0]
    worst = np.abs((fixed + slope * x / scale) / y - 1).max()
    return {"fixed": float(fixed), "per_item": float(slope / scale), "worst": float(worst)}


def fit_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """A line for each stage that was measured at two sizes or more, and each quantity."""
    lines = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_stage = sorted((r for r in rows if r["stage"] == stage), key=lambda row: row["size"])
        sizes = [row["size"] for row in of_stage]
        for name in FITTED:
            values = [row[name] for row in of_stage]
            if len(sizes) > 1 and min(values) > 0:
                lines[f"{stage}.{name}"] = line = fit_line(sizes, values)
                told = [
                    f"{size:.3g}: {value:,.4g} ({line['fixed'] + line['per_item'] * size:,.4g})"
                    for size, value in zip(sizes, values, strict=True)
                ]
                print(
                    f"{stage}.{name} = {line['fixed']:,.4g} + {1e6 * line['per_item']:,.4g} a "
                    f"million; off by {line['worst']:.0%}; " + ", ".join(told)
                )
    return lines


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--sizes", default="1e5,1e6,1e7")
    parser.add_argument("--stages", default="trie", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--repeats", type=int, default=1, help="medians of so many")
    parser.add_argument("--memory-gb", type=float, default=12.0)
    parser.add_argument("--out", type=Path, help="folder of the rows, one file a stage")
    parser.add_argument("--fit", type=Path, help="only fit the rows of this folder")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        stage, size, folder = arguments.measure
        print(json.dumps(measure(stage, int(size), Path(folder))))
        return
    rows: list[dict[str, Any]] = []
    if arguments.fit:
        rows = [row for path in sorted(arguments.fit.glob("*.json")) for row in load_rows(path)]
    for stage in [] if arguments.fit else arguments.stages.split(","):
        for size in (int(float(size)) for size in arguments.sizes.split(",")):
            row = measure_apart(stage, size, arguments.repeats, arguments.memory_gb)
            if row is not None:
                rows.append(row)
                print(", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
                if arguments.out:
                    keep_row(arguments.out / f"{stage}.json", row)
    lines = fit_rows(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "fits": lines}))


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a stage."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def keep_row(path: Path, row: dict[str, Any]) -> None:
    """Put a row among those of its stage, in place of one of its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [r for r in load_rows(path) if r["size"] != row["size"]] if path.is_file() else []
    rows = sorted([*others, row], key=lambda row: float(row["size"]))
    machine = {"cpu": "1 of 2 cores of an AMD EPYC, no GPU", "memory_gb": 23, "torch": torch.__version__}
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
