"""Measure seconds, memory and written bytes of each stage by catalogue size, and fit lines.

    python benchmarks/scaling.py --stages trie,assign --sizes 1e5,1e6,1e7 --json
    python benchmarks/scaling.py --stages embed --sizes 500,1000,2000 --out docs/results/scaling
    python benchmarks/scaling.py --fit docs/results/scaling

Size N is the number of items. A stage that needs users gets N users with ten interactions each,
except `train` and `recommend`, which draw a fixed number of users. Each measurement runs in its own
process with one thread, on synthetic inputs in the shape of real data. It yields the time, the peak
memory after the inputs are drawn, and the bytes that the stage writes. Costs of training are per
million targets and costs of recommending per million users, because they do not depend on the
number of items alone.

The lines are CPU seconds = a + b N, and the same for memory and bytes, with a and b at least 0, by
least squares on the relative error. Other work on the machine changes CPU seconds little and
elapsed seconds much. Both are kept. `--memory-gb` ends a measurement that needs more memory, so
that the machine does not run out of it. `--out` keeps the rows in one JSON file per stage, and
`--fit` reads them again.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scaling_stages import STAGES
from scipy.optimize import nnls
from trie_scale import peak_mb, reset_peak

FITTED = ("cpu_seconds", "peak_rss_mb", "written_mb")


def measure(stage: str, size: int, folder: Path) -> dict[str, float]:
    """Measure a stage once, in this process.

    Args:
        stage: Name of the stage, a key of `STAGES`.
        size: Number of items.
        folder: Empty folder for the inputs and, in ``out``, for what the stage writes.
    """
    torch.set_num_threads(1)
    out = folder / "out"
    out.mkdir()
    work = STAGES[stage].draw(size, folder)
    gc.collect()
    held_mb = reset_peak()
    started, cpu = time.perf_counter(), time.process_time()
    millions = work() or 1.0
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_mb()
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "seconds": seconds / millions,
        "cpu_seconds": cpu_seconds / millions,
        "peak_rss_mb": peak,
        "held_mb": held_mb,
        "written_mb": written / 2**20 / millions,
    }


def measure_apart(stage: str, size: int, repeats: int, memory_gb: float) -> dict[str, Any] | None:
    """Measure a stage in separate processes and return the medians. None means that one failed.

    Args:
        stage: Name of the stage, a key of `STAGES`.
        size: Number of items.
        repeats: Number of measurements.
        memory_gb: Most memory of a process, in GiB.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--measure", stage, str(size), folder]
            done = subprocess.run(
                command,
                capture_output=True,
                check=False,
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
    """Fit a line by least squares on the relative error, with both constants at least 0.

    >>> {k: round(v, 3) for k, v in fit_line([10, 20, 40], [25, 45, 85]).items()}
    {'fixed': 5.0, 'per_item': 2.0, 'worst': 0.0}
    """
    x, y = np.array(sizes, float), np.array(values, float)
    scale = x.max()
    fixed, slope = nnls(np.stack([1 / y, x / scale / y], axis=1), np.ones(len(y)))[0]
    worst = np.abs((fixed + slope * x / scale) / y - 1).max()
    return {"fixed": float(fixed), "per_item": float(slope / scale), "worst": float(worst)}


def fit_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Fit and print a line per quantity for each stage that was measured at two sizes or more."""
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
    """Run the measurements, fit the lines and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--sizes", default="1e5,1e6,1e7")
    parser.add_argument("--stages", default="trie", help=f"stages to measure: {', '.join(STAGES)}")
    parser.add_argument("--repeats", type=int, default=1, help="number of measurements per median")
    parser.add_argument("--memory-gb", type=float, default=12.0)
    parser.add_argument("--out", type=Path, help="folder for the rows, one file per stage")
    parser.add_argument("--fit", type=Path, help="fit the rows of this folder and measure nothing")
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
                print(
                    ", ".join(
                        f"{k} {v:,.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()
                    ),
                    flush=True,
                )
                if arguments.out:
                    keep_row(arguments.out / f"{stage}.json", row)
    lines = fit_rows(rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "fits": lines}))


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a stage from its file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def keep_row(path: Path, row: dict[str, Any]) -> None:
    """Write a row into the file of its stage, in place of an earlier row of the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [r for r in load_rows(path) if r["size"] != row["size"]] if path.is_file() else []
    rows = sorted([*others, row], key=lambda row: float(row["size"]))
    machine = {
        "cpu": "1 of 2 cores of an AMD EPYC, no GPU",
        "memory_gb": 23,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
