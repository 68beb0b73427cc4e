from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from recgrit.data import transfer
from recgrit.data.transfer import fetch_file
from recgrit.errors import DataError

CONTENT = b"PK" + bytes(range(256)) * 500


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def server(file_server: Any) -> Any:
    file_server.content = CONTENT
    return file_server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "data.zip"


def left_over(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir() if not p.name.startswith("."))


@pytest.mark.parametrize("way", ["whole", "unsized", "moved", "cut-once"])
def test_the_whole_file_is_fetched(server: Any, target: Path, way: str) -> None:
    assert fetch_file([f"{server.address}/{way}/data.zip"], target) == target
    assert target.read_bytes() == CONTENT
    assert left_over(target) == ["checksums.json", "data.zip"]
    assert json.loads((target.parent / "checksums.json").read_text()) == {
        "data.zip": hashlib.sha256(CONTENT).hexdigest()
    }
    num_requests = len(server.requests)
    fetch_file([f"{server.address}/{way}/data.zip"], target)
    assert len(server.requests) == num_requests


def test_an_interrupted_download_resumes_where_it_stopped(server: Any, target: Path) -> None:
    fetch_file([f"{server.address}/cut-once/data.zip"], target)
    half = len(CONTENT) // 2
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={half}-"]


def test_a_later_run_resumes_a_partial_download(server: Any, target: Path) -> None:
    with pytest.raises(DataError):
        fetch_file([f"{server.address}/stall/data.zip"], target)
    before = (target.parent / "data.zip.partial").stat().st_size
    assert 0 < before < len(CONTENT)
    server.requests.clear()
    # The later request to the same address succeeds.
    note = target.parent / "data.zip.partial.json"
    note.write_text(note.read_text().replace("/stall/", "/whole/"))
    fetch_file([f"{server.address}/whole/data.zip"], target)
    assert server.requests == [("/whole/data.zip", f"bytes={before}-")]
    assert target.read_bytes() == CONTENT


def test_parts_of_a_file_that_changed_meanwhile_are_not_joined(server: Any, target: Path) -> None:
    with pytest.raises(DataError):
        fetch_file([f"{server.address}/changed/data.zip"], target)
    # The download never completed, and parts of two files were not joined.
    assert not target.exists()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("cut", "RemoteProtocolError"),
        ("stall", "ReadTimeout"),
        ("gone", "the server answers 404"),
        ("page", r"not a \.zip file, perhaps a web page"),
    ],
)
def test_bad_answers_are_reported_and_the_mirror_is_used(
    server: Any, target: Path, way: str, reason: str
) -> None:
    bad = f"{server.address}/{way}/data.zip"
    # Half of one byte is no byte, so there is no progress.
    server.content = CONTENT if way != "cut" else b"P"
    with pytest.raises(DataError, match=reason) as caught:
        fetch_file([bad], target)
    assert f"Download {bad} in a browser and save it as {target}" in str(caught.value)
    assert not target.exists()
    server.content = CONTENT
    fetch_file(
        [bad if way != "stall" else f"{server.address}/gone/x", f"{server.address}/whole/data.zip"],
        target,
    )
    assert target.read_bytes() == CONTENT


def test_an_unreachable_or_invalid_address_is_refused(target: Path) -> None:
    with pytest.raises(DataError, match="ConnectError"):
        fetch_file(["http://127.0.0.1:9/data.zip"], target)
    with pytest.raises(DataError, match="could not be fetched"):
        fetch_file(["not an address"], target)


def test_a_published_checksum_is_compared_with_the_file(server: Any, target: Path) -> None:
    server.md5 = "0" * 32
    address = f"{server.address}/whole/data.zip"
    with pytest.raises(DataError, match=f"the published one {'0' * 32}"):
        fetch_file([address], target, publishes_md5=True)
    assert left_over(target) == []
    server.md5 = hashlib.md5(CONTENT).hexdigest()
    fetch_file([address], target, publishes_md5=True)


def test_another_file_than_the_first_time_is_refused(server: Any, target: Path) -> None:
    address = f"{server.address}/whole/data.zip"
    fetch_file([address], target)
    target.unlink()
    server.content = CONTENT + b"more"
    with pytest.raises(DataError, match=r"not the file downloaded before.*delete its line there"):
        fetch_file([address], target)
    assert not target.exists()


