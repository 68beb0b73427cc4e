"""Measure time and memory of one training step of a residual quantizer and of its peers.

    OMP_NUM_THREADS=1 python benchmarks/quantizer_step.py --json

One step is forward pass, reconstruction loss, backward pass, optimizer and codebook maintenance, on
B = 4,096 vectors of 64 dimensions through 4 levels. The peers are `StraightEma`, a moving-average
quantizer that is written for speed, and vector-quantize-pytorch's ResidualVQ
(``pip install -e ".[benchmarks]"``). The contestants take turns in one process, and the median time
of each is printed. Memory is the growth of the peak resident set, measured in a separate process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from recgrit.quantization import ResidualGRITVQ

BATCH, DIM, NUM_LEVELS = 4096, 64, 4
CHUNK = 1024


class StraightEma:
    """A minimal and fast quantizer: assignment, moving averages and straight-through gradients."""

    def __init__(self, codebook_size: int) -> None:
        self.codes = [torch.randn(codebook_size, DIM) / DIM**0.5 for _ in range(NUM_LEVELS)]
        self.sums = [codes.clone() for codes in self.codes]
        self.counts = [torch.ones(codebook_size) for _ in range(NUM_LEVELS)]

    def step(self, latent: torch.Tensor) -> None:
        """Take one training step on latent vectors ``[B, D]``."""
        with torch.no_grad():
            residual, total = latent.detach(), torch.zeros_like(latent)
            for codes, sums, counts in zip(self.codes, self.sums, self.counts, strict=True):
                offset = -0.5 * codes.square().sum(dim=-1)
                chosen = torch.empty(len(residual), dtype=torch.int64)
                for x, found in zip(residual.split(CHUNK), chosen.split(CHUNK), strict=True):
                    torch.addmm(offset, x, codes.T).numpy().argmax(axis=1, out=found.numpy())
                used = torch.bincount(chosen, minlength=len(codes)).float()
                counts.mul_(0.99).add_(used, alpha=0.01)
                sums.mul_(0.99).index_add_(0, chosen, residual, alpha=0.01)
                vectors = F.embedding(chosen, codes)
                residual, total = residual - vectors, total + vectors
                codes.copy_(sums / counts.clamp_min(1e-6)[:, None])
        output = latent + (total - latent).detach()
        loss = (output - latent.detach()).square().sum(dim=-1).mean()
        commitment = (latent - total).square().sum(dim=-1).mean()
        (loss + 0.05 * commitment).backward()


class Grit:
    """GRIT-VQ with its defaults: surrogate radius, linear transform, resets every 50 steps."""

    def __init__(self, codebook_size: int) -> None:
        self.quantizer = ResidualGRITVQ(DIM, NUM_LEVELS, codebook_size)
        self.optimizer = torch.optim.Adam(self.quantizer.parameters(), lr=1e-3)

    def step(self, latent: torch.Tensor) -> None:
        """Take one training step on latent vectors ``[B, D]``."""
        result = self.quantizer(latent)
        loss = (result.quantized - latent.detach()).square().sum(dim=-1).mean() + result.loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.quantizer.after_step(self.optimizer)


class Peer:
    """vector-quantize-pytorch's ResidualVQ with moving averages and dead-code resets."""

    def __init__(self, codebook_size: int) -> None:
        from vector_quantize_pytorch import ResidualVQ

        self.quantizer = ResidualVQ(
            dim=DIM,
            num_quantizers=NUM_LEVELS,
            codebook_size=codebook_size,
            decay=0.99,
            commitment_weight=0.05,
            threshold_ema_dead_code=2,
        )

    def step(self, latent: torch.Tensor) -> None:
        """Take one training step on latent vectors ``[B, D]``."""
        quantized, _, commitment = self.quantizer(latent[None])
        loss = (quantized[0] - latent.detach()).square().sum(dim=-1).mean()
        (loss + commitment.sum()).backward()


MAKERS: dict[str, Callable[[int], Grit | StraightEma | Peer]] = {
    "grit": Grit,
    "ema": StraightEma,
    "residualvq": Peer,
}


def time_steps(codebook_size: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a step of each contestant. The contestants take turns."""
    torch.manual_seed(0)
    contestants = {name: make(codebook_size) for name, make in MAKERS.items()}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 2):
        latent = torch.randn(BATCH, DIM)
        for name, contestant in contestants.items():
            given = latent.clone().requires_grad_()
            started = time.perf_counter()
            contestant.step(given)
            if turn >= 2:  # The first two turns warm up.
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_memory(name: str, codebook_size: int) -> float:
    """Return the growth in MiB of the peak resident set over five steps in a separate process."""
    command = [sys.executable, __file__, "--memory-of", name, "--codebook-size", str(codebook_size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_memory(name: str, codebook_size: int) -> None:
    torch.manual_seed(0)
    # A first small step makes torch load its libraries, whose memory is no contestant's.
    Grit(16).step(torch.randn(64, DIM, requires_grad=True))
    contestant = MAKERS[name](codebook_size)
    before = _peak_mib()
    for _ in range(5):
        contestant.step(torch.randn(BATCH, DIM, requires_grad=True))
    print(_peak_mib() - before)


def _peak_mib() -> float:
    """Return the peak memory of this process in MiB.

    ``ru_maxrss`` starts from the memory that the parent process held when it forked, so it is read
    only where ``/proc`` is missing.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--memory-of", choices=MAKERS, help=argparse.SUPPRESS)
    parser.add_argument("--codebook-size", type=int, default=16_384, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        _print_memory(arguments.memory_of, arguments.codebook_size)
        return
    small = time_steps(256, arguments.repeats)
    large = time_steps(4096, max(5, arguments.repeats // 3))
    memory = {name: measure_memory(name, 16_384) for name in ("grit", "residualvq")}
    for size, found in ((256, small), (4096, large)):
        print(f"K = {size}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()))
    print("K = 16384: " + ", ".join(f"{name} +{mib:.0f} MiB" for name, mib in memory.items()))
    if arguments.json:
        print(
            json.dumps(
                {
                    "vs_ema_k256": small["grit"] / small["ema"],
                    "speedup_vs_residualvq_k256": small["residualvq"] / small["grit"],
                    "vs_ema_k4096": large["grit"] / large["ema"],
                    "speedup_vs_residualvq_k4096": large["residualvq"] / large["grit"],
                    "rss_growth_mb": memory["grit"],
                    "rss_growth_mb_residualvq": memory["residualvq"],
                    "threads": torch.get_num_threads(),
                    "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
                }
            )
        )


if __name__ == "__main__":
    main()
