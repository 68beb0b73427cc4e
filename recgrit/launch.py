"""Reading and checking the environment variables by which torchrun numbers its processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from recgrit.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """The place of this process among the processes that a launcher started.

    Args:
        num_processes: Number of processes on all machines (world size).
        number: Number of this process, from 0.
        local_number: Number of this process among those on its machine, from 0.
    """

    num_processes: int
    number: int
    local_number: int


def read_launch() -> Launch | None:
    """Return the place of this process among several, or None if there is only this process.

    Raises:
        ConfigError: An environment variable is missing or out of range. The message names it.
    """
    total = _read_number("WORLD_SIZE", 1, 2**20)
    number = _read_number("RANK", 0, (total or 2**20) - 1)
    if total is None or total == 1 or number is None:
        return None
    local = _read_number("LOCAL_RANK", 0, total - 1)
    port = _read_number("MASTER_PORT", 0, 2**16 - 1)
    for name, value in (("MASTER_ADDR", os.environ.get("MASTER_ADDR")), ("MASTER_PORT", port)):
        if value in (None, ""):
            raise ConfigError(
                f"The environment says that this is process {number} of {total} (RANK and "
                f"WORLD_SIZE), but {name} is not set: start the processes with torchrun, which "
                "sets it, or unset WORLD_SIZE for one process."
            )
    return Launch(total, number, number if local is None else local)


def _read_number(name: str, lowest: int, highest: int) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        value = lowest - 1
    else:
        value = int(text)
    if not lowest <= value <= highest:
        raise ConfigError(
            f"The environment variable {name} is {text[:40]!r}: expected a whole number from "
            f"{lowest} to {highest}, as torchrun sets it. Unset it if torchrun does not start "
            "recgrit."
        )
    return value
