"""Progress bars on standard error, silent when nobody watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

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

T = TypeVar("T")


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
    """A bar with rate and remaining time, shown only on a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        yield ProgressBar(progress, progress.add_task(description, total=total, note=""))


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items one by one, with a bar that follows."""
    with progress_bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
