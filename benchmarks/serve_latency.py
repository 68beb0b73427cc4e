"""Measure latency, users per second and errors of a run's model behind HTTP.

    OMP_NUM_THREADS=1 python benchmarks/serve_latency.py runs/amazon2014-beauty --cores 0 --json

The benchmark exports the run as an MLflow model and starts `mlflow models serve` on the loopback
interface. 1, 8 and 32 clients send requests at once. A client sends its next request when it has
the answer to the last one. The first rows have one user per request, the next rows have tables of
users. The histories are those of the run's users, in turn.

``users_per_processor_second`` divides by the server's processor time. It is the rate of a core that
serves nothing else, also where other processes share the core. The benchmark also measures the same
model in this process, which shows what HTTP and JSON add.

Finally the server starts with a short timeout and gets more requests than it can answer in that
time, first without and then with a limit on concurrent requests. The benchmark prints the errors by
status, and the seconds after the load until a request is answered again. It stops all servers
before it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
from printing import print_results

from recgrit.runs import Run
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow

START_SECONDS = 240
STOP_SECONDS = 20
# Seconds a client waits for an answer. Longer than any server timeout, so the server's status is
# always seen.
TIMEOUT = 300
# Stands in place of the status if no answer came.
NO_ANSWER = 0


@contextlib.contextmanager
def serve(
    model: Path,
    log: Path,
    *,
    cores: Sequence[int] = (),
    timeout: int | None = None,
    limit: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Run `mlflow models serve` on a free port during a with-block, and yield its address.

    Args:
        model: Folder of an MLflow model.
        log: File for the output of the server.
        cores: Numbers of the processors that the server may run on. Empty allows all.
        timeout: Seconds after which the server answers 504. None keeps MLflow's timeout.
        limit: Most concurrent connections and requests. Beyond it the server answers 503. None sets
            no limit.
        config: Configuration of the model, over the one that it was saved with. None keeps that.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    command += [] if timeout is None else ["--timeout", str(timeout)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # `mlflow models serve` calls uvicorn by its name, so PATH has to hold its folder.
            env=os.environ
            | {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "SERVING_MODEL_CONFIG": json.dumps(dict(config or {})),
            }
            | ({} if limit is None else {"UVICORN_LIMIT_CONCURRENCY": str(limit)}),
        )
    if cores:
        psutil.Process(process.pid).cpu_affinity(list(cores))  # Child processes inherit it.
    try:
        _wait_for(address, process, log)
        yield address
    finally:
        _stop(process, port)


def _stop(process: subprocess.Popen[bytes], port: int) -> None:
    """Stop a server, whose processes form one group, and wait until its port is free.

    The port is checked because the started process ends before the process that listens.
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
    """Send one request for histories and return the server's predictions.

    ``params`` are the parameters of the request, such as ``top_k``.
    """
    records = [{"history": history} for history in histories]
    reply = client.post(
        f"{address}/invocations", json={"dataframe_records": records, "params": params}, timeout=120
    )
    reply.raise_for_status()
    return reply.json()["predictions"]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of times in seconds, as milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50_ms": 1000 * float(p50), "p99_ms": 1000 * float(p99)}


def clock(call: Callable[[int], object], times: int) -> list[float]:
    """Call a function repeatedly, with the number of the call, and return the seconds of each."""
    call(0)
    taken = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - started)
    return taken


def write_body(histories: Sequence[Sequence[str]]) -> bytes:
    """Return the body of the request for histories."""
    return json.dumps({"dataframe_records": [{"history": list(ids)} for ids in histories]}).encode()


def post(client: httpx.Client, address: str, body: bytes) -> tuple[float, int]:
    """Send a request and return the seconds until its whole answer, and its status.

    The status is `NO_ANSWER` if the connection failed.
    """
    started = time.perf_counter()
    kind = {"Content-Type": "application/json"}
    try:
        reply = client.post(f"{address}/invocations", content=body, headers=kind, timeout=TIMEOUT)
        status = reply.status_code
    except httpx.TransportError:
        status = NO_ANSWER
    return time.perf_counter() - started, status


