"""Download of one file, which is stored complete or not at all.

The received part is kept as ``NAME.partial``. An interrupted transfer is resumed, also in a later
run, if the server confirms that the file is unchanged. The file gets its name once its size and
checksum are right. A published checksum is read from the official address, because a mirror cannot
confirm its own files. The SHA-256 of the first download is recorded beside the files and compared
with later downloads of the same name, also if a checksum is published. A request that starts with
https is never redirected to an address without it. Proxies are read from the environment.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from recgrit.disk import explain_write_failure, write_atomic
from recgrit.errors import DataError
from recgrit.progress import progress_bar

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
# Number of consecutive attempts without a new byte after which a transfer fails. A transfer that
# receives bytes may be interrupted any number of times.
MAX_FRUITLESS = 3
PAUSE_SECONDS = 1.0
RECORD_NAME = "checksums.json"
MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}


class TransferError(Exception):
    """The error that is raised if an address does not provide the file; another address may."""


class _InterruptedError(Exception):
    """The error that is raised if a transfer is interrupted.

    Args:
        reason: Cause of the interruption.
        gained: Whether the transfer received new bytes that are kept.
    """

    def __init__(self, reason: str, *, gained: bool) -> None:
        super().__init__(reason)
        self.gained = gained


@dataclass(frozen=True)
class _Partial:
    """The origin of a partial file.

    Args:
        address: Address from which the file is downloaded.
        validator: ETag or date of the file on the server, which identifies its version.
    """

    address: str
    validator: str


def fetch_file(addresses: Sequence[str], target: Path, *, publishes_md5: bool = False) -> Path:
    """Download a file from the first of several addresses that provides it.

    Nothing is done if the file exists.

    Args:
        addresses: Official address, followed by mirrors.
        target: Path at which to store the file.
        publishes_md5: Whether ``ADDRESS.md5`` of the official address holds the checksum.

    Raises:
        DataError: No address provides the file, or its checksum is wrong. The message explains
            where to get the file and where to put it. Also raised if the file cannot be written, or
            if the record of checksums is damaged.
    """
    if target.is_file():
        return target
    # A damaged record is reported before a long transfer, which could not be compared with it.
    _read_record(target.parent / RECORD_NAME)
    official = addresses[0]
    reasons = []
    for address in addresses:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                if not target.is_file():  # Another process may have fetched it meanwhile.
                    _fetch(address, target, official, publishes_md5)
                    logger.info(
                        "%s was downloaded from %s and is stored at %s",
                        target.name,
                        address,
                        target,
                    )
        except (TransferError, OSError) as error:
            # A full or read-only disk fails for every address.
            if isinstance(error, OSError) and (reason := explain_write_failure(error)):
                raise DataError(
                    f"{target.name} cannot be written to {target.parent}: {reason}. Free disk "
                    "space, or name another folder with data.download_dir=PATH; the part "
                    "downloaded so far is kept, and the download resumes from it."
                ) from None
            logger.info("%s could not be fetched from %s: %s", target.name, address, error)
            reasons.append(f"  {address}: {error}")
        else:
            return target
    raise DataError(
        f"{target.name} could not be fetched:\n"
        + "\n".join(reasons)
        + f"\nDownload {addresses[0]} in a browser and save it as {target.absolute()} "
        "(data.download_dir=FOLDER names another folder); or set data.path=PATH to a "
        "copy, or data.mirrors=[ADDRESS] to a folder on the network that has it."
    )


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock, so that only one process at a time writes the partial file."""
    from filelock import FileLock

    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


def _fetch(address: str, target: Path, official: str, publishes_md5: bool) -> None:
    partial = target.with_name(f"{target.name}.partial")
    note = target.with_name(f"{target.name}.partial.json")
    fruitless = 0
    while True:
        try:
            _transfer(address, partial, note)
            break
        except httpx.HTTPStatusError as error:
            raise TransferError(f"the server answers {error.response.status_code}") from None
        except httpx.InvalidURL as error:
            raise TransferError(f"InvalidURL: {error}") from None
        except _InterruptedError as error:
            fruitless = 0 if error.gained else fruitless + 1
            if fruitless == MAX_FRUITLESS:
                raise TransferError(str(error)) from None
            logger.info("%s was interrupted (%s), resuming", target.name, error)
            time.sleep(PAUSE_SECONDS * fruitless)
    try:
        _check(address, partial, target, official, publishes_md5)
    except TransferError:
        partial.unlink()
        raise
    finally:
        note.unlink(missing_ok=True)
    partial.replace(target)


