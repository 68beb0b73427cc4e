"""Progress bars and messages on standard error; bars are shown on a terminal only.

Bars and log lines share one console, and bars that are open at the same time share one display. Two
live displays on one terminal would overwrite each other.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from recgrit.launch import read_launch

T = TypeVar("T")

# Width in characters of lines that are written to files and pipes, which have no width.
PIPE_WIDTH = 130


# Characters that a terminal obeys or cannot show: control characters except tabs and line ends,
# marks that change the direction of text, and halves of surrogate pairs, which no stream can write.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def show_control(text: str) -> str:
    r"""Write out the control characters of a text, so that a terminal shows them as text.

    >>> show_control("Alien\x1b]0;owned\x07")
    'Alien\\x1b]0;owned\\x07'
    """
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


class SignOfLife:
    """Prints that work continues when nothing else was printed for two seconds.

    Some work cannot report its progress, such as loading libraries. On a terminal, one line counts
    the seconds, and the next output replaces it. In files and pipes, lines are printed at growing
    intervals.

    Attributes:
        is_quiet: Whether nothing is printed at all.
    """

    def __init__(self) -> None:
        self.is_quiet = False
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._wait = SILENT_SECONDS
        self._is_drawn = self._is_paused = False

    def note_output(self) -> None:
        """Restart the count of silent seconds, because something else is about to be printed."""
        with self._lock:
            self._last, self._wait = time.monotonic(), SILENT_SECONDS
            if self._is_drawn:
                self._is_drawn = False
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print the sign of life while the block runs, from a thread that watches for silence."""
        self.note_output()
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            self.note_output()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Print nothing while the block runs, for example while a question waits for an answer."""
        self.note_output()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self.note_output()

    def _watch(self, ended: threading.Event) -> None:
        is_terminal = messages.is_terminal
        while not ended.wait(TICK_SECONDS):
            with self._lock:
                silent = time.monotonic() - self._last
                if silent < self._wait or self._is_paused or self.is_quiet or ended.is_set():
                    continue
                if is_terminal:
                    self._is_drawn = True
                    sys.stderr.write(f"\r… still working, {silent:.0f} s\x1b[K")
                else:
                    self._wait *= 2
                    now = time.strftime("%H:%M:%S")
                    sys.stderr.write(f"{now} … still working, {silent:.0f} s since the last line\n")
                sys.stderr.flush()


# Longest silence before a line is printed, and time between two checks, both in seconds.
SILENT_SECONDS, TICK_SECONDS = 2.0, 0.25
life = SignOfLife()


class SafeConsole(Console):
    """A console that shows control characters in data and does not send them to the terminal.

    Titles, ids and paths come from files of other people and may contain escape sequences.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, replacing the line of `SignOfLife` if it is shown."""
        life.note_output()
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as styled text, with its control characters written out."""
        return super().render_str(show_control(text), **options)


def build_console(*, stderr: bool) -> Console:
    """Build a console for standard error or standard output.

    It is as wide as its terminal or as the variable ``COLUMNS`` says, and `PIPE_WIDTH` characters
    wide without either.

    Args:
        stderr: Write to standard error. If false, write to standard output.
    """
    stream = sys.stderr if stderr else sys.stdout
    has_width = stream.isatty() or "COLUMNS" in os.environ
    # rich would colour numbers and parts of ids and paths, which has no meaning here.
    return SafeConsole(stderr=stderr, width=None if has_width else PIPE_WIDTH, highlight=False)


messages = build_console(stderr=True)


def is_helper() -> bool:
    """Return whether torchrun started this process and another process prints the messages."""
    launch = read_launch()
    return launch is not None and launch.number > 0


_display: ContextVar[Progress | None] = ContextVar("display", default=None)


class ProgressBar:
    """A progress bar with a short text at its end, such as the latest validation metric."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Advance the bar.

        Args:
            steps: Number of steps to add.
            note: Text to show at the end of the bar. None keeps the present text.
        """
        if note is None:
            self._progress.update(self._task, advance=steps)
        else:
            self._progress.update(self._task, advance=steps, note=note)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[ProgressBar]:
    """Show a bar with the remaining time on a terminal; a nested bar is shown below the outer one.

    Args:
        description: Text in front of the bar.
        total: Number of steps at which the bar is full.
    """
    outer = _display.get()
    if outer is not None:
        task = outer.add_task(description, total=total, note="")
        try:
            yield ProgressBar(outer, task)
        finally:
            outer.remove_task(task)
        return
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=messages,
        disable=not messages.is_terminal or is_helper(),
        transient=True,
    ) as progress:
        token = _display.set(progress)
        try:
            yield ProgressBar(progress, progress.add_task(description, total=total, note=""))
        finally:
            _display.reset(token)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items one by one while a bar shows how many are done.

    Args:
        items: Items to yield.
        description: Text in front of the bar.
        total: Number of items.
    """
    with progress_bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
