from __future__ import annotations

import io
import logging
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from recgrit.data import download
from recgrit.data.download import fetch_movielens_100k
from recgrit.data.sources import load_source
from recgrit.errors import DataError


class Answers(BaseHTTPRequestHandler):
    """Serves what its class variables say, or cuts the stream half way."""

    archive: ClassVar[bytes] = b""
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        body = b"<!doctype html><p>log in" if self.path == "/page.zip" else self.archive
        self.send_response(200)
        if self.path != "/unsized.zip":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut.zip" else body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test server is on this machine, which a proxy would not reach."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def archive(write_dataset: Callable[..., Path]) -> bytes:
    folder = write_dataset("movielens-100k", folder="source")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as stream:
        for path in folder.iterdir():
            stream.write(path, f"ml-100k/{path.name}")
    return buffer.getvalue()


@pytest.fixture
def address(archive: bytes) -> Iterator[str]:
    Answers.archive = archive
    Answers.requests = []
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pip_calls(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """Stands in for pip: puts a wheel with the atomic files where it was told to."""
    folder = write_dataset("recbole", folder="mirror")
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as stream:
            stream.writestr("../escape.txt", "x")
            stream.writestr("recbole/__init__.py", "raise SystemExit")
            for path in folder.iterdir():
                stream.write(path, f"recbole/dataset_example/ml-100k/{path.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    return calls


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such package\n")

    monkeypatch.setattr(download.subprocess, "run", run)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows_read(path: Path) -> int:
    source = load_source("movielens-100k")
    return source.read(source.find_files(path)).counts["rows_read"]


@pytest.mark.parametrize("name", ["whole.zip", "unsized.zip"])
def test_official_archive(
    name: str, address: str, target: Path, pip_calls: list[list[str]]
) -> None:
    path = fetch_movielens_100k(target, f"{address}/{name}")
    assert path == target / "ml-100k.zip"
    assert names(target) == ["ml-100k.zip"]
    assert rows_read(path) == 6
    assert not pip_calls


def test_second_call_takes_the_copy(
    address: str, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetch_movielens_100k(target, f"{address}/whole.zip")
    assert fetch_movielens_100k(target, f"{address}/whole.zip") == first
    assert Answers.requests == ["/whole.zip"]
    assert caplog.text.count("research use") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [("cut.zip", "RemoteProtocolError"), ("missing.zip", "404"), ("page.zip", "not a zip archive")],
)
def test_bad_answers_lead_to_the_mirror(
    name: str,
    reason: str,
    address: str,
    target: Path,
    pip_calls: list[list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=download.__name__)
    path = fetch_movielens_100k(target, f"{address}/{name}")
    assert path == target / "ml-100k"
    # Nothing half-written, and nothing of the wheel but the data.
    assert names(target) == ["ml-100k/ml-100k.inter", "ml-100k/ml-100k.item"]
    assert names(target.parent).count("escape.txt") == 0
    assert rows_read(path) == 6
    assert pip_calls[0][-1] == "recbole==1.2.1"
    assert "--no-deps" in pip_calls[0]
    assert reason in caplog.text
    assert "research use" in caplog.text


def test_archive_without_the_data(address: str, target: Path, no_pip: None) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as stream:
        stream.writestr("readme.txt", "x")
    Answers.archive = buffer.getvalue()
    with pytest.raises(DataError, match=r"lacks ml-100k/u\.data"):
        fetch_movielens_100k(target, f"{address}/whole.zip")
    assert names(target) == []


def test_when_all_fails_the_way_by_hand_is_told(target: Path, no_pip: None) -> None:
    # Nobody listens on port 9.
    with pytest.raises(DataError) as caught:
        fetch_movielens_100k(target, "http://127.0.0.1:9/ml-100k.zip")
    message = str(caught.value)
    for part in (
        "ConnectError",
        "ERROR: no such package",
        "Download http://127.0.0.1:9/ml-100k.zip",
        str(target / "ml-100k.zip"),
        "data.path=PATH",
    ):
        assert part in message
    assert names(target) == []


def test_damaged_copy_is_replaced(address: str, target: Path) -> None:
    target.mkdir()
    (target / "ml-100k.zip").write_bytes(b"half")
    path = fetch_movielens_100k(target, f"{address}/whole.zip")
    assert rows_read(path) == 6


def test_wheel_without_the_data(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        wheel = Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl"
        zipfile.ZipFile(wheel, "w").close()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    with pytest.raises(DataError, match="does not hold the data"):
        fetch_movielens_100k(target, "http://127.0.0.1:9/x.zip")


def test_slow_pip_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(download.subprocess, "run", run)
    with pytest.raises(DataError, match="pip gave no answer"):
        fetch_movielens_100k(target, "not an address")


def test_folder_that_cannot_be_written(tmp_path: Path, no_pip: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be fetched"):
        fetch_movielens_100k(tmp_path / "file" / "x", "http://127.0.0.1:9/x.zip")
