"""A server under load and under abuse: answers that stay right, the 99th percentile, and memory.

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py runs/movielens-100k --json

Exports the run as an MLflow model, starts `mlflow models serve` on the loopback interface and sends
it ordinary requests from several threads, each compared with what the model says in this process.
Then come hostile ones, in rounds: histories of a million items, lists of a billion, JSON that is
too deep. Memory is that of the server's processes. Ends by itself and stops the server.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
from printing import print_results
from serve_latency import ask, serve

from recgrit.runs import Run
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow

ROUNDS = 6
WARM_UP_ROUNDS = 2
TIMEOUT = 300


def hostile_requests(item_ids: list[str], long: int) -> list[tuple[bytes, int]]:
    """Bodies that no client should send, and the status that each deserves.

    Args:
        item_ids: Some of the catalogue.
        long: Items of a long history.
    """

    def records(*histories: Any, **params: Any) -> bytes:
        rows = [{"history": history} for history in histories]
        return json.dumps({"dataframe_records": rows, "params": params}).encode()

    known = (item_ids * (1 + long // len(item_ids)))[:long]
    return [
        (records(known), 200),
        (records(known, *[item_ids[:1]] * 300), 200),
        (records([f"no such item {number}" for number in range(long)]), 200),
        (records(item_ids, top_k=10**9), 200),
        (records(*[item_ids[:1]] * 1000, top_k=10**9), 200 if len(item_ids) <= 2000 else 400),
        (records(item_ids, top_k=0), 400),
        (records([1, 2]), 400),
        (b"[" * 100_000, 400),
        (b'{"dataframe_records": ' + b"[" * 600 + b"]" * 600 + b"}", 400),
        (b'{"dataframe_records": [], "params": {"top_k": ' + b"9" * 5000 + b"}}", 400),
    ]


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two answers are equal, scores up to rounding."""
    return ours["item_ids"] == theirs["item_ids"] and np.allclose(
        ours["scores"], theirs["scores"], atol=1e-4
    )


def server_memory() -> float:
    """Megabytes of all processes that this one started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--requests", type=int, default=10_000, help="ordinary ones")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--long", type=int, default=1_000_000, help="items of a long history")
    arguments = parser.parse_args()
    quieten_mlflow()
    import mlflow.pyfunc

    from recgrit.serving.pyfunc import save_pyfunc

    run = Run(arguments.run)
    users = run.data.interactions.user_ids.head(512)
    histories = [run.history(user)["item_id"].to_list() for user in users]
    with (
        tempfile.TemporaryDirectory() as name,
        httpx.Client(limits=httpx.Limits(max_connections=arguments.threads)) as client,
    ):
        folder = Path(name)
        save_pyfunc(export_bundle(run, folder / "bundle"), folder / "model")
        model = mlflow.pyfunc.load_model(str(folder / "model"))
        expected = model.predict(pd.DataFrame({"history": histories})).to_dict("records")
        with serve(folder / "model", folder / "log.txt") as address:

            def request(number: int) -> tuple[float, bool]:
                place = number % len(histories)
                started = time.perf_counter()
                (answer,) = ask(client, address, [histories[place]])
                return time.perf_counter() - started, same(answer, expected[place])

            with ThreadPoolExecutor(arguments.threads) as pool:
                list(pool.map(request, range(4 * arguments.threads)))
                before, started = server_memory(), time.perf_counter()
                taken, right = zip(*pool.map(request, range(arguments.requests)), strict=True)
                seconds = time.perf_counter() - started
            found: dict[str, float] = {
                "requests": arguments.requests,
                "wrong_answers": right.count(False),
                "requests_per_second": arguments.requests / seconds,
                "p50_ms": 1000 * float(np.median(taken)),
                "p99_ms": 1000 * float(np.percentile(taken, 99)),
                "memory_before_mb": before,
                "memory_after_mb": server_memory(),
            }
            item_ids = run.data.items.item_ids.to_list()
            hostile, memory, slowest, odd = hostile_requests(item_ids, arguments.long), [], 0.0, 0
            for _ in range(ROUNDS):
                for body, status in hostile:
                    started = time.perf_counter()
                    kind = {"Content-Type": "application/json"}
                    reply = client.post(
                        f"{address}/invocations", content=body, headers=kind, timeout=TIMEOUT
                    )
                    slowest = max(slowest, time.perf_counter() - started)
                    odd += reply.status_code != status or "stack_trace" in reply.text
                memory.append(server_memory())
    found |= {
        "hostile_requests": ROUNDS * len(hostile),
        "hostile_wrong_status": odd,
        "hostile_slowest_seconds": slowest,
        "memory_hostile_mb": memory[WARM_UP_ROUNDS - 1],
        "memory_growth_mb": memory[-1] - memory[WARM_UP_ROUNDS - 1],
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
