"""Fixtures of a Ray cluster with two workers, which the tests share."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recgrit.engines.config import EngineConfig
from recgrit.engines.engine import start_engine

OBJECT_STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Start the Ray cluster and return its address."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The path is short because it contains sockets.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    log = Path(folder) / "start.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "num-gpus": 1,  # Ray does not check that there is a GPU.
        "object-store-memory": OBJECT_STORE_BYTES,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.update(environment)
    with log.open("wb") as stream:
        head = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        # Kill the whole process group, because a normal stop takes half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_engine(cluster):
    """Return an engine of two workers that stays connected to the cluster."""
    with start_engine(EngineConfig(kind="ray", address=cluster, num_workers=2)) as engine:
        yield engine
