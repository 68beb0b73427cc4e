from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recgrit.checksums import digest_file
from recgrit.data import download, transfer
from recgrit.data.categories import AMAZON_CATEGORIES
from recgrit.data.download import fetch_dataset
from recgrit.data.releases import RELEASES, Release, find_release
from recgrit.data.sources import load_source
from recgrit.errors import DataError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def archive(write_dataset: Callable[..., Path]) -> bytes:
    folder = write_dataset("movielens-100k", folder="source")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as stream:
        for path in folder.iterdir():
            stream.write(path, f"ml-100k/{path.name}")
    return buffer.getvalue()


def release_at(source: str, *addresses: str) -> Release:
    """Return the release of a data set with other addresses than the official ones."""
    release = find_release(source)
    assert release is not None
    return replace(release, addresses=addresses)


@pytest.fixture
def official(file_server: Any, archive: bytes) -> Any:
    file_server.content = archive
    return file_server


@pytest.fixture
def pip_calls(
    write_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """Replace pip by a function that writes a wheel with the atomic files, and list its calls."""
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
    digests = {name: digest_file(folder / name) for name in download.MIRROR_FILES}
    monkeypatch.setattr(download, "MIRROR_FILES", digests)
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
    """Return the files whose names do not begin with a dot."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(str(path.relative_to(folder)) for path in files)


def rows_read(path: Path) -> int:
    source = load_source("movielens-100k")
    return source.read(source.find_files(path)).counts["rows_read"]


def test_official_archive(official: Any, target: Path, pip_calls: list[list[str]]) -> None:
    release = release_at("movielens-100k", f"{official.address}/whole/ml-100k.zip")
    path = fetch_dataset(release, target)
    assert path == target / "ml-100k.zip"
    assert rows_read(path) == 6
    assert not pip_calls


def test_second_call_takes_the_copy(
    official: Any, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = release_at("movielens-100k", f"{official.address}/whole/ml-100k.zip")
    assert fetch_dataset(release, target) == fetch_dataset(release, target)
    assert len(official.requests) == 1
    assert caplog.text.count("research use") == 1


def test_a_configured_mirror_is_used(
    official: Any, target: Path, pip_calls: list[list[str]]
) -> None:
    release = release_at("movielens-100k", f"{official.address}/gone/ml-100k.zip")
    path = fetch_dataset(release, target, mirrors=[f"{official.address}/whole/"])
    assert rows_read(path) == 6
    assert not pip_calls


def test_movielens_100k_is_fetched_from_a_wheel_as_a_last_resort(
    official: Any, target: Path, pip_calls: list[list[str]]
) -> None:
    release = release_at("movielens-100k", f"{official.address}/gone/ml-100k.zip")
    path = fetch_dataset(release, target)
    assert path == target / "ml-100k"
    # There are no partial files, and only the data were extracted from the wheel.
    assert names(target) == ["ml-100k/ml-100k.inter", "ml-100k/ml-100k.item"]
    assert names(target.parent).count("escape.txt") == 0
    assert rows_read(path) == 6
    assert pip_calls[0][-1] == "recbole==1.2.1"
    assert "--no-deps" in pip_calls[0]


def test_another_wheel_than_the_known_one_is_refused(
    target: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MIRROR_FILES", download.MIRROR_FILES | {"ml-100k.inter": "0"})
    with pytest.raises(DataError, match=r"ml-100k.inter in recbole.* has SHA-256 .*, expected 0"):
        fetch_dataset(release_at("movielens-100k", DEAF), target)
    assert names(target) == []


# No server listens at this port.
DEAF = "http://127.0.0.1:9/ml-100k.zip"


def test_if_all_downloads_fail_the_manual_way_is_reported(target: Path, no_pip: None) -> None:
    with pytest.raises(DataError) as caught:
        fetch_dataset(release_at("movielens-100k", DEAF), target)
    message = str(caught.value)
    for part in (
        "ConnectError",
        "ERROR: no such package",
        f"Download {DEAF}",
        str(target / "ml-100k.zip"),
        "data.path=PATH",
    ):
        assert part in message
    assert names(target) == []


def test_damaged_copy_is_replaced(official: Any, target: Path) -> None:
    target.mkdir()
    (target / "ml-100k.zip").write_bytes(b"half")
    release = release_at("movielens-100k", f"{official.address}/whole/ml-100k.zip")
    assert rows_read(fetch_dataset(release, target)) == 6


def test_files_of_a_category(
    file_server: Any, write_dataset: Callable[..., Path], target: Path
) -> None:
    folder = write_dataset("amazon2018/Gift_Cards")
    place = target / "amazon2018-Gift_Cards"
    place.mkdir(parents=True)
    # The user already copied one of the two files there.
    (folder / "meta_Gift_Cards.json.gz").rename(place / "meta_Gift_Cards.json.gz")
    file_server.content = (folder / "Gift_Cards_5.json.gz").read_bytes()
    release = release_at(
        "amazon2018/Gift_Cards",
        f"{file_server.address}/whole/{{}}_5.json.gz",
        f"{file_server.address}/whole/meta_{{}}.json.gz",
    )
    path = fetch_dataset(release, target, category="Gift_Cards")
    source = load_source("amazon2018/Gift_Cards")
    assert source.read(source.find_files(path)).counts["rows_read"] == 6
    assert [path for path, _ in file_server.requests] == ["/whole/Gift_Cards_5.json.gz"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.source)
def test_what_is_fetched_is_what_is_read(release: Release, tmp_path: Path) -> None:
    category = AMAZON_CATEGORIES.get(release.family, ("",))[-1]
    name = release.source.replace("<Category>", category)
    for address in release.addresses:
        (tmp_path / address.format(category).rpartition("/")[2]).touch()
    assert len(load_source(name).find_files(tmp_path)) == len(release.addresses)
    assert find_release(name) == release


def test_wheel_without_the_data(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        wheel = Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl"
        zipfile.ZipFile(wheel, "w").close()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    with pytest.raises(DataError, match="does not contain the data"):
        fetch_dataset(release_at("movielens-100k", DEAF), target)


def test_slow_pip_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(download.subprocess, "run", run)
    with pytest.raises(DataError, match="pip did not answer"):
        fetch_dataset(release_at("movielens-100k", DEAF), target)
