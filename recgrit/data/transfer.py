"""One file from the network, whole or not at all.

What arrives is kept as ``NAME.partial``. A broken transfer goes on from there, also in a later run,
if the server says that the file is still the same. It gets its name once its size and checksum are
right. A published checksum is that of the official address: a mirror does not vouch for itself.
Where none is published, the first one is recorded beside the files and compared with whatever comes
under that name later. What is asked for by https comes by https. Proxies are those of the
environment.
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
# In a row without a new byte; a transfer that gets on may be interrupted any number of times.
MAX_FRUITLESS = 3
PAUSE_SECONDS = 1.0
RECORD_NAME = "checksums.json"
MAGIC = {".zip": b"PK", ".gz": b"\x1f\x8b"}


class TransferError(Exception):
    """An address does not give the file; another may."""


class _InterruptedError(Exception):
    """A transfer broke off.

    Args:
        reason: Why.
        gained: Whether something came that need not come again.
    """

    def __init__(self, reason: str, *, gained: bool) -> None:
        super().__init__(reason)
        self.gained = gained


@dataclass(frozen=True)
class _Partial:
    """What a partial file is part of."""

    address: str
    validator: str


def fetch_file(addresses: Sequence[str], target: Path, *, publishes_md5: bool = False) -> Path:
    """The file at one of these addresses, put at ``target``; nothing is done if it is there.

    Args:
        addresses: The official one, then mirrors.
        target: Where to put it.
        publishes_md5: Whether ``ADDRESS.md5`` of the official one holds its checksum.

    Raises:
        DataError: No address gives the file, or what came is not what came the first time; says
            where to get it and where to put it by hand. Or it cannot be written, or the record of
            checksums is damaged.
    """
    if target.is_file():
        return target
    # Before a long transfer that could not be compared with it.
    _read_record(target.parent / RECORD_NAME)
    official = addresses[0]
    reasons = []
    for address in addresses:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target):
                if not target.is_file():  # Another process may have fetched it meanwhile.
                    _fetch(address, target, official, publishes_md5)
                    logger.info("%s came from %s and is kept at %s", target.name, address, target)
        except (TransferError, OSError) as error:
            # The disk's answer is the same for every address.
            if isinstance(error, OSError) and (reason := explain_write_failure(error)):
                raise DataError(
                    f"{target.name} cannot be written to {target.parent}: {reason}. Make room, or "
                    "name another folder with data.download_dir=PATH; what came so far is kept and "
                    "gone on with."
                ) from None
            logger.info("%s could not be fetched from %s: %s", target.name, address, error)
            reasons.append(f"  {address}: {error}")
        else:
            return target
    raise DataError(
        f"{target.name} could not be fetched:\n"
        + "\n".join(reasons)
        + f"\nDownload {addresses[0]} in a browser and put it at {target.absolute()}, where it is "
        "looked for (data.download_dir=FOLDER names another folder); or set data.path=PATH to a "
        "copy, or data.mirrors=[ADDRESS] to a folder on the network that has it."
    )


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process at a time writes the partial file."""
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
            logger.info("%s was interrupted (%s), going on", target.name, error)
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
    """Append what is missing of the partial file; all of it if the file has changed."""
    # As it is on the server: a .gz must not be unpacked on its way, and sizes must agree.
    headers = {"Accept-Encoding": "identity"}
    known = _read_note(note)
    present = partial.stat().st_size if partial.is_file() else 0
    if present and known is not None and known.address == address:
        headers |= {"Range": f"bytes={present}-", "If-Range": known.validator}
    begun = goes_on = False
    try:
        with build_client() as client, client.stream("GET", address, headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.unlink()  # Longer than the file: it is part of another.
                raise _InterruptedError("the server has less than was there", gained=False)
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
    """Remember what the partial file is of, if the server tells versions of it apart."""
    validator = response.headers.get("etag") or response.headers.get("last-modified")
    if validator and not validator.startswith("W/"):
        write_atomic(note, json.dumps(asdict(_Partial(address, validator))))
    else:
        note.unlink(missing_ok=True)


def _check(address: str, partial: Path, target: Path, official: str, publishes_md5: bool) -> None:
    """Refuse what is of another kind than the name says, or another file than before."""
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
            "%s comes from %s, and nothing is known to compare it with: whether it is the "
            "publisher's file, the mirror alone says",
            target.name,
            address,
        )
    found = _checksum(partial, "sha256")
    known = checksums.setdefault(target.name, found)
    if known != found:
        raise TransferError(
            f"it is not the file that came before: SHA-256 {found}, recorded {known} in {record}. "
            "If the publisher has replaced it, delete that line"
        )
    write_atomic(record, json.dumps(checksums, indent=2) + "\n")


def _read_record(record: Path) -> dict[str, str]:
    """The checksums of what came before, by name.

    Raises:
        DataError: They cannot be read.
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
            "it if you trust the files beside it; they are kept, and what comes next is recorded."
        )
    found: dict[str, str] = values
    return found


def build_client() -> httpx.Client:
    """What asks for files: it follows redirects, but for those that give up encryption."""
    return httpx.Client(
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        event_hooks={"response": [_refuse_downgrade]},
    )


def _refuse_downgrade(response: httpx.Response) -> None:
    """Stop at an answer to an https request that leads to an address without it."""
    if response.has_redirect_location and response.url.scheme == "https":
        onward = response.url.join(response.headers["location"])
        if onward.scheme != "https":
            raise TransferError(
                f"the server leads from https to {onward.scheme}://{onward.host}, where anybody on "
                "the way could change the file"
            )


def _read_md5(address: str) -> str | None:
    """The published checksum, as ``HEX  NAME`` or ``MD5 (NAME) = HEX``; None if there is none."""
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
