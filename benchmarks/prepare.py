r"""Measure time and memory of preparing ratings, compared with the same job in plain pandas.

    POLARS_MAX_THREADS=2 python benchmarks/prepare.py --rows 25000000 --json
    POLARS_MAX_THREADS=2 python benchmarks/prepare.py --rows 100000000 --users 10000000 \
        --items 1000000 --without-pandas --json
    POLARS_MAX_THREADS=2 python benchmarks/prepare.py --rows 10000000 --users 1000000 \
        --items 200000 --without-pandas --partition-users 100000 --log --json

The benchmark writes ``ratings.csv`` in MovieLens' official format and runs two jobs on it.

* ``recgrit`` runs the stage `prepare` with the code of `recgrit prepare`. It hashes the input,
  reads it, drops duplicates, filters to the 5-core, indexes, sorts, splits leave-one-out, saves,
  and hashes the files again. All of this is timed.
* ``pandas`` does only what leads to the sequences. It reads with types, drops duplicates, filters
  to the 5-core by `transform`, factorizes, sorts and saves.

With `--partition-users` a third job, ``partitions``, runs the stage in partitions on disk. Each
job runs in its own process, and imports are not timed. The result ``same_sequences`` says whether
``recgrit`` and ``pandas`` gave the same sequences, and ``same_artifact`` whether ``partitions``
gave the same artifact as ``recgrit``. ``open_ms`` is the time until the memory-mapped sequences can
be used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from printing import print_results
from ratings import write_ratings

MIN_INTERACTIONS = 5


def prepare_by_us(folder: Path, partition_users: int | None = None) -> dict[str, Any]:
    """Run the stage `prepare` as a user runs it, and return its figures.

    Args:
        folder: Folder of ``ratings.csv``. The run folder is made in it.
        partition_users: Number of users per partition on disk. None prepares in memory.
    """
    from recgrit.config import load_config
    from recgrit.data.splits import SequenceSplit
    from recgrit.experiment import ExperimentConfig
    from recgrit.pipeline import peak_memory_mb, run_experiment

    config = load_config(
        ExperimentConfig,
        None,
        [
            "data.source=movielens-25m",
            f"data.path={folder}",
            f"run.dir={folder / ('run' if partition_users is None else 'partitions')}",
            f"data.partition_users={'null' if partition_users is None else partition_users}",
            "tracking.backend=none",
        ],
    )
    start_rss_mb = read_rss_mb()
    started, cpu = time.perf_counter(), time.process_time()
    run_experiment(config, until="prepare")
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak_rss_mb = peak_memory_mb()
    data = config.run.dir / "data"
    manifest = json.loads((data / "manifest.json").read_text())
    summary = manifest["summary"]
    started = time.perf_counter()
    split = SequenceSplit.load(data, num_items=summary["num_items"])
    split.history(split.num_users // 2, "test")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_mb": peak_rss_mb,
        "start_rss_mb": start_rss_mb,
        "fingerprint": manifest["fingerprint"],
        "open_ms": 1000 * (time.perf_counter() - started),
        **{f"num_{name}": summary[f"num_{name}"] for name in ("users", "items", "interactions")},
    }


def prepare_by_pandas(folder: Path) -> dict[str, Any]:
    """Run the same job as a script would, in plain pandas, and return its figures."""
    import pandas as pd

    from recgrit.pipeline import peak_memory_mb

    out = folder / "pandas"
    out.mkdir()
    started, cpu = time.perf_counter(), time.process_time()
    frame = pd.read_csv(
        folder / "ratings.csv",
        dtype={"userId": "int32", "movieId": "int32", "rating": "float32", "timestamp": "int64"},
    )
    frame = frame.drop_duplicates(["userId", "movieId", "timestamp"])
    while True:
        before = len(frame)
        for name in ("userId", "movieId"):
            counts = frame.groupby(name)[name].transform("size")
            frame = frame[counts >= MIN_INTERACTIONS]
        if len(frame) == before:
            break
    users, user_ids = pd.factorize(frame["userId"])
    items, item_ids = pd.factorize(frame["movieId"])
    frame = frame.assign(user_idx=users.astype("int32"), item_idx=items.astype("int32"))
    frame = frame.sort_values(["user_idx", "timestamp"], kind="stable")
    columns = ["user_idx", "item_idx", "timestamp", "rating"]
    frame[columns].to_parquet(out / "interactions.parquet", index=False)
    pd.DataFrame({"user_id": user_ids.astype(str)}).to_parquet(out / "users.parquet")
    pd.DataFrame({"item_id": item_ids.astype(str)}).to_parquet(out / "items.parquet")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(frame["user_idx"]))])
    np.save(out / "sequence_items.npy", frame["item_idx"].to_numpy())
    np.save(out / "sequence_offsets.npy", offsets)
    ends = offsets[1:]
    np.save(out / "sequence_splits.npy", np.stack([ends - 2, ends - 2, ends - 1]))
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_mb": peak_memory_mb(),
    }


def read_rss_mb() -> float:
    """Return the memory that this process holds now, in MiB.

    The current memory serves as the start value, because the peak of a new process begins with the
    memory of the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 2**10


