"""A run's model behind HTTP: how long one user waits, and how many a second are served.

    OMP_NUM_THREADS=1 python benchmarks/serve_latency.py runs/movielens-100k --json

Exports the run as an MLflow model, starts `mlflow models serve` on the loopback interface and asks
it: one user at a time for the latency, then tables of users from several threads for the
throughput, both a fixed number of times. Histories are those of the run's users, in turn. The same
model in this process says what HTTP and JSON add. Ends by itself and stops the server.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from printing import print_results

from recgrit.runs import Run
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow

START_SECONDS = 240
STOP_SECONDS = 20


@contextlib.contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """The address of `mlflow models serve` on a free port, for the length of a block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # `mlflow models serve` calls uvicorn by its name, as in an activated environment.
            env=os.environ
            | {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
    try:
        _wait_for(address, process, log)
        yield address
    finally:
        _stop(process, port)


def _stop(process: subprocess.Popen[bytes], port: int) -> None:
    """Ends a server, whose processes are all of one group, and waits for its port to be free.

    The process that was started ends before the one that listens does, so its end says nothing.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while _listens(port) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ping").status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def ask(client: httpx.Client, address: str, histories: list[list[str]], **params: Any) -> Any:
    """The predictions for histories, as the server sends them."""
    records = [{"history": history} for history in histories]
    reply = client.post(
        f"{address}/invocations", json={"dataframe_records": records, "params": params}, timeout=120
    )
    reply.raise_for_status()
    return reply.json()["predictions"]


def milliseconds(call: Callable[[int], object], times: int) -> dict[str, float]:
    """Median and 99th percentile of one call after another."""
    call(0)
    taken = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        taken.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": float(np.median(taken)), "p99_ms": float(np.percentile(taken, 99))}


def saturate(call: Callable[[int], object], requests: int, threads: int) -> float:
    """Requests a second of so many threads that ask without a pause."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))
        started = time.perf_counter()
        list(pool.map(call, range(requests)))
        return requests / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--requests", type=int, default=300, help="for the latency of one user")
    parser.add_argument("--tables", type=int, default=16, help="tables of users at saturation")
    parser.add_argument("--table-users", type=int, default=128)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    quieten_mlflow()
    import mlflow.pyfunc

    from recgrit.serving.pyfunc import save_pyfunc

    run = Run(arguments.run)
    users = run.data.interactions.user_ids.head(512)
    histories = [run.history(user)["item_id"].to_list() for user in users]
    chosen = [histories[i % len(histories)] for i in range(arguments.table_users)]
    with tempfile.TemporaryDirectory() as name, httpx.Client() as client:
        folder = Path(name)
        save_pyfunc(export_bundle(run, folder / "bundle"), folder / "model")
        model = mlflow.pyfunc.load_model(str(folder / "model"))
        tables = [pd.DataFrame({"history": [history]}) for history in histories]
        found: dict[str, float] = {
            f"in_process_{key}": value
            for key, value in milliseconds(
                lambda i: model.predict(tables[i % len(tables)]), arguments.requests
            ).items()
        }
        with serve(folder / "model", folder / "log.txt") as address:
            found |= milliseconds(
                lambda i: ask(client, address, [histories[i % len(histories)]]), arguments.requests
            )
            found["users_per_second"] = arguments.table_users * saturate(
                lambda i: ask(client, address, chosen), arguments.tables, arguments.threads
            )
            found["single_users_per_second"] = saturate(
                lambda i: ask(client, address, [histories[i % len(histories)]]),
                arguments.requests,
                arguments.threads,
            )
    found |= {
        "num_items": float(len(run.semantic_ids)),
        "mean_history": float(np.mean([len(history) for history in histories])),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
