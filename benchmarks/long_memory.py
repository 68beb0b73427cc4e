"""Measure memory during long work: lists for a million users and training for fifty epochs.

    OMP_NUM_THREADS=1 python benchmarks/long_memory.py --out memory.html --json

The benchmark shows whether memory grows with the work. The catalogue has the shape of Amazon 2014
Beauty. A small retriever makes the lists, because only the number of users matters here. The lists
are written with the same code as `recgrit recommend --out`. The same small retriever is trained on
a tenth of Beauty's users. The memory of this process is read at every shard of lists and after
every epoch. The printed growth is the difference between the second tenth and the last tenth of the
work.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import psutil
import torch
from plotly.subplots import make_subplots
from printing import print_results
from synthetic import BEAUTY_ITEMS, BEAUTY_USERS, describe_catalogue, draw_split, draw_table

from recgrit.data.recommendations import write_lists
from recgrit.models.trie import TrieModel
from recgrit.recommender import Recommender
from recgrit.retrieval.config import RetrieverConfig

BEAM_WIDTH = 20


def read_memory() -> float:
    """Return the memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)


def small_settings(epochs: int) -> RetrieverConfig:
    """Return the settings of a small retriever, whose training and search are fast."""
    return RetrieverConfig(
        model_dim=16,
        num_layers=1,
        num_heads=2,
        history_length=20,
        neighbours=("near", "next"),
        epochs=epochs,
        patience=epochs,
        valid_users=200,
    )


def recommend(num_users: int, path: Path) -> list[float]:
    """Write lists for all users to a file and return the memory in MiB at each shard."""
    split, table = draw_split(num_users, BEAUTY_ITEMS), draw_table(BEAUTY_ITEMS)
    items = describe_catalogue(BEAUTY_ITEMS, table, split.train_item_counts() > 0)
    settings = small_settings(1)
    torch.manual_seed(0)
    network = TrieModel.build(items, settings)
    assert network.neighbours is not None
    network.neighbours.count(draw_split(BEAUTY_USERS, BEAUTY_ITEMS))
    recommender = Recommender(TrieModel(network, items, settings), table, beam_width=BEAM_WIDTH)
    names = pl.int_range(num_users, eager=True).cast(pl.String)
    memory: list[float] = []

    def watched() -> Iterator[pl.DataFrame]:
        for shard in recommender.list_users(split, names):
            memory.append(read_memory())
            yield shard

    write_lists(watched(), path)
    return memory


def train(num_users: int, epochs: int) -> list[float]:
    """Train a retriever and return the memory in MiB after each epoch."""
    split, table = draw_split(num_users, BEAUTY_ITEMS), draw_table(BEAUTY_ITEMS)
    items = describe_catalogue(BEAUTY_ITEMS, table, split.train_item_counts() > 0)
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        TrieModel.fit(
            items,
            split,
            small_settings(epochs),
            seed=0,
            on_epoch=lambda _: memory.append(read_memory()),
            checkpoint=Path(folder) / "state.safetensors",
        )
    return memory


def growth(memory: list[float]) -> float:
    """Return the growth in MiB from the median of the second tenth to that of the last tenth.

    The first tenth is left out, because the process is still warming up.
    """
    tenth = len(memory) // 10
    return float(np.median(memory[-tenth - 1 :]) - np.median(memory[tenth : 2 * tenth + 1]))


def main() -> None:
    """Run the measurements, draw the curves and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000, help="users to recommend for")
    parser.add_argument("--train-users", type=int, default=BEAUTY_USERS // 10)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, help="HTML file for the curves of memory")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    trained = train(arguments.train_users, arguments.epochs)
    with tempfile.TemporaryDirectory() as folder:
        listed = recommend(arguments.users, Path(folder) / "lists.parquet")
    if arguments.out:
        titles = ("training, by epoch", f"lists for {arguments.users:,} users, by shard")
        figure = make_subplots(1, 2, subplot_titles=titles)
        for column, memory in enumerate((trained, listed), start=1):
            figure.add_trace(go.Scatter(y=memory, showlegend=False), 1, column)
        figure.update_yaxes(title="MiB", rangemode="tozero")
        figure.write_html(arguments.out, include_plotlyjs="cdn")
    print_results(
        {
            "users": arguments.users,
            "epochs": arguments.epochs,
            "training_mb": max(trained),
            "growth_while_training_mb": growth(trained),
            "recommending_mb": max(listed),
            "growth_while_recommending_mb": growth(listed),
        },
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