JOBS = ("recgrit", "pandas", "partitions")
FOLDERS = {"recgrit": "run"}


def run_job(job: str, folder: Path, partition_users: int | None) -> dict[str, Any]:
    """Run a job in this process and return its figures."""
    if job == "pandas":
        return prepare_by_pandas(folder)
    return prepare_by_us(folder, partition_users if job == "partitions" else None)


def run_apart(job: str, folder: Path, partition_users: int | None) -> dict[str, Any]:
    """Run a job in its own process and return its figures."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder)]
    if partition_users is not None:
        command += ["--partition-users", str(partition_users)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def count_bytes(run: dict[str, Any], rows: int) -> float:
    """Return the bytes of memory per row: the peak minus the memory at the start of the stage."""
    return float((run["peak_rss_mb"] - run["start_rss_mb"]) * 2**20 / rows)


def give_same_sequences(folder: Path) -> bool:
    """Return whether recgrit and pandas wrote equal sequences, offsets and targets."""
    return all(
        np.array_equal(
            np.load(folder / "run" / "data" / name, mmap_mode="r"),
            np.load(folder / "pandas" / name, mmap_mode="r"),
        )
        for name in ("sequence_items.npy", "sequence_offsets.npy", "sequence_splits.npy")
    )


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--rows", type=int, default=25_000_000)
    parser.add_argument(
        "--users", type=int, help="number of users; default: as many per row as MovieLens-25M"
    )
    parser.add_argument("--items", type=int, default=59_047)
    parser.add_argument("--without-pandas", action="store_true")
    parser.add_argument(
        "--partition-users", type=int, help="also prepare in partitions of this many users"
    )
    parser.add_argument(
        "--log", action="store_true", help="write the rows in order of time, not by user"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="times to run each job; the fastest counts"
    )
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder of all files")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(run_job(arguments.job, arguments.folder, arguments.partition_users)))
        return
    jobs = ["recgrit"]
    if not arguments.without_pandas:
        jobs.append("pandas")
    if arguments.partition_users is not None:
        jobs.append("partitions")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        users = arguments.users or max(1, round(arguments.rows / 153.8))
        write_ratings(
            folder,
            rows=arguments.rows,
            users=users,
            items=arguments.items,
            as_log=arguments.log,
        )
        generated = time.perf_counter() - started
        runs: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
        for repeat in range(arguments.repeats):
            for job in jobs:
                if repeat:
                    shutil.rmtree(folder / FOLDERS.get(job, job))
                runs[job].append(run_apart(job, folder, arguments.partition_users))
        best = {job: min(of_job, key=lambda run: run["seconds"]) for job, of_job in runs.items()}
        found = {
            "rows": arguments.rows,
            "file_mb": (folder / "ratings.csv").stat().st_size / 1e6,
            "generate_seconds": generated,
            **best["recgrit"],
            "peak_bytes_a_row": count_bytes(best["recgrit"], arguments.rows),
            "threads": int(os.environ.get("POLARS_MAX_THREADS", os.cpu_count() or 1)),
        }
        if "pandas" in best:
            found |= {f"{key}_pandas": value for key, value in best["pandas"].items()}
            found["speedup_vs_pandas"] = best["pandas"]["seconds"] / best["recgrit"]["seconds"]
            found["same_sequences"] = give_same_sequences(folder)
        if "partitions" in best:
            apart = best["partitions"]
            for key in ("seconds", "cpu_seconds", "peak_rss_mb", "start_rss_mb"):
                found[f"{key}_partitions"] = apart[key]
            found["peak_bytes_a_row_partitions"] = count_bytes(apart, arguments.rows)
            found["rows_a_second_partitions"] = arguments.rows / apart["seconds"]
            found["same_artifact"] = apart["fingerprint"] == best["recgrit"]["fingerprint"]
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
