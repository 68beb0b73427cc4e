"""Download of published data sets: from a local copy, else the official address, else a mirror.

MovieLens-100K has one more mirror than the other data sets: the wheel of RecBole. It contains the
same ratings as atomic files and is available wherever pip works.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from recgrit.checksums import digest_file
from recgrit.data.releases import Release
from recgrit.data.sources import load_source
from recgrit.data.transfer import fetch_file
from recgrit.errors import DataError

logger = logging.getLogger(__name__)

MIRROR_PACKAGE = "recbole==1.2.1"
MIRROR_FOLDER = "recbole/dataset_example/ml-100k/"
# Files of the mirror and their SHA-256. The .item file has the titles. The .inter file comes last,
# so that a half-copied folder does not look complete.
MIRROR_FILES = {
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
}
PIP_SECONDS = 180.0


class _FetchError(Exception):
    """The error that is raised if the wheel cannot be downloaded or does not hold the data."""


def fetch_dataset(
    release: Release, directory: Path, *, category: str = "", mirrors: Sequence[str] = ()
) -> Path:
    """Fetch the files of a data set that are missing in a folder, and return their path.

    Args:
        release: Published data set to fetch.
        directory: Folder in which copies are looked for, and into which files are fetched.
        category: Category of the data set, such as ``Beauty``. Empty if it has no categories.
        mirrors: Addresses of folders with files of the same names. They are tried in order if the
            official address fails.

    Raises:
        DataError: No address has a file. The message explains how to get the file by hand.
    """
    source = release.source.replace("<Category>", category)
    folder = directory / source.replace("/", "-") if category else directory
    if (copy := _find_copy(source, folder)) is not None:
        return copy
    addresses = [address.format(category) for address in release.addresses]
    missing = [a for a in addresses if not (folder / _name_of(a)).is_file()]
    if missing:
        _say_terms(release)
    for address in missing:
        name = _name_of(address)
        everywhere = [address, *(f"{mirror.rstrip('/')}/{name}" for mirror in mirrors)]
        try:
            fetch_file(everywhere, folder / name, publishes_md5=release.publishes_md5)
        except DataError as error:
            if source != "movielens-100k":
                raise
            return _fetch_from_mirror(folder, error)
    return folder if category else folder / _name_of(addresses[0])


def _name_of(address: str) -> str:
    return address.rpartition("/")[2]


def _say_terms(release: Release) -> None:
    size = "" if release.megabytes is None else f" ({release.megabytes:g} MB)"
    logger.warning("Fetching %s%s. %s", release.source, size, release.terms)


def _find_copy(source: str, folder: Path) -> Path | None:
    """Return the path of a complete local copy, or None; a truncated archive is deleted."""
    if not folder.is_dir():
        return None
    try:
        files = load_source(source).find_files(folder)
    except DataError:
        return None
    if files[0].suffix != ".zip":
        return files[0].parent
    if zipfile.is_zipfile(files[0]):
        return files[0]
    logger.warning("%s is not a complete zip archive and will be replaced.", files[0])
    files[0].unlink()
    return None


def _fetch_from_mirror(directory: Path, error: DataError) -> Path:
    """Fetch the data from the wheel of RecBole.

    If this fails too, the first error is raised, with the reason for the second.
    """
    logger.info("%s", error)
    logger.info("Trying the copy in the package %s ...", MIRROR_PACKAGE)
    try:
        place = _unpack_mirror(directory)
        logger.warning(
            "The data came from the package %s, which has the same ratings, and are stored at %s",
            MIRROR_PACKAGE,
            place,
        )
        return place
    except (_FetchError, OSError) as second:
        raise DataError(f"{error}\npip download {MIRROR_PACKAGE} failed too: {second}") from None


def _unpack_mirror(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    # The temporary folder is inside the destination, so that the files can be renamed into place.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".mirror-") as temporary:
        wheel = download_package(MIRROR_PACKAGE, Path(temporary))
        target = directory / "ml-100k"
        target.mkdir(exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name, digest in MIRROR_FILES.items():
                    # The file gets a name from here, so paths in the archive have no effect.
                    partial = Path(temporary) / name
                    partial.write_bytes(archive.read(MIRROR_FOLDER + name))
                    if (found := digest_file(partial)) != digest:
                        raise _FetchError(
                            f"{name} in {wheel.name} has SHA-256 {found}, expected {digest}: the "
                            "package index that pip uses has a different file"
                        )
            for name in MIRROR_FILES:
                (Path(temporary) / name).replace(target / name)
        except (zipfile.BadZipFile, KeyError) as error:
            raise _FetchError(f"{wheel.name} does not contain the data: {error}") from None
    return target


def download_package(requirement: str, directory: Path) -> Path:
    """Download one wheel with pip, without its dependencies and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(directory), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _FetchError(f"pip did not answer within {PIP_SECONDS:.0f} s") from None
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines()
        raise _FetchError(lines[-1] if lines else f"pip ended with code {done.returncode}")
    return wheels[0]
