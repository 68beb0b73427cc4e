"""Progress bars on standard error, silent when nobody watches.

Bars and log lines share one console, and bars that are open at once share one display: two live
displays on one terminal would overwrite each other.
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

# Lines keep their shape in files and pipes, where there is no width to fit.
PIPE_WIDTH = 130


# What a terminal obeys and does not show: control characters but for tabs and line ends, marks that
# turn the direction of text, and halves of surrogate pairs, which no stream can write.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def show_control(text: str) -> str:
    r"""Text with its control characters written out, so that a terminal shows what it has.

    >>> show_control("Alien\x1b]0;owned\x07")
    'Alien\\x1b]0;owned\\x07'
    """
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


class SignOfLife:
    """Says that something goes on where nothing else was said for a while.

    Some work cannot tell how far it is: libraries that load, a fit of one piece. On a terminal one
    line counts the seconds until the next output takes its place; in files and pipes lines come at
    growing intervals.

    Attributes:
        is_quiet: Says nothing.
    """

    def __init__(self) -> None:
        self.is_quiet = False
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._wait = SILENT_SECONDS
        self._is_drawn = self._is_paused = False

    def note_output(self) -> None:
        """Something else is about to be said."""
        with self._lock:
            self._last, self._wait = time.monotonic(), SILENT_SECONDS
            if self._is_drawn:
                self._is_drawn = False
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """For the length of a block, from another thread."""
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
        """Nothing for the length of a block, as while a person is asked."""
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


# Nothing is silent for longer, and how often that is looked at.
SILENT_SECONDS, TICK_SECONDS = 2.0, 0.25
life = SignOfLife()


class SafeConsole(Console):
    """A console that shows control characters of data rather than sending them to the terminal.

    Titles, ids and paths come from files of others, where an escape sequence may stand.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, in place of the line that says that something goes on."""
        life.note_output()
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as it is printed, alone or in a cell of a table."""
        return super().render_str(show_control(text), **options)


def build_console(*, stderr: bool) -> Console:
    """A console as wide as its terminal, as ``COLUMNS`` says, or as `PIPE_WIDTH`."""
    stream = sys.stderr if stderr else sys.stdout
    has_width = stream.isatty() or "COLUMNS" in os.environ
    # Parts of ids, numbers and paths are no facts of their own: none gets a colour.
    return SafeConsole(stderr=stderr, width=None if has_width else PIPE_WIDTH, highlight=False)


messages = build_console(stderr=True)


def is_helper() -> bool:
    """Whether torchrun started this process to help another one, which tells of both."""
    launch = read_launch()
    return launch is not None and launch.number > 0


_display: ContextVar[Progress | None] = ContextVar("display", default=None)


class ProgressBar:
    """One bar: advance it, and say beside it what is being reached."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move on by some steps; ``note`` replaces the text at the end of the bar."""
        if note is None:
            self._progress.update(self._task, advance=steps)
        else:
            self._progress.update(self._task, advance=steps, note=note)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[ProgressBar]:
    """A bar with remaining time, shown only on a terminal; a bar within a bar stands below it."""
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
    """The items one by one, with a bar that follows."""
    with progress_bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
