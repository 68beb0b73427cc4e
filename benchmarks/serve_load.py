"""Check the answers and the memory of a server under load, and under hostile requests.

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py runs/movielens-100k --json

The benchmark exports the run as an MLflow model, starts `mlflow models serve` on the loopback
interface and sends ordinary requests from several threads. The server opens its bundle through a
symbolic link. The benchmark swaps the link several times between two bundles. The second bundle
lacks the items that the first one lists most. Each answer is compared with the answers that both
bundles give in this process. Then the benchmark sends rounds of hostile requests: histories of a
million items, lists of a billion items, JSON that is nested too deeply. Memory is the sum over the
server's processes. The benchmark stops the server before it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
from printing import print_results
from serve_latency import NO_ANSWER, TIMEOUT, milliseconds, serve, write_body

from recgrit.runs import Run
from recgrit.serving.append import append_items
from recgrit.serving.bundle import Bundle
from recgrit.serving.writing import export_bundle
from recgrit.tracking.start import quieten_mlflow

WARM_UP_ROUNDS = 2
# Number of requests after which the server's memory is read again.
MEMORY_EVERY = 50
JSON = {"Content-Type": "application/json"}


def hostile_requests(item_ids: list[str], long: int) -> list[tuple[bytes, int]]:
    """Return bodies that no client should send, each with the expected status of its answer.

    Args:
        item_ids: Ids of items in the catalogue.
        long: Number of items in a long history.
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
    """Return whether two answers have equal items, and scores that are equal up to rounding."""
    return ours["item_ids"] == theirs["item_ids"] and np.allclose(
        ours["scores"], theirs["scores"], atol=1e-4
    )


