"""A process that is asked to end, as by a scheduler, closes what it has open."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process got SIGTERM."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """SIGTERM raises `Terminated` within a block; a second one ends the process at once.

    Where somebody else answers the signal already, or this is not the main thread, which alone can
    answer it, nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
