"""Conversion of SIGTERM into an exception, so that a terminated process closes what it has open."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """Raised in the main thread when the process gets SIGTERM, for example from a scheduler."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Raise `Terminated` inside the block if the process gets SIGTERM.

    A second SIGTERM ends the process at once. Nothing changes if the process handles SIGTERM
    already, or outside the main thread, which is the only thread that can handle signals.
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
