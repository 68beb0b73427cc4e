"""Test the progress lines of long operations, and their replacement by the next message."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import pytest

from recgrit import progress
from recgrit.progress import SignOfLife, build_console


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Return a function that collects standard error, with waiting times divided by a hundred."""

    def watch(*, is_terminal: bool) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
        monkeypatch.setattr(progress, "TICK_SECONDS", 0.005)
        monkeypatch.setattr(progress.messages, "_force_terminal", is_terminal)
        monkeypatch.setattr(progress, "life", SignOfLife())
        return stream

    return watch


def wait_for(stream: io.StringIO, text: str, times: int = 1) -> None:
    deadline = time.monotonic() + 30
    while stream.getvalue().count(text) < times:
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.005)


def test_a_terminal_shows_that_work_continues_until_other_output(
    written: Callable[..., io.StringIO],
) -> None:
    stream = written(is_terminal=True)
    with progress.life.shown():
        wait_for(stream, "\r… still working")
        before = len(stream.getvalue())
        progress.life.note_output()
        assert stream.getvalue()[before:].count("\r\x1b[K") >= 1, "the line gives way"
    assert stream.getvalue().endswith("\r\x1b[K")
    left = stream.getvalue()
    time.sleep(0.1)
    assert stream.getvalue() == left, "nothing after the end"


def test_a_pipe_gets_lines_at_growing_intervals(written: Callable[..., io.StringIO]) -> None:
    stream = written(is_terminal=False)
    with progress.life.shown():
        wait_for(stream, "s since the last line\n", times=2)
        assert progress.life._wait >= 4 * 0.05
    assert "\r" not in stream.getvalue()


def test_no_progress_is_shown_while_paused_or_quiet(
    written: Callable[..., io.StringIO],
) -> None:
    stream = written(is_terminal=True)
    with progress.life.shown(), progress.life.paused():
        time.sleep(0.2)
    progress.life.is_quiet = True
    with progress.life.shown():
        time.sleep(0.2)
    assert "working" not in stream.getvalue()


def test_every_console_print_is_noted_as_output(
    written: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(is_terminal=True)
    called: list[None] = []
    monkeypatch.setattr(progress.life, "note_output", lambda: called.append(None))
    build_console(stderr=True).print("hello")
    assert called
