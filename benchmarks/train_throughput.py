"""Measure training targets per second of recgrit, SASRec, and TIGER as a T5 of transformers.

    OMP_NUM_THREADS=1 python benchmarks/train_throughput.py --json
    OMP_NUM_THREADS=2 python benchmarks/train_throughput.py --json --run runs/amazon2014-beauty

Sequences and IDs have the shape of Amazon 2014 Beauty: 22,363 users, 12,101 items, three levels of
256 codes and a disambiguation level. TIGER is a T5 of transformers in the published size: 4 + 4
layers, 128 dimensions, 6 heads of 64, 1,024 hidden dimensions. It learns from one padded sample of
20 items per target, as published code does, with 256 samples per step. The rows ``dense`` have the
shape of MovieLens-1M: 6,040 users, 3,416 items, histories of 100 items. A step is forward pass,
backward pass, gradient clipping and AdamW. The contestants take turns, and medians are printed.

``growth_with_users`` is the exponent with which the time of one epoch grows with the users, from a
sixteenth of the users, 4 times as many and 16 times as many. ``growth_with_history`` is the
exponent for histories of 20, 50 and 200 items with the same number of targets.

`--run` names a run folder whose IDs are made. The benchmark then trains a retriever on its data
until validation NDCG@10 reaches `--stop-at`, which was chosen beforehand from other seeds, and
evaluates the test targets once. This gives the time until a retriever reaches TIGER's published
Recall@10 of .0648 on Beauty.

Shapes: B samples.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from printing import print_results
from synthetic import (
    BEAUTY_ITEMS,
    BEAUTY_LENGTH,
    BEAUTY_USERS,
    DENSE_ITEMS,
    DENSE_LENGTH,
    DENSE_USERS,
    build_model,
    build_sasrec,
    draw_split,
    draw_table,
    fit_power,
)
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from recgrit.data.splits import SequenceSplit
from recgrit.evaluation.metrics import ranks_of_targets, recall_at_k
from recgrit.models.trie import TrieModel
from recgrit.pipeline import peak_memory_mb
from recgrit.ranking import recommend_items
from recgrit.retrieval.model import TrieRetriever
from recgrit.retrieval.trie_ranker import TrieRanker
from recgrit.runs import Run
from recgrit.training.batches import Batch, build_windows, iterate_steps
from recgrit.training.gradients import plan_step
from recgrit.training.loop import MAX_GRAD_NORM, choose_device, choose_precision, train_model

T5_ITEMS, T5_BATCH, BATCH_TARGETS = 20, 256, 1024
DENSE_HISTORY = 100


class Contestant:
    """A model in training, with its batches, its optimizer and its measured rates.

    Args:
        model: Network that is trained.
        batches: Batches, one per step.
        loss: Function that returns the loss of a batch.
        precision: Data type of the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[Batch],
        loss: Callable[[Batch], Tensor],
        precision: torch.dtype,
    ) -> None:
        self.model = model.train()
        self.batches = batches
        self.loss = loss
        self.precision = precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        self.rates: list[float] = []

    def step(self) -> int:
        """Take one training step and return its number of targets."""
        batch = next(self.batches)
        device = next(self.model.parameters()).device
        enabled = self.precision != torch.float32
        with torch.autocast(device.type, self.precision, enabled=enabled):
            loss = self.loss(plan_step(self.model, batch).to(device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        return batch.num_targets

    def measure_epoch(self) -> float:
        """Train until the batches end and return the seconds."""
        started = time.perf_counter()
        with contextlib.suppress(StopIteration):
            while True:
                self.step()
        _wait()
        return time.perf_counter() - started

    def measure(self, num_steps: int) -> None:
        """Take some steps and append their targets per second to ``rates``."""
        _wait()
        started = time.perf_counter()
        num_targets = sum(self.step() for _ in range(num_steps))
        _wait()
        self.rates.append(num_targets / (time.perf_counter() - started))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def endless(split: SequenceSplit, *, length: int, batch_targets: int) -> Iterator[Batch]:
    """Yield the batches of all epochs, without an end."""
    windows, draw = build_windows(split, length), np.random.default_rng(0)
    for _ in itertools.count():
        for step in iterate_steps(split, windows, batch_targets=batch_targets, generator=draw):
            yield from step.parts


def one_epoch(split: SequenceSplit, *, length: int) -> Iterator[Batch]:
    """Yield the batches of one epoch."""
    draw, windows = np.random.default_rng(0), build_windows(split, length)
    for step in iterate_steps(split, windows, batch_targets=BATCH_TARGETS, generator=draw):
        yield from step.parts


def measure_growth(users: int, precision: torch.dtype) -> dict[str, float]:
    """Return the exponents with which an epoch's time grows with users and with history length.

    All history lengths have the same number of targets.
    """
    table, device = draw_table(BEAUTY_ITEMS), choose_device("auto")

    def seconds(num_users: int, length: int, mean_length: float) -> float:
        split = draw_split(num_users, BEAUTY_ITEMS, mean_length=mean_length)
        model = build_model(table, split, history_length=length).to(device)
        contestant = Contestant(
            model,
            one_epoch(split, length=length),
            lambda b: model.loss(b).value,
            precision,
        )
        return contestant.measure_epoch()

    by_users = {n: seconds(n * users, 50, BEAUTY_LENGTH) for n in (1, 4, 16)}
    by_length = {n: seconds(int(4 * users * BEAUTY_LENGTH / n), n, n) for n in (20, 50, 200)}
    return {
        "growth_with_users": fit_power(list(by_users), list(by_users.values())),
        "growth_with_history": fit_power(list(by_length), list(by_length.values())),
    }


def build_t5(codebook_sizes: tuple[int, ...]) -> T5ForConditionalGeneration:
    """Build TIGER's transformer. Token 0 pads histories and starts the decoder."""
    config = T5Config(
        vocab_size=sum(codebook_sizes) + 2,
        d_model=128,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=6,
        dropout_rate=0.1,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=1,
    )
    return T5ForConditionalGeneration(config)


def t5_samples(split: SequenceSplit, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches with one padded sample per target, as published code loads them.

    Yields:
        Tokens of the history ``[B, 80]`` (20 items of 4 codes), their mask, and the target's tokens
        ``[B, 4]``.
    """
    draw, num_levels = np.random.default_rng(0), tokens.shape[1]
    positions = np.flatnonzero(split.train_mask())
    starts = np.repeat(split.offsets[:-1], np.diff(split.offsets))
    positions = positions[positions > starts[positions]]
    while True:
        order = draw.permutation(positions)
        for first in range(0, len(order) - T5_BATCH + 1, T5_BATCH):
            chosen = order[first : first + T5_BATCH]
            histories = torch.zeros(T5_BATCH, T5_ITEMS * num_levels, dtype=torch.long)
            mask = torch.zeros_like(histories)
            for row, position in enumerate(chosen):
                items = split.items[max(starts[position], position - T5_ITEMS) : position]
                read = tokens[items.astype(np.int64)].flatten()
                histories[row, : len(read)] = read
                mask[row, : len(read)] = 1
            yield histories, mask, tokens[split.items[chosen].astype(np.int64)]


class T5Contestant(Contestant):
    """TIGER in training: a T5 on padded samples."""

    def __init__(
        self, split: SequenceSplit, tokens: Tensor, sizes: tuple[int, ...], precision: torch.dtype
    ) -> None:
        device = choose_device("auto")
        super().__init__(build_t5(sizes).to(device), iter(()), lambda batch: Tensor(), precision)
        self.samples = t5_samples(split, tokens)

    def step(self) -> int:
        """Take one training step and return its number of targets."""
        device = next(self.model.parameters()).device
        histories, mask, labels = (part.to(device) for part in next(self.samples))
        enabled = self.precision != torch.float32
        with torch.autocast(device.type, self.precision, enabled=enabled):
            loss = self.model(input_ids=histories, attention_mask=mask, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        return T5_BATCH


def time_to_tiger(folder: Path, stop_at: float, seed: int) -> dict[str, float]:
    """Train a retriever until a validation threshold and return the seconds and the test metrics.

    Args:
        folder: Run folder whose IDs are made.
        stop_at: Validation NDCG@10 at which training ends.
        seed: Seed of the training.
    """
    run = Run(folder)
    split, settings = run.data.split, run.config.retriever
    items = run.catalogue_inputs(TrieModel.needs)

    def build() -> TrieRetriever:
        network = TrieModel.build(items, settings)
        TrieModel.count(network, items, split)
        return network

    started = time.perf_counter()
    trained = train_model(
        build,
        lambda network, precision: TrieRanker(
            network, beam_width=settings.valid_beam_width, precision=precision
        ),
        split,
        settings,
        history_length=settings.history_length,
        seed=seed,
        stop_at=stop_at,
    )
    seconds = time.perf_counter() - started
    users = split.target_users("test")
    ranker = TrieRanker(trained.model, beam_width=50)
    found = recommend_items(ranker, split, "test", users, top_k=10, masked=False)
    ranks = ranks_of_targets(found.items, split.targets("test", users))
    return {
        "seconds_to_tiger": seconds,
        "epochs_to_tiger": len(trained.history),
        "valid_ndcg_at_10_then": trained.history[-1].valid_ndcg_at_10,
        "test_recall_at_10_then": float(recall_at_k(ranks, 10).mean()),
    }


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=10, help="steps of recgrit and SASRec per repeat"
    )
    parser.add_argument("--users", type=int, default=BEAUTY_USERS)
    parser.add_argument("--run", type=Path, help="run folder: also time until TIGER's recall")
    parser.add_argument(
        "--stop-at", type=float, default=0.05, help="validation NDCG@10 that ends the training"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    table, split = draw_table(BEAUTY_ITEMS), draw_split(arguments.users, BEAUTY_ITEMS)
    offsets = 2 + np.concatenate([[0], np.cumsum(table.codebook_sizes)[:-1]])
    tokens = torch.from_numpy(table.codes.astype(np.int64) + offsets)
    ours = build_model(table, split).to(device)
    sasrec = build_sasrec(split).to_device("auto").network

    def our_batches() -> Iterator[Batch]:
        return endless(split, length=50, batch_targets=BATCH_TARGETS)

    dense = draw_split(
        arguments.users * DENSE_USERS // BEAUTY_USERS, DENSE_ITEMS, mean_length=DENSE_LENGTH
    )

    def long_batches() -> Iterator[Batch]:
        return endless(dense, length=DENSE_HISTORY, batch_targets=BATCH_TARGETS)

    our_dense = build_model(draw_table(DENSE_ITEMS), dense, history_length=DENSE_HISTORY)
    sasrec_dense = build_sasrec(dense, history_length=DENSE_HISTORY).to_device("auto").network
    our_dense.to(device)
    contestants = {
        "recgrit": Contestant(ours, our_batches(), lambda b: ours.loss(b).value, precision),
        "sasrec": Contestant(sasrec, our_batches(), lambda b: sasrec.loss(b).value, precision),
        "recgrit_dense": Contestant(
            our_dense, long_batches(), lambda b: our_dense.loss(b).value, precision
        ),
        "sasrec_dense": Contestant(
            sasrec_dense, long_batches(), lambda b: sasrec_dense.loss(b).value, precision
        ),
        "t5": T5Contestant(split, tokens, table.codebook_sizes, precision),
    }
    for contestant in contestants.values():
        contestant.step()  # A first step allocates memory and threads before the clock runs.
    for _ in range(arguments.repeats):
        for name, contestant in contestants.items():
            contestant.measure(1 if name == "t5" else arguments.steps)
    rates = {name: statistics.median(c.rates) for name, c in contestants.items()}
    found: dict[str, float | str] = {
        **{f"targets_per_second_{name}": rate for name, rate in rates.items()},
        **{
            f"parameters_{name}": sum(p.numel() for p in c.model.parameters())
            for name, c in contestants.items()
        },
        "speedup_vs_t5": rates["recgrit"] / rates["t5"],
        "speedup_vs_sasrec": rates["recgrit"] / rates["sasrec"],
        "speedup_vs_sasrec_dense": rates["recgrit_dense"] / rates["sasrec_dense"],
        "peak_rss_mb": peak_memory_mb(),
        "device": device.type,
        "precision": str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    found |= measure_growth(arguments.users // 16, precision)
    if arguments.run is not None:
        found |= time_to_tiger(arguments.run, arguments.stop_at, arguments.seed)
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
