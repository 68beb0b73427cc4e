"""The stages that `scaling.py` measures.

Each function draws the inputs for a number of items and returns the work that is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import describe_catalogue, draw_split, draw_table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recgrit.quantization.config import TokenizerConfig
from recgrit.retrieval.config import RetrieverConfig
from recgrit.training.gradients import plan_step

TEXT_DIM, FEATURE_DIM, CHUNK, MILLION = 384, 128, 65_536, 1_000_000
MEAN_LENGTH, MISSING_SHARE, STEPS, USERS, BEAM_WIDTH, TOP_K = 10.0, 0.02, 5, 512, 50, 10

# The work that is measured. It returns how many millions of its unit it did. None means that the
# unit is the whole work.
Work = Callable[[], float | None]


@dataclass(frozen=True)
class Stage:
    """A stage, or a part of one, whose cost is measured.

    Args:
        draw: Function of the number of items and a folder. It draws the inputs into the folder and
            returns the work, which writes to the folder's ``out``.
        unit: Unit of work that the seconds refer to, such as ``a million users``.
    """

    draw: Callable[[int, Path], Work]
    unit: str = "the whole"


def codebook_size(num_items: int) -> int:
    """Return the number of codes per level: 256, or 1,024 for more than 2^20 items.

    The environment variable ``SCALING_CODES`` sets another number.
    """
    return int(os.environ.get("SCALING_CODES") or (256 if num_items <= 2**20 else 1024))


def draw_vectors(path: Path, num_items: int, dim: int) -> None:
    """Write unit vectors of a mixture of 2,000 groups to a `.npy` file, chunk by chunk."""
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
    """Prepare ten ratings per item, from as many users as items, as a user runs the stage."""
    from ratings import write_ratings

    from recgrit.config import load_config
    from recgrit.experiment import ExperimentConfig
    from recgrit.pipeline import run_experiment

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
    """Embed different texts of 60 tokens with MiniLM, or do the same work without the model."""
    from embed import draw_texts

    from recgrit.embedding.cache import encode_cached
    from recgrit.embedding.sentence_transformer import SentenceTransformerEncoder
    from recgrit.engines.local import LocalEngine

    drawn = draw_texts(min(size, 10_000))
    texts = [f"{drawn[row % len(drawn)]} {row}" for row in range(size)]
    encoder = SentenceTransformerEncoder(device="cpu") if with_model else NoEncoder()
    encoder.encode(texts[:1])  # The first call loads the weights.
    return lambda: (
        encode_cached(texts, encoder, folder / "out", engine=LocalEngine()) is None or None
    )


class NoEncoder:
    """An encoder that returns zero vectors of MiniLM's size, so that it costs no time."""

    name = fingerprint = "none"

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return one zero vector per text."""
        return np.zeros((len(texts), TEXT_DIM), np.float32)


def reduce_text(size: int, folder: Path) -> Work:
    """Reduce text vectors to their principal components."""
    from recgrit.embedding.embeddings import Embeddings
    from recgrit.embedding.features import fit_features

    draw_vectors(folder / "text.npy", size, TEXT_DIM)

    def work() -> None:
        text = Embeddings(np.load(folder / "text.npy", mmap_mode="r"), "text", normalized=True)
        fit_features(text, None).embeddings.save(folder / "out", "features")

    return work


def count_together(size: int, folder: Path) -> Work:
    """Build co-occurrence vectors from the sequences of as many users as items."""
    from recgrit.embedding.cooccurrence import build_cooccurrence_vectors

    split = draw_split(size, size, mean_length=MEAN_LENGTH)
    return lambda: build_cooccurrence_vectors(split).save(folder / "out", "cooccurrence")


def fill(size: int, folder: Path) -> Work:
    """Fill in the co-occurrence vectors of items without any, which are one item in fifty."""
    from recgrit.embedding.features import fill_missing

    draw_vectors(folder / "vectors.npy", size, FEATURE_DIM // 2)
    known = np.load(folder / "vectors.npy")
    vectors = known.copy()
    vectors[:: round(1 / MISSING_SHARE)] = 0
    return lambda: np.save(folder / "out" / "filled.npy", fill_missing(vectors, known))


def fit_tokenizer(size: int, folder: Path) -> Work:
    """Fit codebooks to a sample of at most 262,144 items."""
    from recgrit.quantization.fit import fit_codebooks

    draw_vectors(folder / "vectors.npy", size, FEATURE_DIM)
    features = torch.from_numpy(np.load(folder / "vectors.npy", mmap_mode="c"))
    return lambda: fit_codebooks(features, TokenizerConfig(), seed=0) is None or None


def assign(size: int, folder: Path) -> Work:
    """Assign codes to all items, shard by shard."""
    from safetensors.torch import save_file

    from recgrit.engines.local import LocalEngine
    from recgrit.engines.shards import Shards
    from recgrit.quantization.fit import fit_codebooks
    from recgrit.stages.fitting_ids import AssignCodes

    draw_vectors(folder / "features.npy", size, FEATURE_DIM)
    config = TokenizerConfig(epochs=0, sample_items=20_000, codebook_size=256)
    features = torch.from_numpy(np.load(folder / "features.npy", mmap_mode="c"))
    save_file(fit_codebooks(features, config, seed=0).model.state_dict(), folder / "tokenizer")
    job = AssignCodes(config, folder / "tokenizer", folder / "features.npy")
    shards = Shards("assign", folder / "out", size, CHUNK, ".safetensors")
    return lambda: LocalEngine().map_shards(job, shards)


def make_unique(size: int, folder: Path) -> Work:
    """Make IDs unique by a disambiguation level and save their table."""
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
    """Build the trie of all IDs."""
    from recgrit.semantic_ids.trie import build_trie as build

    codes = draw_table(size, codebook_size(size)).codes
    return lambda: build(codes) is None or None


def count_neighbours(size: int, folder: Path) -> Work:
    """Count the neighbours of each item in the sequences of as many users as items."""
    from recgrit.retrieval.neighbours import ItemNeighbours

    split = draw_split(size, size, mean_length=MEAN_LENGTH)
    return lambda: ItemNeighbours(size).count(split)


def _size(node_buckets: int) -> dict[str, Any]:
    """Return the settings of a retriever with shared rows, or with one row per node for 0."""
    return {"size": "constant", "node_buckets": node_buckets} if node_buckets else {}


def train(size: int, folder: Path, *, node_buckets: int) -> Work:
    """Take training steps, with the moving average of the weights and without neighbours."""
    from recgrit.models.trie import TrieModel
    from recgrit.training.batches import build_windows, iterate_steps
    from recgrit.training.loop import MAX_GRAD_NORM

    torch.manual_seed(0)
    table = draw_table(size, codebook_size(size))
    split = draw_split(20_000, size, mean_length=MEAN_LENGTH)
    config = RetrieverConfig(neighbours=(), **_size(node_buckets))
    model = TrieModel.build(describe_catalogue(size, table), config).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = iterate_steps(
        split,
        build_windows(split, config.history_length),
        batch_targets=config.batch_targets,
        generator=np.random.default_rng(0),
    )

    def step() -> int:
        (batch,) = next(batches).parts
        optimizer.zero_grad(set_to_none=True)
        model.loss(plan_step(model, batch)).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        averaged.update_parameters(model)
        return batch.num_targets

    step()
    return lambda: sum(step() for _ in range(STEPS)) / MILLION


def recommend(size: int, folder: Path, *, node_buckets: int) -> Work:
    """Recommend lists of ten items with a beam of fifty and write them as Parquet."""
    from recgrit.models.trie import TrieModel
    from recgrit.ranking import recommend_items
    from recgrit.retrieval.trie_ranker import TrieRanker

    table = draw_table(size, codebook_size(size))
    split = draw_split(2 * USERS, size, mean_length=MEAN_LENGTH)
    items = describe_catalogue(size, table, split.train_item_counts() > 0)
    model = TrieModel.build(items, RetrieverConfig(**_size(node_buckets)))
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
    "train": Stage(partial(train, node_buckets=0), "a million targets"),
    "train_buckets": Stage(partial(train, node_buckets=65_536), "a million targets"),
    "recommend": Stage(partial(recommend, node_buckets=0), "a million users"),
    "recommend_buckets": Stage(partial(recommend, node_buckets=65_536), "a million users"),
}
