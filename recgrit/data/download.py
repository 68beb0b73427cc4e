"""MovieLens-100K without a path: the copy at hand, else the official file, else a mirror.

It is the one data set small enough to fetch unasked. The mirror is the wheel of RecBole, which
carries the same ratings as atomic files and can be had wherever pip works.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx

from recgrit.data.sources import load_source
from recgrit.errors import DataError
from recgrit.progress import progress_bar

logger = logging.getLogger(__name__)

ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MIRROR_PACKAGE = "recbole==1.2.1"
MIRROR_FOLDER = "recbole/dataset_example/ml-100k/"
# Without .item there are no titles; .inter comes last, so that a half-copied folder is not taken
# for a complete one.
MIRROR_FILES = ("ml-100k.item", "ml-100k.inter")
LICENCE_NOTICE = (
    "MovieLens-100K is for research use and must not be redistributed without permission of "
    "GroupLens; cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, "
    "ACM TiiS 5(4), 2015."
)
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
PIP_SECONDS = 180.0


class _FetchError(Exception):
    """One way of fetching failed; another may still work."""


def fetch_movielens_100k(directory: Path, address: str = ADDRESS) -> Path:
    """The path of a copy of MovieLens-100K: an archive or a folder in ``directory``.

    Args:
        directory: Where copies are looked for and put.
        address: Where the official archive is.

    Raises:
        DataError: There is no copy and neither address can be reached; says how to get it by hand.
    """
    present = _find_copy(directory)
    if present is not None:
        return present
    attempts: dict[str, Callable[[], Path]] = {
        address: lambda: _fetch_archive(directory, address),
        f"pip download {MIRROR_PACKAGE}": lambda: _fetch_from_mirror(directory),
    }
    reasons = []
    for name, fetch in attempts.items():
        try:
            path = fetch()
        except (_FetchError, OSError) as error:
            logger.info("MovieLens-100K could not be fetched from %s: %s", name, error)
            reasons.append(f"  {name}: {error}")
        else:
            logger.warning(LICENCE_NOTICE)
            return path
    raise DataError(
        "MovieLens-100K could not be fetched:\n" + "\n".join(reasons) + f"\nDownload {address} "
        f"in a browser and put it at {directory / 'ml-100k.zip'}, or set data.path=PATH to a copy."
    )


def _find_copy(directory: Path) -> Path | None:
    if not directory.is_dir():
        return None
    try:
        files = load_source("movielens-100k").find_files(directory)
    except DataError:
        return None
    if files[0].suffix != ".zip":
        return files[0].parent
    try:
        _check_archive(files[0])
    except _FetchError as error:
        logger.warning("%s is not used (%s) and will be replaced.", files[0], error)
        return None
    return files[0]


def _fetch_archive(directory: Path, address: str) -> Path:
    """Stream to a partial file, which gets its name only when it proves to be the archive."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "ml-100k.zip"
    partial = directory / f"{target.name}.{os.getpid()}.partial"
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        with httpx.stream("GET", address, timeout=timeout, follow_redirects=True) as response:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            with partial.open("wb") as stream, progress_bar(target.name, total) as bar:
                for block in response.iter_bytes():
                    stream.write(block)
                    bar.advance(len(block))
        _check_archive(partial)
        partial.replace(target)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _FetchError(f"{type(error).__name__}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise _FetchError("the answer is not a zip archive, perhaps a web page") from None
    if damaged is not None or "ml-100k/u.data" not in names:
        raise _FetchError("the archive is damaged or lacks ml-100k/u.data")


def _fetch_from_mirror(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the destination, so that the files can be renamed into place.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".mirror-") as temporary:
        wheel = download_package(MIRROR_PACKAGE, Path(temporary))
        target = directory / "ml-100k"
        target.mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in MIRROR_FILES:
                    # Written under our own name: what paths the archive claims does not matter.
                    partial = Path(temporary) / name
                    partial.write_bytes(archive.read(MIRROR_FOLDER + name))
            for name in MIRROR_FILES:
                (Path(temporary) / name).replace(target / name)
        except (zipfile.BadZipFile, KeyError) as error:
            raise _FetchError(f"{wheel.name} does not hold the data: {error}") from None
    return target


def download_package(requirement: str, directory: Path) -> Path:
    """Fetch one wheel with pip, without its dependencies and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(directory), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _FetchError(f"pip gave no answer within {PIP_SECONDS:.0f} s") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines()
        raise _FetchError(lines[-1] if lines else f"pip ended with code {done.returncode}")
    return wheels[0]