def _transfer(address: str, partial: Path, note: Path) -> None:
    """Append the missing bytes to the partial file, or download all if the file has changed."""
    # The file is sent as it is on the server: a .gz must not be unpacked, and sizes must agree.
    headers = {"Accept-Encoding": "identity"}
    known = _read_note(note)
    present = partial.stat().st_size if partial.is_file() else 0
    if present and known is not None and known.address == address:
        headers |= {"Range": f"bytes={present}-", "If-Range": known.validator}
    begun = goes_on = False
    try:
        with build_client() as client, client.stream("GET", address, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.unlink()  # The partial file is longer, so it is part of another file.
                raise _InterruptedError(
                    "the server's file is shorter than the part downloaded before", gained=False
                )
            response.raise_for_status()
            goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT
            _write_note(note, address, response)
            length = int(response.headers.get("content-length", 0))
            total = length + (present if goes_on else 0)
            with (
                partial.open("ab" if goes_on else "wb") as stream,
                progress_bar(partial.stem, total) as bar,
            ):
                if goes_on:
                    bar.advance(present)
                for block in response.iter_raw():
                    stream.write(block)
                    bar.advance(len(block))
                    begun = True
    except httpx.HTTPStatusError:
        raise
    except httpx.HTTPError as error:
        gained = begun and (goes_on or not present)
        raise _InterruptedError(f"{type(error).__name__}: {error}", gained=gained) from None


def _write_note(note: Path, address: str, response: httpx.Response) -> None:
    """Record the address and version of the partial file, if the server identifies versions."""
    validator = response.headers.get("etag") or response.headers.get("last-modified")
    if validator and not validator.startswith("W/"):
        write_atomic(note, json.dumps(asdict(_Partial(address, validator))))
    else:
        note.unlink(missing_ok=True)


def _check(address: str, partial: Path, target: Path, official: str, publishes_md5: bool) -> None:
    """Raise an error if the file is of another type than its name says, or has a wrong checksum."""
    with partial.open("rb") as stream:
        start = stream.read(2)
    magic = MAGIC.get(target.suffix)
    if magic is not None and start != magic:
        raise TransferError(f"the answer is not a {target.suffix} file, perhaps a web page")
    published = _read_md5(f"{official}.md5") if publishes_md5 else None
    if published is not None:
        found = _checksum(partial, "md5")
        if found != published:
            raise TransferError(f"its MD5 is {found}, the published one {published}")
    record = target.parent / RECORD_NAME
    checksums = _read_record(record)
    if published is None and target.name not in checksums and address != official:
        logger.warning(
            "%s comes from the mirror %s, and there is no known checksum to compare it with: use "
            "it only if you trust the mirror",
            target.name,
            address,
        )
    found = _checksum(partial, "sha256")
    known = checksums.setdefault(target.name, found)
    if known != found:
        raise TransferError(
            f"it is not the file downloaded before: SHA-256 {found}, recorded {known} in {record}. "
            "If the publisher has replaced the file, delete its line there"
        )
    write_atomic(record, json.dumps(checksums, indent=2) + "\n")


def _read_record(record: Path) -> dict[str, str]:
    """Return the recorded checksums of earlier downloads by file name.

    Raises:
        DataError: The record is damaged.
    """
    if not record.is_file():
        return {}
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        is_right = isinstance(values, dict) and all(
            isinstance(value, str) and len(value) == 64 and _is_hex(value)
            for value in values.values()
        )
    except (OSError, ValueError, RecursionError):
        is_right = False
    if not is_right:
        raise DataError(
            f"{record} is damaged: expected a JSON object of file names and their SHA-256. Delete "
            "it if you trust the files beside it; they are kept, and later downloads are recorded."
        )
    found: dict[str, str] = values
    return found


def build_client() -> httpx.Client:
    """Return an HTTP client that follows redirects, except redirects from https to http."""
    return httpx.Client(
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        event_hooks={"response": [_refuse_downgrade]},
    )


def _refuse_downgrade(response: httpx.Response) -> None:
    """Raise an error if an https request is redirected to an address without https."""
    if response.has_redirect_location and response.url.scheme == "https":
        onward = response.url.join(response.headers["location"])
        if onward.scheme != "https":
            raise TransferError(
                f"the server redirects from https to {onward.scheme}://{onward.host}, where anyone "
                "on the network could change the file"
            )


def _read_md5(address: str) -> str | None:
    """Read a published MD5 checksum, as ``HEX  NAME`` or ``MD5 (NAME) = HEX``, or return None."""
    with suppress(httpx.HTTPError, httpx.InvalidURL), build_client() as client:
        answer = client.get(address, timeout=CONNECT_SECONDS)
        if answer.status_code == httpx.codes.OK:
            words = answer.text.lower().split()
            return next((word for word in words if len(word) == 32 and _is_hex(word)), None)
    return None


def _is_hex(word: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in word)


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _read_note(note: Path) -> _Partial | None:
    try:
        return _Partial(**json.loads(note.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