def server_seconds() -> float:
    """Return the processor seconds so far of all processes that this process started."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(of_one.user + of_one.system for of_one in times)


def load_server(
    address: str, bodies: Sequence[bytes], *, clients: int, requests: int, users: int
) -> dict[str, Any]:
    """Send requests without a pause and return times, errors by status and users per second.

    Args:
        address: Address of the server.
        bodies: Bodies of requests, sent in turn.
        clients: Number of clients that send at once.
        requests: Number of requests that all clients send together.
        users: Number of users in each request.
    """
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    with httpx.Client(limits=limits) as client, ThreadPoolExecutor(clients) as pool:

        def ask_for(number: int) -> tuple[float, int]:
            return post(client, address, bodies[number % len(bodies)])

        list(pool.map(ask_for, range(clients)))
        used, started = server_seconds(), time.perf_counter()
        seconds, statuses = zip(*pool.map(ask_for, range(requests)), strict=True)
        elapsed, used = time.perf_counter() - started, server_seconds() - used
    answered = Counter(statuses)
    return {
        "clients": clients,
        "users_of_a_request": users,
        "requests": requests,
        "errors": {str(status): count for status, count in answered.items() if status != 200},
        **milliseconds(seconds),
        "users_per_second": answered[200] * users / elapsed,
        "users_per_processor_second": answered[200] * users / used,
    }


def seconds_to_recover(address: str, body: bytes) -> float:
    """Return the seconds until the server answers a request with status 200."""
    started = time.perf_counter()
    with httpx.Client() as client:
        while post(client, address, body)[1] != 200:
            time.sleep(0.05)
    return time.perf_counter() - started


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the names of the columns, then one line per row."""
    print("  ".join(rows[0]))
    for row in rows:
        cells = [f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        print("  ".join(cell.rjust(len(name)) for name, cell in zip(row, cells, strict=True)))


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument(
        "--clients", default="1,8,32", help="numbers of clients that send at once, in turn"
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests for one user, per row")
    parser.add_argument(
        "--tables", type=int, default=96, help="requests for tables of users, per row"
    )
    parser.add_argument("--table-users", type=int, default=128)
    parser.add_argument("--cores", default="", help="numbers of the server's processors, such as 0")
    parser.add_argument(
        "--timeout", type=int, default=1, help="timeout in seconds of the overloaded server"
    )
    parser.add_argument(
        "--limit", type=int, default=4, help="most concurrent requests of the last server"
    )
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.clients.split(",")]
    cores = [int(core) for core in arguments.cores.split(",") if core]
    quieten_mlflow()
    import mlflow.pyfunc

    from recgrit.serving.pyfunc import save_pyfunc

    run = Run(arguments.run)
    users = run.data.interactions.user_ids.head(512)
    histories = [run.history(user)["item_id"].to_list() for user in users]
    singles = [write_body([history]) for history in histories]
    per_table = arguments.table_users
    tables = [
        write_body([histories[(start + place) % len(histories)] for place in range(per_table)])
        for start in range(0, len(histories), per_table)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pyfunc(export_bundle(run, folder / "bundle"), folder / "model")
        model = mlflow.pyfunc.load_model(str(folder / "model"))
        frames = [pd.DataFrame({"history": [history]}) for history in histories]
        here = clock(lambda i: model.predict(frames[i % len(frames)]), arguments.requests)
        others = set(psutil.Process().cpu_affinity()) - set(cores) if cores else set()
        if others:
            psutil.Process().cpu_affinity(sorted(others))
        with serve(folder / "model", folder / "log.txt", cores=cores) as address:
            rows = [
                load_server(address, bodies, clients=clients, requests=requests, users=size)
                for bodies, requests, size in (
                    (singles, arguments.requests, 1),
                    (tables, arguments.tables, per_table),
                )
                for clients in counts
            ]
        overloads = {}
        for kind, limit in (("overload", None), ("overload_limited", arguments.limit)):
            with serve(
                folder / "model",
                folder / "log.txt",
                cores=cores,
                timeout=arguments.timeout,
                limit=limit,
            ) as address:
                seconds_to_recover(address, singles[0])
                overloads[kind] = load_server(
                    address, tables, clients=counts[-1], requests=arguments.tables, users=per_table
                )
                overloads[kind]["recovery_seconds"] = seconds_to_recover(address, singles[0])
    print_table(rows)
    print_table(list(overloads.values()))
    found: dict[str, object] = {
        **{f"in_process_{key}": value for key, value in milliseconds(here).items()},
        "rows": rows,
        **overloads,
        "num_items": len(run.data.items),
        "mean_history": float(np.mean([len(history) for history in histories])),
    }
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