def test_a_folder_that_cannot_be_written(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be fetched"):
        fetch_file([f"{server.address}/whole/data.zip"], tmp_path / "file" / "x" / "data.zip")


def test_the_proxy_of_the_environment_is_used(
    file_server: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_server.content = CONTENT
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", file_server.address)
    fetch_file(["http://files.example/whole/data.zip"], target)
    assert target.read_bytes() == CONTENT
    # A request to a proxy names the whole address.
    assert file_server.requests == [("http://files.example/whole/data.zip", None)]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '{"data.zip": 5}', '{"data.zip": "short"}', "[" * 10**5]
)
def test_damaged_checksums_are_refused_before_anything_is_fetched(
    server: Any, target: Path, text: str
) -> None:
    target.parent.mkdir()
    record = target.parent / "checksums.json"
    record.write_text(text)
    with pytest.raises(DataError, match=r"checksums.json is damaged.*Delete it"):
        fetch_file([f"{server.address}/whole/data.zip"], target)
    assert not server.requests
    record.unlink()
    fetch_file([f"{server.address}/whole/data.zip"], target)


def test_checksums_published_by_a_mirror_are_not_requested(
    server: Any, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checksum that a mirror publishes is not requested, because it proves nothing."""
    server.md5 = hashlib.md5(CONTENT).hexdigest()
    mirror = f"{server.address}/whole/data.zip"
    fetch_file(["http://127.0.0.1:9/data.zip", mirror], target, publishes_md5=True)
    assert not [path for path, _ in server.requests if path.endswith(".md5")]
    assert "there is no known checksum to compare it with" in caplog.text
    caplog.clear()
    target.unlink()
    fetch_file(["http://127.0.0.1:9/data.zip", mirror], target, publishes_md5=True)
    assert "no known checksum" not in caplog.text, "it is the file that came before"
    target.unlink()
    (target.parent / "checksums.json").unlink()
    fetch_file([mirror], target)
    assert "no known checksum" not in caplog.text, "an official address without a checksum"


def test_the_official_checksum_is_compared_with_the_file_of_a_mirror(
    server: Any, target: Path
) -> None:
    server.md5 = "0" * 32
    official, mirror = f"{server.address}/gone/data.zip", f"{server.address}/whole/data.zip"
    with pytest.raises(DataError, match=f"the published one {'0' * 32}"):
        fetch_file([official, mirror], target, publishes_md5=True)
    assert not target.exists()


@pytest.mark.parametrize("publishes_md5", [False, True])
def test_redirects_from_https_to_http_are_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch, publishes_md5: bool
) -> None:
    """Redirects from https to http are refused for file and checksum; those to https are not."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        if request.url.path == "/moved/data.zip":
            return httpx.Response(302, headers={"location": "https://b.test/data.zip"})
        if request.url.path.endswith(".md5") or request.url.path == "/down/data.zip":
            return httpx.Response(301, headers={"location": "http://b.test/x"})
        return httpx.Response(200, stream=httpx.ByteStream(CONTENT))

    build = transfer.build_client

    def build_mocked() -> httpx.Client:
        client = build()
        client._transport = httpx.MockTransport(answer)
        client._mounts = {}
        return client

    monkeypatch.setattr(transfer, "build_client", build_mocked)
    with pytest.raises(DataError, match="from https to http://b"):
        fetch_file(["https://a.test/down/data.zip"], target)
    assert "http://b.test/x" not in asked
    moved = ["https://a.test/moved/data.zip"]
    if publishes_md5:
        with pytest.raises(DataError, match="from https to http://b"):
            fetch_file(moved, target, publishes_md5=True)
        assert not target.exists()
    else:
        assert fetch_file(moved, target).read_bytes() == CONTENT


def test_messages_name_the_origin_of_the_data_and_where_to_put_them(
    server: Any, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="recgrit")
    address = f"{server.address}/whole/data.zip"
    with pytest.raises(DataError) as caught:
        fetch_file([f"{server.address}/gone/data.zip"], target)
    told = str(caught.value)
    assert f"save it as {target.absolute()}" in told
    for setting in ("data.download_dir=", "data.path=", "data.mirrors="):
        assert setting in told
    fetch_file([f"{server.address}/gone/data.zip", address], target)
    assert f"data.zip was downloaded from {address} and is stored at {target}" in caplog.text