def server_memory() -> float:
    """Return the memory in megabytes of all processes that this process started."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def make_second(first: Bundle, expected: Sequence[dict[str, Any]], folder: Path) -> Bundle:
    """Write a bundle without the items that the first bundle lists most.

    Most lists of the two bundles differ, so an answer shows which bundle gave it.

    Args:
        first: Bundle whose items are removed.
        expected: Answers of the first bundle.
        folder: Folder of the new bundle.
    """
    listed = Counter(item_id for answer in expected for item_id in answer["item_ids"])
    removed = [item_id for item_id, _ in listed.most_common(len(first.items) // 20)]
    return append_items(first, folder, removed=removed).bundle


class Swapped:
    """A client of a server whose bundle is swapped repeatedly.

    Args:
        address: Address of the server.
        link: Symbolic link through which the server opens its bundle.
        bundles: Bundles that the link leads to in turn. It leads to the first one at the start.
        histories: Histories that are sent, in turn.
        expected: Expected answers of each bundle, one per history.
        every: Number of requests between two swaps.
    """

    def __init__(
        self,
        address: str,
        link: Path,
        bundles: Sequence[Bundle],
        histories: Sequence[list[str]],
        expected: Sequence[Sequence[dict[str, Any]]],
        *,
        every: int,
    ) -> None:
        self.address = address
        self.link = link
        self.bundles = bundles
        self.bodies = [write_body([history]) for history in histories]
        self.expected = expected
        self.every = every
        self.memory: list[float] = []

    def ask(self, client: httpx.Client, number: int) -> tuple[float, int, list[bool]]:
        """Send one request, after a swap of the bundle if one is due.

        Returns:
            Seconds until the answer, its status, and for each bundle whether it gives this answer.
        """
        turn, since = divmod(number, self.every)
        if turn and not since:
            following = self.link.with_name("next")
            following.symlink_to(self.bundles[turn % len(self.bundles)].directory)
            following.replace(self.link)
        if number % MEMORY_EVERY == 0:
            self.memory.append(server_memory())
        place = number % len(self.bodies)
        started = time.perf_counter()
        status, answer = NO_ANSWER, None
        with contextlib.suppress(httpx.TransportError):
            reply = client.post(
                f"{self.address}/invocations",
                content=self.bodies[place],
                headers=JSON,
                timeout=TIMEOUT,
            )
            status, answer = reply.status_code, reply
        seconds = time.perf_counter() - started
        if status != 200 or answer is None:
            return seconds, status, [False] * len(self.expected)
        (ours,) = answer.json()["predictions"]
        return seconds, status, [same(ours, theirs[place]) for theirs in self.expected]


def send_ordinary(swapped: Swapped, *, requests: int, threads: int) -> dict[str, Any]:
    """Send ordinary requests from several threads while bundles change, and return the figures."""
    limits = httpx.Limits(max_connections=threads, max_keepalive_connections=threads)
    with httpx.Client(limits=limits) as client, ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: swapped.ask(client, 1), range(4 * threads)))
        before, started = server_memory(), time.perf_counter()
        asked = range(requests)
        seconds, statuses, right = zip(
            *pool.map(lambda number: swapped.ask(client, number), asked), strict=True
        )
        elapsed = time.perf_counter() - started
    taken_up = {
        number // swapped.every
        for number, by in enumerate(right)
        if by.count(True) == 1 and by[number // swapped.every % len(by)]
    }
    return {
        "requests": requests,
        "failed": {str(of): count for of, count in Counter(statuses).items() if of != 200},
        "wrong_answers": [any(by) for by in right].count(False),
        "bundles_answered_with": len(taken_up),
        "swaps": (requests - 1) // swapped.every,
        "requests_per_second": requests / elapsed,
        **milliseconds(seconds),
        "memory_before_mb": before,
        "memory_peak_mb": max(swapped.memory),
        "memory_after_mb": server_memory(),
    }


def send_hostile(
    address: str, hostile: Sequence[tuple[bytes, int]], *, rounds: int
) -> dict[str, float]:
    """Send rounds of hostile requests and return wrong statuses, times and growth of memory.

    Args:
        address: Address of the server.
        hostile: Bodies with the expected status of each.
        rounds: Number of times that all bodies are sent.
    """
    memory, slowest, odd = [], 0.0, 0
    with httpx.Client() as client:
        for _ in range(rounds):
            for body, status in hostile:
                started = time.perf_counter()
                reply = client.post(
                    f"{address}/invocations", content=body, headers=JSON, timeout=TIMEOUT
                )
                slowest = max(slowest, time.perf_counter() - started)
                odd += reply.status_code != status or "stack_trace" in reply.text
            memory.append(server_memory())
    settled = memory[min(WARM_UP_ROUNDS, rounds) - 1]
    return {
        "hostile_requests": rounds * len(hostile),
        "hostile_wrong_status": odd,
        "hostile_slowest_seconds": slowest,
        "memory_hostile_mb": settled,
        "memory_growth_mb": memory[-1] - settled,
    }


def main() -> None:
    """Run the measurements and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--requests", type=int, default=10_000, help="number of ordinary requests")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument(
        "--swaps", type=int, default=8, help="swaps of the bundle during the ordinary requests"
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="rounds of hostile requests; 0 sends none"
    )
    parser.add_argument(
        "--long", type=int, default=1_000_000, help="number of items in a long history"
    )
    arguments = parser.parse_args()
    quieten_mlflow()
    import mlflow.pyfunc

    from recgrit.serving.pyfunc import save_pyfunc

    run = Run(arguments.run)
    users = run.data.interactions.user_ids.head(512)
    histories = [run.history(user)["item_id"].to_list() for user in users]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = [export_bundle(run, folder / "first")]
        save_pyfunc(bundles[0], folder / "model")
        table, expected = pd.DataFrame({"history": histories}), []
        for number in range(2):
            if number:
                bundles.append(make_second(bundles[0], expected[0], folder / "second"))
            model = mlflow.pyfunc.load_model(
                str(folder / "model"), model_config={"bundle": str(bundles[number].directory)}
            )
            expected.append(model.predict(table).to_dict("records"))
        link = folder / "current"
        link.symlink_to(bundles[0].directory)
        every = -(-arguments.requests // (arguments.swaps + 1))
        with serve(folder / "model", folder / "log.txt", config={"bundle": str(link)}) as address:
            swapped = Swapped(address, link, bundles, histories, expected, every=every)
            found = send_ordinary(swapped, requests=arguments.requests, threads=arguments.threads)
            if arguments.rounds:
                item_ids = run.data.items.item_ids.to_list()
                hostile = hostile_requests(item_ids, arguments.long)
                found |= send_hostile(address, hostile, rounds=arguments.rounds)
    print_results(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
